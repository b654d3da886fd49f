"""Writing files in the official format: what is written reads back as the same model, or nothing is there."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from ltx_core import sd_ops
from ltx_core.loader import Checkpoint, build_model, save_checkpoint
from ltx_core.loader.save import OFFICIAL_PREFIXES
from ltx_core.utils import whole_file

MAPS = {
    "transformer": sd_ops.LTXV_MODEL_COMFY_RENAMING_MAP,
    "video_encoder": sd_ops.VAE_ENCODER_COMFY_KEYS_FILTER,
    "video_decoder": sd_ops.VAE_DECODER_COMFY_KEYS_FILTER,
    "audio_encoder": sd_ops.AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    "audio_decoder": sd_ops.AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    "vocoder": sd_ops.VOCODER_COMFY_KEYS_FILTER,
    "embeddings_processor": sd_ops.EMBEDDINGS_PROCESSOR_KEY_OPS,
    "upsampler": None,
}


class Part(nn.Module):
    """A component with statistics beside its layers, or with the names of an embeddings processor."""

    def __init__(self, component: str) -> None:
        super().__init__()
        if component == "embeddings_processor":
            self.feature_extractor = nn.ModuleDict({"video_aggregate_embed": nn.Linear(3, 2)})
            self.video_connector, self.audio_connector = nn.Linear(2, 2), nn.Linear(4, 4)
        else:
            self.conv = nn.Linear(3, 3)
            self.per_channel_statistics = nn.Module()
            self.per_channel_statistics.register_buffer("mean-of-means", torch.randn(3))
            self.register_buffer("steps", torch.arange(2))


@pytest.mark.parametrize("component", OFFICIAL_PREFIXES)
def test_a_component_reads_back_as_it_was_written(tmp_path, component):
    path, part = tmp_path / "folder" / "x.safetensors", Part(component)
    save_checkpoint(path, {component: part}, {"a": {"b": 1}}, "2.3.9", torch.float32, {"license": "none"})
    checkpoint = Checkpoint(path)
    assert checkpoint.config == {"a": {"b": 1}}
    assert (checkpoint.model_version, checkpoint.metadata["license"]) == ("2.3.9", "none")
    again = build_model(Part(component).to("meta"), checkpoint, MAPS[component], "cpu")
    assert all(torch.equal(value, part.state_dict()[name]) for name, value in again.state_dict().items())


def test_components_of_one_file_keep_apart_and_share_their_statistics(tmp_path):
    encoder, decoder = Part("video_encoder"), Part("video_decoder")
    decoder.per_channel_statistics = encoder.per_channel_statistics
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"video_encoder": encoder, "video_decoder": decoder}, {}, "2.0.0", torch.float32)
    for component, part in (("video_encoder", encoder), ("video_decoder", decoder)):
        again = build_model(Part(component).to("meta"), Checkpoint(path), MAPS[component], "cpu")
        assert torch.equal(again.conv.weight, part.conv.weight)


def test_floating_tensors_are_cast_and_the_module_is_left_alone(tmp_path):
    part = Part("transformer")
    save_checkpoint(tmp_path / "x.safetensors", {"transformer": part}, {}, "2.3.0")
    checkpoint = Checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.info("model.diffusion_model.conv.weight").dtype is torch.bfloat16
    assert checkpoint.info("model.diffusion_model.steps").dtype is torch.int64
    assert part.conv.weight.dtype is torch.float32


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"before")

    def fails(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, {"transformer": Part("transformer")}, {}, "2.3.0")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_is_told_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk; safetensors has an error of its own for it."""
    code = (
        "import resource, torch; from ltx_core.errors import CheckpointError; "
        "from ltx_core.loader import write_tensors; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: write_tensors('x.safetensors', {'a': torch.zeros(10000)})\n"
        "except CheckpointError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("x.safetensors could not be written (")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_have_the_longest_name_there_is(tmp_path):
    path = tmp_path / f"{'x' * 250}.json"
    with whole_file(path) as partial, whole_file(path) as other:  # two writers of one file
        assert partial != other
        partial.write_text("first")
        other.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
