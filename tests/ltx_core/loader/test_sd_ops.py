"""Key maps: the rules by which keys are kept and renamed, and the maps of the components."""

import pytest
import torch

from ltx_core import sd_ops
from ltx_core.loader import KeyValueOperationResult, SDOps
from ltx_core.loader import sd_ops as official_path


def test_nothing_is_kept_without_a_matching_entry():
    assert SDOps("x").with_replacement("a", "b").apply_to_key("a") is None


def test_any_matching_entry_keeps_a_key_and_looks_at_the_key_in_the_file():
    ops = (
        SDOps("x")
        .with_matching(prefix="a.", suffix=".w")
        .with_matching(prefix="b.")
        .with_replacement("a.", "b.")
    )
    assert ops.apply_to_key("a.1.w") == "b.1.w"
    assert ops.apply_to_key("b.1.c") == "b.1.c"
    assert ops.apply_to_key("a.1.c") is None


def test_replacements_run_in_order_on_all_occurrences():
    ops = SDOps("x").with_matching().with_replacement("a", "bb").with_replacement("b", "c")
    assert ops.apply_to_key("a.a.b") == "cc.cc.c"


def test_the_first_matching_operation_decides_and_its_results_are_final():
    value = torch.ones(2)
    ops = (
        SDOps("x")
        .with_matching()
        .with_replacement("new", "never")
        .with_kv_operation(lambda k, v: [], key_prefix="drop")
        .with_kv_operation(lambda k, v: [KeyValueOperationResult("new", v)] * 2, key_suffix=".w")
        .with_kv_operation(lambda k, v: [KeyValueOperationResult("other", v)], key_suffix=".w")
    )
    assert ops.apply_to_key_value("drop.w", value) == []
    assert [result.new_key for result in ops.apply_to_key_value("a.w", value)] == ["new", "new"]
    [(key, same)] = ops.apply_to_key_value("a.b", value)
    assert (key, same) == ("a.b", value)


def test_maps_are_values_and_building_on_one_leaves_it_alone():
    base = SDOps("x").with_matching(prefix="a.")
    longer = base.with_replacement("a.", "")
    assert base == SDOps("x").with_matching(prefix="a.")
    assert hash(base) == hash(SDOps("x").with_matching(prefix="a."))
    assert len(base.mapping) == 1
    chained = base.chain(longer)
    assert chained.name == "sd_ops_chain_x+x"
    assert chained.mapping == base.mapping + longer.mapping


@pytest.mark.parametrize(
    "name", ["LTXV_MODEL_COMFY_RENAMING_MAP", "VOCODER_COMFY_KEYS_FILTER", "GEMMA_LLM_KEY_OPS"]
)
@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.a.weight",
        "vocoder.vocoder.a.weight",
        "language_model.model.embed_tokens.weight",
        "other.weight",
    ],
)
def test_a_map_does_what_its_halves_do_in_turn(name, key):
    whole, value = getattr(sd_ops, name), torch.ones(2)
    keys, tensors = whole.split()
    renamed = keys.apply_to_key(key)
    assert renamed == whole.apply_to_key(key)
    if renamed is not None:
        assert keys.apply_to_key_value(renamed, value) == [(renamed, value)]
        assert tensors.apply_to_key(renamed) == renamed
        assert tensors.apply_to_key_value(renamed, value) == whole.apply_to_key_value(renamed, value)


RENAMED = {
    ("LTXV_MODEL_COMFY_RENAMING_MAP", "model.diffusion_model.a.model.diffusion_model.b"): ["a.b"],
    ("LTXV_MODEL_COMFY_RENAMING_MAP", "vae.encoder.a"): None,
    ("VAE_ENCODER_COMFY_KEYS_FILTER", "vae.per_channel_statistics.mean-of-means"): [
        "per_channel_statistics.mean-of-means"
    ],
    ("VAE_DECODER_COMFY_KEYS_FILTER", "vae.encoder.a"): None,
    ("AUDIO_VAE_DECODER_COMFY_KEYS_FILTER", "audio_vae.decoder.a.bias"): ["a.bias"],
    ("AUDIO_VAE_DECODER_COMFY_KEYS_FILTER", "vae.decoder.a.bias"): None,
    ("VOCODER_COMFY_KEYS_FILTER", "vocoder.vocoder.ups.0.weight"): ["vocoder.ups.0.weight"],
    ("VOCODER_COMFY_KEYS_FILTER", "vocoder.conv_pre.bias"): ["conv_pre.bias"],
    ("EMBEDDINGS_PROCESSOR_KEY_OPS", "model.diffusion_model.audio_embeddings_connector.x"): [
        "audio_connector.x"
    ],
    ("EMBEDDINGS_PROCESSOR_KEY_OPS", "model.diffusion_model.proj_out.weight"): None,
    ("GEMMA_LLM_KEY_OPS", "language_model.model.embed_tokens.weight"): [
        "model.model.language_model.embed_tokens.weight",
        "model.lm_head.weight",
    ],
    ("GEMMA_LANGUAGE_MODEL_KEYS", "model.language_model.layers.0.mlp.up_proj.weight"): [
        "layers.0.mlp.up_proj.weight"
    ],
    ("GEMMA_LANGUAGE_MODEL_KEYS", "language_model.model.norm.weight"): ["norm.weight"],
    ("LTXV_LORA_COMFY_RENAMING_MAP", "diffusion_model.a.lora_A.weight"): ["a.lora_A.weight"],
    ("LTXV_LORA_COMFY_TARGET_MAP", "diffusion_model.a.lora_B.weight"): ["a.weight"],
}


@pytest.mark.parametrize(("name", "key"), RENAMED)
def test_component_maps(name, key):
    ops = getattr(sd_ops, name)
    renamed = ops.apply_to_key(key)
    results = None if renamed is None else ops.apply_to_key_value(renamed, torch.empty(0))
    assert (results and [result.new_key for result in results]) == RENAMED[name, key]


def test_the_official_import_path_leads_to_the_same_objects():
    assert all(getattr(official_path, name) is getattr(sd_ops, name) for name in official_path.__all__)
