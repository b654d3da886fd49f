"""The recorded goldens of the networks that are small enough to lie in the repository, through the runner."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY))  # `tests` is a package of the repository, not of an installation

from ltx_core.loader import Checkpoint, build_model  # noqa: E402
from ltx_core.model import audio_vae, upsampler, video_vae  # noqa: E402
from tests.conformance.harness import Context  # noqa: E402
from tests.conformance.run import TOPICS, main, run_case, topic_of  # noqa: E402
from tests.conformance.topics import audio, transformer  # noqa: E402
from tests.conformance.topics import upsampler as upsampler_topic  # noqa: E402
from tests.conformance.topics import video_vae as video_topic  # noqa: E402

GOLDENS = REPOSITORY / "tests" / "goldens"
MODULES = {"transformer": transformer, "video_vae": video_topic, "upsampler": upsampler_topic, "audio": audio}
CASES = [
    pytest.param(case, id=f"{topic}-{case.key}")
    for topic, module in MODULES.items()
    for case in module.cases(GOLDENS / topic, Context())
]
VAE_ENCODER = (video_vae.VideoEncoderConfigurator, video_vae.VAE_ENCODER_COMFY_KEYS_FILTER)
VAE_DECODER = (video_vae.VideoDecoderConfigurator, video_vae.VAE_DECODER_COMFY_KEYS_FILTER)
AUDIO_ENCODER = (audio_vae.AudioEncoderConfigurator, audio_vae.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER)
VOCODER = (audio_vae.VocoderConfigurator, audio_vae.VOCODER_COMFY_KEYS_FILTER)
FILES = {
    "video_vae/enc_strided_reflect/model.safetensors": VAE_ENCODER,
    "video_vae/dec_timestep_noise/model.safetensors": VAE_DECODER,
    "upsampler/x1_5/model.safetensors": (upsampler.LatentUpsamplerConfigurator, None),
    "audio/encoder_attn_width.safetensors": AUDIO_ENCODER,
    "audio/vocoder_bwe_remainder.safetensors": VOCODER,
}
# Published files carry these statistics; no network reads them.
UNREAD = {
    f"per_channel_statistics.{name}" for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    failed = [f"{check.name}: {check.detail}" for check in run_case(case) if not check.ok]
    assert not failed, "\n".join(failed)


def test_every_topic_has_cases():
    expected = {"transformer": 9, "video_vae": 5, "upsampler": 1, "audio": 5}
    assert {topic: len(list(m.cases(GOLDENS / topic, Context()))) for topic, m in MODULES.items()} == expected


@pytest.mark.parametrize("file", FILES)
def test_models_ask_for_exactly_the_tensors_of_the_file(file):
    path = GOLDENS / file
    configurator, key_map = FILES[file]
    model = build_model(configurator, Checkpoint(path), key_map, "cpu")
    stored = {key: tensor for key, tensor in load_file(path).items() if not key.startswith(("in.", "out."))}
    names = set(stored) if key_map is None else set(rename(stored, key_map))
    assert set(model.state_dict()) == names - UNREAD


def rename(stored: dict[str, torch.Tensor], key_map) -> Iterator[str]:
    """The names inside the component of all tensors that the key map keeps."""
    for key, tensor in stored.items():
        renamed = key_map.apply_to_key(key)
        if renamed is not None:
            yield from (name for name, _ in key_map.apply_to_key_value(renamed, tensor))


def run(folder: Path) -> int:
    """The runner's exit status; the number of threads is the process's, and stays."""
    return main([str(folder), "--threads", str(torch.get_num_threads())])


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A copy of one topic under a name that is no topic's."""
    yield Path(shutil.copytree(GOLDENS / "upsampler", tmp_path / "somewhere"))


def test_a_topic_is_recognised_by_its_files(folder):
    assert topic_of(folder) == "upsampler"
    assert set(MODULES) <= set(TOPICS)


def test_the_runner_fails_a_wrong_number(folder, capsys):
    path = folder / "x1_5" / "io.safetensors"
    tensors = load_file(path)
    assert run(folder) == 0
    tensors["upsampled"][0, 0, 0, 0, 0] += 1e-3 * tensors["upsampled"].abs().max()
    save_file(tensors, path)
    assert run(folder) == 1
    assert "upsampler x1_5 FAIL !! upsampled" in capsys.readouterr().out


def test_the_runner_fails_a_wrong_shape_and_an_unknown_call(folder, capsys):
    path = folder / "x1_5" / "case.json"
    meta = json.loads(path.read_text())
    meta["calls"][1]["call"] = "dance"
    path.write_text(json.dumps(meta))
    tensors = load_file(folder / "x1_5" / "io.safetensors")
    tensors["upsampled"] = tensors["upsampled"][..., 1:].contiguous()
    save_file(tensors, folder / "x1_5" / "io.safetensors")
    assert run(folder) == 1
    printed = capsys.readouterr().out
    assert "!! upsampled: shape (2, 4, 3, 8, 6), expected (2, 4, 3, 8, 5)" in printed
    assert "!! dance: nobody knows how to make this call" in printed


def test_superseded_cases_are_reported_and_not_run(folder, capsys):
    table = {"upsampler": {"x1_5": {"status": "superseded", "by": "x9", "why": "-"}}}
    (folder.parent / "semantics.json").write_text(json.dumps(table))
    (folder / "x1_5" / "model.safetensors").unlink()
    assert run(folder) == 0
    assert "upsampler x1_5 superseded by x9" in capsys.readouterr().out


def test_an_empty_folder_fails(tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    assert run(tmp_path / "audio") == 1
    assert "no cases" in capsys.readouterr().err
