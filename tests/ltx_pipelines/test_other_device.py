"""The pipelines on a device that is not the CPU: the same numbers, nothing in the wrong place, few waits."""

import pytest
import torch
from tests.stand_in_device import NAME, fetched, stand_in_device

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines import (
    A2VidPipelineTwoStage,
    DistilledPipeline,
    ICLoraPipeline,
    KeyframeInterpolationPipeline,
    RetakePipeline,
    TI2VidOneStagePipeline,
    TI2VidTwoStagesHQPipeline,
    TI2VidTwoStagesPipeline,
)

SMALL = {"height": 64, "width": 64, "num_frames": 9, "seed": 5}
ALL = MultiModalGuiderParams(
    cfg_scale=3.0, stg_scale=1.0, rescale_scale=0.7, modality_scale=3.0, stg_blocks=[0]
)
STEPS = {"num_inference_steps": 1, "video_guider_params": ALL}
GUIDED = {"prompt": "a ball", "audio_guider_params": ALL, **STEPS, **SMALL}
WINDOW = {"prompt": "a ball", "start_time": 0.1, "end_time": 0.5, "seed": 3}
MASK = {
    "conditioning_attention_mask": torch.ones(1, 1, 9, 32, 32),
    "conditioning_attention_strength": 0.5,
}
FP8 = {"quantization": QuantizationPolicy.fp8_cast(), "dtype": torch.bfloat16}

# By name: a pipeline, options of its constructor, its call, and which of `inputs` go with it.
CASES = {
    "one-stage": (TI2VidOneStagePipeline, {}, GUIDED, ["images"]),
    "two-stages": (TI2VidTwoStagesPipeline, {}, GUIDED, ["images"]),
    "hq": (TI2VidTwoStagesHQPipeline, {}, GUIDED, []),
    "distilled": (DistilledPipeline, {}, {"prompt": "a ball", "tiling_config": None, **SMALL}, []),
    "keyframes": (KeyframeInterpolationPipeline, {}, GUIDED, ["images"]),
    "a2vid": (A2VidPipelineTwoStage, {}, {"prompt": "a ball", **STEPS, **SMALL}, ["audio_path"]),
    "retake": (RetakePipeline, {}, WINDOW | STEPS, ["video_path"]),
    "retake of sound": (
        RetakePipeline,
        {},
        WINDOW | {"distilled": True, "regenerate_video": False},
        ["video_path"],
    ),
    "retake within the clip": (
        RetakePipeline,
        {},
        WINDOW | {"distilled": True, "keep_original": True},
        ["video_path"],
    ),
    "ic-lora": (ICLoraPipeline, {}, {"prompt": "a ball", **MASK, **SMALL}, ["images", "video_conditioning"]),
    "from main memory": (TI2VidTwoStagesPipeline, {"offload": "cpu"}, GUIDED, []),
    "from disk": (TI2VidTwoStagesPipeline, {"offload": "disk"}, GUIDED, []),
    "beside": (TI2VidTwoStagesPipeline, {"offload": "cpu", "fuse_loras": False}, GUIDED, []),
    "fp8": (TI2VidTwoStagesPipeline, FP8, GUIDED, []),
    "fp8 from main memory": (TI2VidTwoStagesPipeline, FP8 | {"offload": "cpu"}, GUIDED, []),
    "stacked": (TI2VidOneStagePipeline, {"max_batch_size": 4}, GUIDED, []),
    "gradient estimation": (
        TI2VidOneStagePipeline,
        {},
        GUIDED | {"sampler": "gradient-estimation", "num_inference_steps": 3},
        [],
    ),
}


@pytest.fixture
def inputs(picture, sound, clip):
    return {
        "images": [(str(picture), 0, 1.0), (str(picture), 8, 0.5)],
        "audio_path": str(sound),
        "video_path": str(clip),
        "video_conditioning": [(str(clip), 0.8)],
    }


@pytest.fixture(scope="module")
def engines():
    """By device: one in float32, for all pipelines that ask for nothing else."""
    return {}


def make(kind, device, options, engines):
    if options:
        return kind(device=device, **{"dtype": torch.float32, **options})
    if device not in engines:  # this pipeline's engine knows all components
        engines[device] = TI2VidTwoStagesPipeline(device=device, dtype=torch.float32).engine
    return kind(engine=engines[device])


def results(pipeline, call):
    video, sound = pipeline(**call)
    return fetched(torch.cat(list(video))), fetched(sound.waveform)


@pytest.mark.parametrize("name", CASES)
def test_what_comes_out_does_not_depend_on_the_device(name, inputs, engines, monkeypatch):
    kind, options, call, given = CASES[name]
    call = call | {key: inputs[key] for key in given}
    video, sound = results(make(kind, "cpu", options, engines), call)
    with stand_in_device(monkeypatch):
        other_video, other_sound = results(make(kind, NAME, options, engines), call)
    assert (video.int() - other_video.int()).abs().max() <= 1
    assert torch.allclose(sound, other_sound, atol=1e-4)


@pytest.mark.parametrize("stacked", [1, 4])
def test_a_step_waits_for_the_device_a_few_times(stacked, monkeypatch):
    """Not once for each block or pass."""
    with stand_in_device(monkeypatch) as operations:
        pipeline = TI2VidOneStagePipeline(device=NAME, dtype=torch.float32, max_batch_size=stacked)
        counts = []
        for steps in (1, 1, 2):  # the first call reads the weights
            operations.waits.clear()
            pipeline(**GUIDED | {"num_inference_steps": steps})
            counts.append(operations.waits.total())
    assert 0 < counts[2] - counts[1] <= 6
