"""LoRA files of every naming: which weights they touch, what alpha does, and what is said about the rest."""

import json
import logging

import pytest
import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader import (
    Checkpoint,
    KeyValueOperationResult,
    LoraPathStrengthAndSDOps,
    LoraSwitcher,
    SDOps,
    build_model,
)
from ltx_core.loader.lora import LoraFile, match_lora

MODULES = ("patchify_proj", "transformer_blocks.1.attn1.to_q", "transformer_blocks.0.attn1.to_gate_logits")
AB, DOWN_UP = ("A", "B"), ("down", "up")
OFFICIAL = {
    "ComfyUI": ("diffusion_model.{}.lora_{}.weight", AB),
    "bare": ("{}.lora_{}.weight", AB),
}
OTHERS = {
    "diffusers": ("transformer.{}.lora_{}.weight", AB),
    "PEFT": ("base_model.model.{}.lora_{}.weight", AB),
    "PEFT of a wrapped model": ("base_model.model.diffusion_model.{}.lora_{}.weight", AB),
    "checkpoint": ("model.diffusion_model.{}.lora_{}.weight", AB),
    "ComfyUI, down and up": ("diffusion_model.{}.lora_{}.weight", DOWN_UP),
    "Kohya": ("lora_unet_{}.lora_{}.weight", DOWN_UP),
}
WITHOUT_ALPHA = {"PEFT with its adapter's name": ("base_model.model.{}.lora_{}.default.weight", AB)}
ALL = OFFICIAL | OTHERS | WITHOUT_ALPHA


@pytest.fixture
def targets(files):
    return {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in files.Network(16).state_dict().items()
        if name.endswith(".weight")
    }


def delta(files, path: str, targets: dict, module: str = MODULES[0]) -> torch.Tensor:
    """What a LoRA file adds to a weight at strength 1."""
    pair = LoraFile(path, targets, LoraPathStrengthAndSDOps("").sd_ops).read(module)
    return (pair.up * pair.scale) @ pair.down


@pytest.mark.parametrize(("form", "halves"), ALL.values(), ids=ALL)
def test_every_naming_is_recognised_and_means_the_same(files, targets, form, halves):
    plain = files.lora("plain.safetensors", MODULES)
    other = files.lora("other.safetensors", MODULES, form, halves)
    for sd_ops in (None, LoraPathStrengthAndSDOps("").sd_ops):
        assert set(LoraFile(other, targets, sd_ops).match.modules) == set(MODULES)
    for module in MODULES:
        assert torch.equal(delta(files, other, targets, module), delta(files, plain, targets, module))


def test_a_files_own_key_map_is_used(files, targets):
    path = files.lora(modules=("patchify_proj",), form="odd/{}.lora_{}.weight")
    with pytest.raises(CheckpointError):
        LoraFile(path, targets, SDOps("all").with_matching())
    assert LoraFile(path, targets, SDOps("odd").with_matching().with_replacement("odd/", "")).match.modules


def test_a_files_own_key_map_may_change_its_tensors(files, targets):
    plain = files.lora()
    stored = Checkpoint(plain)
    turned = files.write("turned.safetensors", {key: stored.read(key).t().contiguous() for key in stored})
    key_map = LoraPathStrengthAndSDOps("").sd_ops.with_kv_operation(
        lambda key, value: [KeyValueOperationResult(key, value.t())]
    )
    for module in MODULES[:2]:
        one, other = LoraFile(turned, targets, key_map).read(module), LoraFile(plain, targets).read(module)
        assert all(torch.equal(a, b) for a, b in zip(one[:2], other[:2]))


@pytest.mark.parametrize(("form", "halves"), OFFICIAL.values(), ids=OFFICIAL)
def test_alpha_has_no_effect_in_the_official_naming(files, targets, form, halves):
    plain = files.lora("plain.safetensors", form=form, halves=halves)
    scaled = files.lora("alpha.safetensors", form=form, halves=halves, alpha=8.0)
    assert torch.equal(delta(files, scaled, targets), delta(files, plain, targets))


@pytest.mark.parametrize(("form", "halves"), OTHERS.values(), ids=OTHERS)
def test_alpha_over_rank_scales_in_all_others(files, targets, form, halves):
    plain = files.lora("plain.safetensors", form=form, halves=halves, rank=4)
    scaled = files.lora("alpha.safetensors", form=form, halves=halves, rank=4, alpha=8.0)
    assert torch.equal(delta(files, scaled, targets), 2 * delta(files, plain, targets))


def test_alpha_from_the_settings_of_diffusers_and_peft(files, targets):
    form, settings = OTHERS["PEFT"][0], {"r": 4, "lora_alpha": 2}
    plain = delta(files, files.lora("plain.safetensors", form=form, rank=4), targets)
    packed = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
    stated = files.lora("stated.safetensors", form=form, rank=4, lora_adapter_metadata=packed)
    assert torch.equal(delta(files, stated, targets), plain / 2)
    official = files.lora("official.safetensors", rank=4, lora_adapter_metadata=packed)
    assert torch.equal(delta(files, official, targets), plain)
    (files.folder / "adapter_config.json").write_text(json.dumps(settings))
    beside = files.lora("beside.safetensors", form=form, rank=4)
    assert torch.equal(delta(files, beside, targets), plain / 2)


@pytest.mark.parametrize("text", ["{", "[1]", '{"lora_alpha": [1]}', '{"lora_alpha": null}'])
def test_unreadable_settings_are_a_warning(files, targets, caplog, text):
    (files.folder / "adapter_config.json").write_text(text)
    path = files.lora(form=OTHERS["PEFT"][0])
    assert delta(files, path, targets).shape == (16, 16)
    assert "settings cannot be read" in caplog.text


def test_a_lora_that_fits_nothing_shows_both_sides_keys(files, targets):
    path = files.write("x.safetensors", {"unet.mid.lora_A.weight": torch.ones(1, 2), "y": torch.ones(1)})
    with pytest.raises(CheckpointError) as caught:
        LoraFile(path, targets)
    message = str(caught.value)
    assert all(words in message for words in (path, "matches no weight", "unet.mid", "patchify_proj"))


def test_a_file_that_is_no_lora(files, targets):
    with pytest.raises(CheckpointError, match="no tensors"):
        LoraFile(files.write("x.safetensors", {}), targets)
    with pytest.raises(CheckpointError, match=r"It has: weight\."):
        LoraFile(files.write("y.safetensors", {"weight": torch.ones(1)}), targets)


def test_what_does_not_fit_is_reported_and_logged_once(files, targets, caplog):
    shapes = {
        "patchify_proj.lora_A.weight": (2, 16),
        "patchify_proj.lora_B.weight": (16, 2),
        "elsewhere.lora_A.weight": (2, 16),
        "elsewhere.lora_B.weight": (16, 2),
        "transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 16),
        "patchify_proj.dora_scale": (16,),
        "patchify_proj.diff_b": (16,),
    }
    match = match_lora("file", shapes, targets)
    assert set(match.modules) == {"patchify_proj"}
    assert match.unmatched == ("elsewhere", "transformer_blocks.0.attn1.to_q")
    assert match.ignored == ("patchify_proj.dora_scale", "patchify_proj.diff_b")
    with caplog.at_level(logging.WARNING):
        match.check(targets)
    [record] = caplog.records
    assert "1 modules are used; 2 match no weight or are incomplete and 2 keys" in record.getMessage()
    assert "elsewhere" in record.getMessage()


def test_a_lora_that_fits_in_full_is_silent(files, targets, caplog):
    LoraFile(files.lora(), targets)
    assert not caplog.records


@pytest.mark.parametrize(
    ("down", "up"),
    [((2, 8), (16, 2)), ((2, 16), (8, 2)), ((2, 16), (16, 3)), ((2, 16, 1), (16, 2)), ((16,), (16,))],
)
def test_a_pair_of_another_models_shape_is_refused(targets, down, up):
    shapes = {"patchify_proj.lora_A.weight": down, "patchify_proj.lora_B.weight": up}
    with pytest.raises(CheckpointError, match="made for another model") as caught:
        match_lora("some.safetensors", shapes, targets)
    assert all(words in str(caught.value) for words in ("some.safetensors", "patchify_proj", "(16, 16)"))


@pytest.mark.parametrize(
    ("down", "up", "common"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float8_e4m3fn, torch.float32, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16, torch.bfloat16),
    ],
)
def test_halves_of_two_dtypes_meet_in_the_wider_one(files, targets, down, up, common):
    numbers = torch.arange(32.0)
    pair = {
        "patchify_proj.lora_A.weight": numbers.reshape(2, 16).to(down),
        "patchify_proj.lora_B.weight": numbers.reshape(16, 2).to(up),
    }
    read = LoraFile(files.write("x.safetensors", pair), targets).read("patchify_proj")
    assert read.down.dtype is read.up.dtype is common
    assert torch.equal(read.down.float(), numbers.reshape(2, 16).to(down).float())


def test_whole_numbers_are_no_lora(files, targets):
    pair = {f"patchify_proj.lora_{half}.weight": torch.ones(16, 16, dtype=torch.int8) for half in "AB"}
    with pytest.raises(CheckpointError, match=r"patchify_proj.lora_A.weight of a LoRA is torch.int8; only"):
        LoraFile(files.write("x.safetensors", pair), targets).read("patchify_proj")


def test_an_alpha_is_one_number_whatever_the_rank(files, targets):
    shapes = {"patchify_proj.lora_down.weight": (2, 16), "patchify_proj.lora_up.weight": (16, 2)}
    with pytest.raises(CheckpointError, match=r"patchify_proj.alpha has shape \(2,\); expected one number"):
        match_lora("file", shapes | {"patchify_proj.alpha": (2,)}, targets)
    nothing = {"down": torch.zeros(0, 16), "up": torch.zeros(16, 0)}
    pair = {f"patchify_proj.lora_{half}.weight": value for half, value in nothing.items()}
    path = files.write("rank0.safetensors", pair | {"patchify_proj.alpha": torch.tensor(1.0)})
    assert delta(files, path, targets).count_nonzero() == 0


def test_what_the_pairs_take_is_told_from_the_header(files, targets):
    file = LoraFile(files.lora(modules=MODULES), targets)
    expected = sum(part.numel() for name in MODULES for part in file.read(name)[:2])
    file.checkpoint.bytes_read = 0
    assert (file.bytes_in(torch.bfloat16), file.bytes_in(torch.float32)) == (2 * expected, 4 * expected)
    assert not file.checkpoint.bytes_read


def test_other_namings_fuse_like_the_official_one(files):
    weights = []
    for i, (form, halves) in enumerate((OFFICIAL["ComfyUI"], OTHERS["Kohya"])):
        model = build_model(files.Configurator, Checkpoint(files.model()), files.MAP, "cpu", torch.float32)
        path = files.lora(f"{i}.safetensors", MODULES, form, halves)
        LoraSwitcher(model).apply([LoraPathStrengthAndSDOps(path, 0.7)])
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
