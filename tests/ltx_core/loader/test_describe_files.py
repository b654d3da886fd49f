"""What is said about files of every kind, from their headers."""

import json

import pytest
import torch

from ltx_core.errors import CheckpointError, MissingFileError
from ltx_core.loader import Checkpoint, describe


def ones(*names: str, shape=(4,), dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape, dtype=dtype) for name in names}


def test_a_model_with_all_components(files):
    tensors = ones(
        "model.diffusion_model.proj_out.weight",
        "model.diffusion_model.video_embeddings_connector.registers",
        "text_embedding_projection.aggregate_embed.weight",
        "vae.encoder.conv_in.weight",
        "vae.decoder.conv_in.weight",
        "vae.per_channel_statistics.mean-of-means",
        "audio_vae.decoder.conv_in.weight",
        "audio_vae.per_channel_statistics.mean-of-means",
        "vocoder.conv_pre.weight",
    )
    found = describe(files.write("m.safetensors", tensors, config="{}", model_version="2.3.0"))
    assert (found.kind, found.model_version, found.variant, found.fp8, found.lora) == (
        "model",
        "2.3.0",
        None,
        None,
        None,
    )
    assert {name: (size.parameters, size.nbytes) for name, size in found.components.items()} == {
        "transformer": (4, 8),
        "text projection and connectors": (8, 16),
        "video encoder": (8, 16),
        "video decoder": (8, 16),
        "audio decoder": (8, 16),
        "vocoder": (4, 8),
    }
    assert (found.total.parameters, found.total.nbytes) == (36, 72)
    assert found.dtypes == {"bfloat16": 9}
    text = str(found)
    assert all(words in text for words in ("m.safetensors: model, version 2.3.0", "vocoder", "9 x bfloat16"))


def test_statistics_alone_are_no_autoencoder(files):
    for prefix in ("vae.", ""):
        tensors = ones(f"{prefix}per_channel_statistics.mean-of-means", f"{prefix}decoder.x")
        assert set(describe(files.write("m.safetensors", tensors)).components) == {"video decoder"}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("ltx-2.3-22b-distilled-1.1", "distilled"),
        ("ltx-2.3-22b-dev-fp8", "full"),
        ("LTX_2_19b_DISTILLED", "distilled"),
        ("developer", None),
    ],
)
def test_full_or_distilled_is_told_from_the_name(files, name, variant):
    found = describe(files.write(f"{name}.safetensors", ones("model.diffusion_model.x")))
    assert found.variant == variant
    assert (str(found.variant) in str(found)) == (variant is not None)


@pytest.mark.parametrize(
    ("form", "halves", "naming"),
    [
        ("diffusion_model.{}.lora_{}.weight", ("A", "B"), "ComfyUI (lora_A, lora_B)"),
        ("{}.lora_{}.weight", ("A", "B"), "bare (lora_A, lora_B)"),
        ("transformer.{}.lora_{}.weight", ("A", "B"), "diffusers (lora_A, lora_B)"),
        ("base_model.model.{}.lora_{}.weight", ("A", "B"), "PEFT (lora_A, lora_B)"),
        ("model.diffusion_model.{}.lora_{}.weight", ("A", "B"), "checkpoint (lora_A, lora_B)"),
        ("lora_unet_{}.lora_{}.weight", ("down", "up"), "Kohya (lora_down, lora_up)"),
    ],
)
def test_loras_of_every_naming(files, form, halves, naming):
    found = describe(files.lora(form=form, halves=halves, rank=3, alpha=1.5))
    assert found.kind == "LoRA"
    assert (found.lora.naming, found.lora.modules, found.lora.ranks, found.lora.alphas) == (
        naming,
        2,
        (3,),
        (1.5,),
    )
    assert all(line in str(found) for line in (f"naming: {naming}", "modules: 2", "rank: 3", "alpha: 1.5"))


def test_an_ic_lora(files):
    found = describe(files.lora(reference_downscale_factor="2"))
    assert found.kind == "IC-LoRA"
    assert found.lora.reference_downscale_factor == "2"
    assert "reference_downscale_factor: 2" in str(found)


def test_the_alpha_that_peft_keeps_beside_the_tensors(files):
    path = files.lora(form="base_model.model.{}.lora_{}.weight")
    (files.folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 32}))
    assert describe(path).lora.alphas == (32.0,)


def test_an_alpha_that_is_no_number_is_another_ones(files):
    tensors = ones("diffusion_model.x.lora_A.weight") | {"vocoder.act.alpha": torch.ones(4)}
    assert describe(files.write("mixed.safetensors", tensors)).lora.alphas == ()


def test_a_latent_upsampler(files):
    config = json.dumps({"spatial_scale": 2.0, "temporal_upsample": False, "dims": 3})
    found = describe(files.write("u.safetensors", ones("initial_conv.weight"), config=config))
    assert found.kind == "latent upsampler"
    assert found.notes == {"spatial_scale": 2.0, "temporal_upsample": False}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_gemma_shard_and_its_folder(files, prefix):
    for i in range(2):
        files.write(f"model-0000{i}.safetensors", ones(f"{prefix}layers.{i}.mlp.weight"))
    for path in (files.folder, files.folder / "model-00000.safetensors"):
        found = describe(path)
        assert found.kind == "Gemma text encoder"
        assert found.components["language model"].parameters == (8 if path == files.folder else 4)


def test_how_fp8_weights_are_stored(files):
    assert describe(files.model()).fp8 is None
    assert describe(files.scaled_model()).fp8 == "2 layers with weight scales and input scales"
    bare = files.scaled_model("b.safetensors", input_scales=False)
    assert describe(bare).fp8 == "2 layers with weight scales and no input scales"
    cast = files.write("c.safetensors", ones("model.diffusion_model.a.weight", dtype=torch.float8_e4m3fn))
    assert describe(cast).fp8 == "1 layers without scales"
    four = files.write("n.safetensors", ones("model.diffusion_model.a.weight_scale_2", dtype=torch.float32))
    assert "NVFP4" in describe(four).fp8


def test_something_else_is_unknown_and_shows_its_keys(files):
    found = describe(files.write("x.safetensors", ones("some.key")))
    assert (found.kind, found.components) == ("unknown", {})
    assert "first keys: some.key" in str(found)


def test_no_weights_are_read(files, monkeypatch):
    path = files.model()
    monkeypatch.setattr(Checkpoint, "read", lambda *arguments: pytest.fail("read a tensor"))
    assert describe(path).kind == "model"


def test_what_cannot_be_described(files):
    with pytest.raises(MissingFileError):
        describe(files.folder / "nowhere")
    with pytest.raises(CheckpointError, match=r"without \.safetensors"):
        describe(files.folder)
    files.lora()
    with pytest.raises(CheckpointError, match="not of a Gemma"):
        describe(files.folder)
