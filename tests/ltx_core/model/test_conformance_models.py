"""The conformance runner itself, and which tensors models of the recorded and the published files have."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conformance.run import main, topic_of

from ltx_core.loader import Checkpoint, build_model
from ltx_core.model import audio_vae, upsampler, video_vae

REPOSITORY = Path(__file__).resolve().parents[3]

GOLDENS = REPOSITORY / "tests" / "goldens"
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


# The runner


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of one topic under a name that is no topic's."""
    return Path(shutil.copytree(GOLDENS / "upsampler", tmp_path / "somewhere"))


def test_a_topic_is_recognised_by_its_files(folder):
    assert topic_of(folder) == "upsampler"


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


# Published configurations: block lists as in the files, sizes from the layout's widths


def res(count: int) -> list:
    return ["res_x", {"num_layers": count}]


def squeeze(kind: str, multiplier: int = 2, **more) -> list:
    return [f"compress_{kind}", {"multiplier": multiplier} | more]


ENCODER_23 = [res(4), squeeze("space_res"), res(6), squeeze("time_res"), res(4), squeeze("all_res"), res(2)]
PUBLISHED = {
    "2.0": {
        "encoder_blocks": [*ENCODER_23[:4], res(6), squeeze("all_res"), res(2), squeeze("all_res"), res(2)],
        "decoder_blocks": [res(5), *[squeeze("all", residual=True), res(5)] * 3],
    },
    "2.3": {
        "encoder_blocks": [*ENCODER_23, squeeze("all_res", 1), res(2)],
        "decoder_blocks": [
            *(res(4), squeeze("space"), res(6), squeeze("time"), res(4)),
            *(squeeze("all", 1), res(2), squeeze("all"), res(2)),
        ],
    },
}
# Forward order: width and residual blocks of each level; inputs and outputs of each resampler's convolution
LEVELS = {
    ("2.0", "encoder"): [(128, 4), (256, 6), (512, 6), (1024, 2), (2048, 2)],
    ("2.3", "encoder"): [(128, 4), (256, 6), (512, 4), (1024, 2), (1024, 2)],
    ("2.0", "decoder"): [(1024, 5), (512, 5), (256, 5), (128, 5)],
    ("2.3", "decoder"): [(1024, 2), (512, 2), (512, 4), (256, 6), (128, 4)],
}
RESAMPLERS = {
    ("2.0", "encoder"): [(128, 64), (256, 256), (512, 128), (1024, 256)],
    ("2.3", "encoder"): [(128, 64), (256, 256), (512, 128), (1024, 128)],
    ("2.0", "decoder"): [(1024, 4096), (512, 2048), (256, 1024)],
    ("2.3", "decoder"): [(1024, 4096), (512, 4096), (512, 512), (256, 512)],
}


@pytest.mark.parametrize(("version", "half"), LEVELS)
def test_published_networks_have_the_published_tensors(version, half):
    section = {"vae": PUBLISHED[version] | {"timestep_conditioning": False}}
    with torch.device("meta"):
        configurator = (
            video_vae.VideoEncoderConfigurator if half == "encoder" else video_vae.VideoDecoderConfigurator
        )
        model = configurator.from_config(section)
    levels, name = LEVELS[version, half], "down_blocks" if half == "encoder" else "up_blocks"
    convolutions = {"conv_in": (48, 128) if half == "encoder" else (128, 1024)}
    convolutions["conv_out"] = (levels[-1][0], 129 if half == "encoder" else 48)
    for level, (width, count) in enumerate(levels):
        for block, which in itertools.product(range(count), (1, 2)):
            convolutions[f"{name}.{2 * level}.res_blocks.{block}.conv{which}"] = (width, width)
    for level, sizes in enumerate(RESAMPLERS[version, half]):
        convolutions[f"{name}.{2 * level + 1}.conv"] = sizes
    expected = {f"per_channel_statistics.{which}-of-means": (128,) for which in ("mean", "std")}
    for key, (inputs, outputs) in convolutions.items():
        expected |= {f"{key}.conv.weight": (outputs, inputs, 3, 3, 3), f"{key}.conv.bias": (outputs,)}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected


def test_published_audio_networks_have_the_published_tensors():
    ddconfig = {"mel_bins": 64, "attn_resolutions": [], "mid_block_add_attention": False}
    section = {"audio_vae": {"model": {"params": {"ddconfig": ddconfig}}}}
    configurators = audio_vae.AudioEncoderConfigurator, audio_vae.AudioDecoderConfigurator
    with torch.device("meta"):
        halves = [configurator.from_config(section) for configurator in configurators]
    encoder, decoder = ({key: tuple(t.shape) for key, t in half.state_dict().items()} for half in halves)
    statistics = {f"per_channel_statistics.{which}-of-means" for which in ("std", "mean")}
    for tensors, count in ((encoder, 44), (decoder, 56)):
        assert len(set(tensors) - statistics) == count
        assert all(tensors[key] == (128,) for key in statistics)
    for key, shape in {
        "conv_in.conv": (128, 2, 3, 3),
        "down.1.block.0.nin_shortcut.conv": (256, 128, 1, 1),
        "down.2.block.1.conv2.conv": (512, 512, 3, 3),
        "down.1.downsample.conv": (256, 256, 3, 3),
        "mid.block_2.conv1.conv": (512, 512, 3, 3),
        "conv_out.conv": (16, 512, 3, 3),
    }.items():
        assert encoder[f"{key}.weight"] == shape
    for key, shape in {
        "conv_in.conv": (512, 8, 3, 3),
        "up.2.upsample.conv.conv": (512, 512, 3, 3),
        "up.1.block.0.nin_shortcut.conv": (256, 512, 1, 1),
        "up.0.block.2.conv2.conv": (128, 128, 3, 3),
        "conv_out.conv": (2, 128, 3, 3),
    }.items():
        assert decoder[f"{key}.weight"] == shape
