"""Every way to run on a GPU against another one, on the built-in model."""

from functools import cache

import pytest
import torch

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines import TI2VidTwoStagesPipeline
from ltx_pipelines.miniature import VARIABLE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ALL = MultiModalGuiderParams(
    cfg_scale=3.0, stg_scale=1.0, rescale_scale=0.7, modality_scale=3.0, stg_blocks=[1]
)
CALL = {
    "prompt": "A red ball bounces on a blue floor",
    "seed": 3,
    "num_inference_steps": 3,
    "video_guider_params": ALL,
    "audio_guider_params": ALL,
}
CPU = {"device": "cpu", "dtype": torch.float32}
FULL = {"device": "cuda", "dtype": torch.float32}
HALF = {"device": "cuda", "dtype": torch.bfloat16}
CAST, SCALED = (
    HALF | {"quantization": policy}
    for policy in (QuantizationPolicy.fp8_cast(), QuantizationPolicy.fp8_scaled_mm())
)
GRAPHS = {"compile": {"mode": "reduce-overhead"}, "max_batch_size": 1}

# By name: options of the pipeline, those of what it is compared with, and by how much of 255 their videos may differ
# on the average; 0: not in a bit.
WAYS = {
    "float32": (FULL, CPU, 0.1),
    "bfloat16": (HALF, FULL, 1.0),
    "from main memory": (HALF | {"offload": "cpu"}, HALF, 0),
    "from disk": (HALF | {"offload": "disk"}, HALF, 0),
    "one pass after the other": (FULL | {"max_batch_size": 1}, FULL, 0.1),
    "beside": (FULL | {"fuse_loras": False}, FULL, 0.1),
    "beside, from main memory": (FULL | {"fuse_loras": False, "offload": "cpu"}, FULL, 0.1),
    "compiled": (FULL | {"compile": True}, FULL, 0.1),
    "compiled, from main memory": (FULL | {"compile": True, "offload": "cpu"}, FULL, 0.1),
    "CUDA graphs": (FULL | GRAPHS, FULL, 0.1),
    "fp8-cast": (CAST, HALF, 2.0),
    "fp8-cast, from main memory": (CAST | {"offload": "cpu"}, CAST, 0),
    "fp8-scaled-mm": (SCALED, HALF, 2.0),
    "fp8-scaled-mm, from disk": (SCALED | {"offload": "disk"}, SCALED, 0),
}


def result(pipeline: TI2VidTwoStagesPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    video, audio = pipeline(**CALL)
    return torch.cat([chunk.cpu() for chunk in video]).int(), audio.waveform.cpu()


@pytest.fixture(autouse=True)
def _trained_model(_random_model, monkeypatch):
    """Its blocks are stored in 8 bits."""
    monkeypatch.delenv(VARIABLE)


@pytest.fixture(scope="module")
def plain():
    """What comes out with these options, each computed once."""
    return cache(lambda *options: result(TI2VidTwoStagesPipeline(**dict(options))))


@pytest.mark.parametrize("name", WAYS)
def test_all_ways_lead_to_the_same_video(name, plain):
    options, other, far = WAYS[name]
    pipeline = TI2VidTwoStagesPipeline(**options)
    video, sound = result(pipeline)
    expected_video, expected_sound = plain(*other.items())
    assert (video - expected_video).abs().float().mean() <= far
    assert far or torch.equal(sound, expected_sound)
    again = result(pipeline)
    assert torch.equal(again[0], video)
    assert torch.equal(again[1], sound)
