"""The transformer as a whole: passes, invariants, sharing, gradients, configurations, bad input."""

import copy
import dataclasses
import pickle
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ltx_core.errors import ConfigError, InputError
from ltx_core.guidance import BatchedPerturbationConfig, Perturbation, PerturbationConfig, PerturbationType
from ltx_core.guidance.plan import TransformerCall
from ltx_core.loader import Checkpoint, build_model, save_checkpoint
from ltx_core.loader.branch import Branch
from ltx_core.loader.lora import Pair
from ltx_core.model.transformer import (
    LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP,
    LTXV_MODEL_COMFY_RENAMING_MAP,
    LTXAudioOnlyModelConfigurator,
    LTXModel,
    LTXModelConfigurator,
    LTXVideoOnlyModelConfigurator,
    Modality,
    X0Model,
    model_configurator,
)
from ltx_core.model.transformer import model as model_module
from ltx_core.model.transformer.adaln import NoiseLevels
from ltx_core.model.transformer.attention import AttentionFunction
from ltx_core.model.transformer.block import TransformerBlock
from ltx_core.model.transformer.model import LegacyX0Model, LTXModelType
from ltx_core.model.transformer.rope import generate_freq_grid_np, precompute_freqs_cis

VIDEO_TOKENS, AUDIO_TOKENS, BLOCKS = 12, 5, 3
FIXED = model_configurator.EXPECTED | model_configurator.EXPECTED_AUDIO_VIDEO
TINY = FIXED | {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": BLOCKS,
    "in_channels": 6,
    "out_channels": 6,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
}
V20 = TINY | {"caption_channels": 10}
V23 = TINY | {
    "caption_proj_before_connector": True,
    "cross_attention_adaln": True,
    "apply_gated_attention": True,
}
V25 = V23 | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
FULL_SIZE = FIXED | {
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "caption_channels": 3840,
}
FULL_23 = FULL_SIZE | {k: V23[k] for k in set(V23) - set(TINY)}
FULL_25 = FULL_SIZE | {k: V25[k] for k in set(V25) - set(TINY)}


def build(section: dict, configurator: type = LTXModelConfigurator, seed: int = 0) -> LTXModel:
    """A tiny model whose weights are all large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = configurator.from_config({"transformer": section})
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def video(batch: int = 1, context_dim: int = 24, seed: int = 1, **changes) -> Modality:
    return modality(batch, VIDEO_TOKENS, 6, 3, context_dim, seed, changes)


def audio(batch: int = 1, context_dim: int = 16, seed: int = 2, **changes) -> Modality:
    return modality(batch, AUDIO_TOKENS, 4, 1, context_dim, seed, changes)


def modality(batch, tokens, channels, axes, context_dim, seed, changes) -> Modality:
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(batch, axes, tokens, 1, generator=generator) * 5
    sigma = torch.linspace(0.4, 0.8, batch) if batch > 1 else torch.tensor(0.6)
    fields = {
        "latent": torch.randn(batch, tokens, channels, generator=generator),
        "sigma": sigma,
        "timesteps": sigma.reshape(-1, 1, 1).expand(batch, tokens, 1),
        "positions": torch.cat((start, start + 0.3), dim=-1),
        "context": torch.randn(batch, 7, context_dim, generator=generator),
    }
    return Modality(**fields | changes)


def conditioned(stream: Modality, clean: int = 4) -> Modality:
    """The stream with its first tokens clean."""
    timesteps = stream.timesteps.clone()
    timesteps[:, :clean] = 0
    return dataclasses.replace(stream, timesteps=timesteps)


def sample(stream: Modality, index: int) -> Modality:
    """One sample of a batch."""
    fields = {f.name: getattr(stream, f.name) for f in dataclasses.fields(stream)}
    return Modality(**{k: v[index : index + 1] if torch.is_tensor(v) else v for k, v in fields.items()})


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 rounding, measured against the largest value."""
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


def skip(*kinds: PerturbationType, blocks: list[int] | None = None) -> PerturbationConfig:
    return PerturbationConfig([Perturbation(kind, blocks) for kind in kinds])


A2V, V2A = PerturbationType.SKIP_A2V_CROSS_ATTN, PerturbationType.SKIP_V2A_CROSS_ATTN
SELF_V, SELF_A = PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_AUDIO_SELF_ATTN


@pytest.fixture(scope="module")
def model23() -> LTXModel:
    return build(V23).requires_grad_(False)


# Passes


def test_all_types_give_velocities_shaped_as_their_latents():
    for section, v, a in ((V20, video(context_dim=10), audio(context_dim=10)), (V25, video(), audio())):
        both = build(section)(v, a)
        assert [x.shape for x in both] == [v.latent.shape, a.latent.shape]
        only_video = build(section, LTXVideoOnlyModelConfigurator)(v, None)
        only_audio = build(section, LTXAudioOnlyModelConfigurator)(None, a)
        assert (only_video[0].shape, only_video[1]) == (v.latent.shape, None)
        assert (only_audio[0], only_audio[1].shape) == (None, a.latent.shape)


def test_bfloat16_is_near_float32(model23):
    inputs = [conditioned(video()), audio()]
    exact = model23(*inputs)
    half = [dataclasses.replace(m, latent=m.latent.bfloat16(), context=m.context.bfloat16()) for m in inputs]
    rough = build(V23).bfloat16()(*half)
    for a, b in zip(rough, exact):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 0.1 * b.norm()


def test_a_batch_is_its_samples(model23):
    v, a = conditioned(video(2)), audio(2)
    configs = [skip(SELF_V, V2A, blocks=[1]), skip(A2V, SELF_A)]
    together = model23(v, a, BatchedPerturbationConfig(configs))
    for index, config in enumerate(configs):
        alone = model23(sample(v, index), sample(a, index), BatchedPerturbationConfig([config]))
        for x, y in zip(together, alone):
            assert_near(x[index : index + 1], y)


def test_a_pass_touches_no_global_random_state(model23):
    before = torch.get_rng_state()
    model23(conditioned(video()), audio())
    assert torch.equal(torch.get_rng_state(), before)


# Noise levels


def test_timesteps_per_sample_and_per_token_agree(model23):
    v, a = video(2), audio(2)
    expected = model23(v, a)
    per_sample = dataclasses.replace(v, timesteps=v.sigma[:, None])
    without_axis = dataclasses.replace(v, timesteps=v.timesteps[..., 0])
    for other in (per_sample, without_axis):
        for x, y in zip(model23(other, a), expected):
            assert_near(x, y)


def test_distinct_levels_once_equal_every_token_by_itself(model23, monkeypatch):
    v, a = conditioned(video(2)), audio(2, timesteps=torch.rand(2, AUDIO_TOKENS, 1))
    shared = model23(v, a)
    monkeypatch.setattr(model_module, "token_levels", lambda t, batch, _: NoiseLevels(t.reshape(batch, -1)))
    for x, y in zip(shared, model23(v, a)):
        assert_near(x, y)


def test_one_sigma_serves_a_batch(model23):
    v, a = video(2, sigma=torch.tensor(0.6)), audio(2, sigma=torch.tensor([0.5]))
    full = video(2, sigma=torch.tensor([0.6, 0.6])), audio(2, sigma=torch.tensor([0.5, 0.5]))
    for x, y in zip(model23(v, a), model23(*full)):
        torch.testing.assert_close(x, y)


def test_without_prompt_adaln_sigma_does_not_reach_the_text():
    model = build(V23 | {"use_prompt_adaln_single": False})
    assert not any("prompt_adaln_single" in key for key in model.state_dict())
    changed, _ = model(video(sigma=torch.tensor(0.1)), None)
    assert torch.equal(changed, model(video(), None)[0])


# Absent and disabled streams, perturbations


def test_absent_audio_is_audio_never_heard(model23):
    alone, nothing = model23(video(), None)
    unheard, _ = model23(video(), audio(), BatchedPerturbationConfig([skip(A2V)]))
    assert nothing is None
    assert_near(alone, unheard)


def test_a_disabled_stream_stays_but_is_heard(model23):
    v, a = video(), audio(enabled=False)
    state = model23.prepare(v, a)
    (end,) = model23.run_blocks([state], [None])
    assert torch.equal(end.hidden["audio"], state.hidden["audio"])
    assert not torch.allclose(model23(v, a)[0], model23(v, None)[0])
    (both_off,) = model23.run_blocks([model23.prepare(video(enabled=False), a)], [None])
    assert torch.equal(both_off.hidden["video"], state.hidden["video"])


@pytest.mark.parametrize(("kind", "untouched"), [(A2V, 1), (V2A, 0), (SELF_V, None), (SELF_A, None)])
def test_a_perturbation_changes_what_it_says(model23, kind, untouched):
    v, a, last = video(), audio(), [BLOCKS - 1]
    plain = model23(v, a)
    perturbed = model23(v, a, BatchedPerturbationConfig([skip(kind, blocks=last)]))
    changed = [not torch.allclose(x, y, atol=1e-5) for x, y in zip(plain, perturbed)]
    if untouched is not None:  # in the last block, the source of a skipped direction does not notice
        assert changed == [untouched == 1, untouched == 0]
    else:
        assert any(changed)


@pytest.mark.parametrize(
    "perturbations",
    [
        BatchedPerturbationConfig.empty(),
        BatchedPerturbationConfig.empty(2),
        BatchedPerturbationConfig([skip(SELF_V, A2V, blocks=[]), PerturbationConfig(None)]),
        BatchedPerturbationConfig([skip(SELF_V, blocks=[BLOCKS])]),
    ],
)
def test_perturbations_of_nothing_change_nothing(model23, perturbations):
    v, a = video(2), audio(2)
    for x, y in zip(model23(v, a, perturbations), model23(v, a)):
        assert torch.equal(x, y)


def test_without_self_attention_a_token_sees_only_itself(model23):
    v, alone = video(), BatchedPerturbationConfig([skip(SELF_V)])
    latent = v.latent.clone()
    latent[:, 0] += 1
    plain = model23(v, None, alone)[0]
    other = model23(dataclasses.replace(v, latent=latent), None, alone)[0]
    assert torch.equal(plain[:, 1:], other[:, 1:])
    assert not torch.equal(plain[:, 0], other[:, 0])


# Sharing work


def test_passes_side_by_side_are_those_alone(model23):
    v, a = conditioned(video()), audio()
    late = BatchedPerturbationConfig([skip(SELF_V, SELF_A, blocks=[2])])
    isolated = BatchedPerturbationConfig([skip(A2V, V2A)])
    state, perturbations = model23.prepare(v, a), [None, late, isolated]
    kept = {name: x.clone() for name, x in state.hidden.items()}
    for end, own in zip(model23.run_blocks([state] * 3, perturbations), perturbations):
        assert all(torch.equal(x, y) for x, y in zip(model23.finish(end), model23(v, a, own)))
    assert all(torch.equal(kept[name], x) for name, x in state.hidden.items())


def test_rotary_tables_can_be_reused(model23):
    v, a = video(), audio()
    tables = model23.rope_tables(v, a)
    twice = [dataclasses.replace(m, latent=m.latent * 0.5) for m in (v, a)]
    (end,) = model23.run_blocks([model23.prepare(*twice, tables)], [None])
    for x, y in zip(model23.finish(end), model23(*twice)):
        assert torch.equal(x, y)
    with pytest.raises(InputError, match="made without the other"):
        model23.prepare(v, a, model23.rope_tables(v, None) | model23.rope_tables(None, a))


@pytest.mark.parametrize(("video_extent", "audio_extent"), [(20, 40), (40, 20)])
def test_streams_meet_on_the_longer_of_their_time_axes(video_extent, audio_extent):
    extents = {
        "positional_embedding_max_pos": [video_extent, 2048, 2048],
        "audio_positional_embedding_max_pos": [audio_extent],
    }
    given = {"video": video(), "audio": audio()}
    for name, tables in build(V23 | extents).rope_tables(*given.values()).items():
        expected = precompute_freqs_cis(
            given[name].positions[:, :1],
            TINY["audio_cross_attention_dim"],
            max_pos=[40],
            use_middle_indices_grid=True,
            num_attention_heads=2,
            freq_grid_generator=generate_freq_grid_np,
        )
        assert all(torch.equal(x, y) for x, y in zip(tables.cross, expected))


# Masks and markers


def test_masked_text_is_as_if_absent(model23):
    v = video(2)
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[:, 5:] = 0
    short = dataclasses.replace(v, context=v.context[:, :5])
    for form in (mask, mask.bool(), (mask.float() - 1)[:, None, None] * 1e9):
        masked = model23(dataclasses.replace(v, context_mask=form), None)[0]
        assert_near(masked, model23(short, None)[0])


def test_self_attention_mask(model23):
    v = video()
    full = torch.ones(1, VIDEO_TOKENS, VIDEO_TOKENS)
    plain = model23(v, None)[0]
    torch.testing.assert_close(model23(dataclasses.replace(v, attention_mask=full), None)[0], plain)
    alone = model23(dataclasses.replace(v, attention_mask=torch.eye(VIDEO_TOKENS)[None]), None)[0]
    expected = model23(v, None, BatchedPerturbationConfig([skip(SELF_V)]))[0]
    assert_near(alone, expected)
    nothing = model23(dataclasses.replace(v, attention_mask=torch.zeros_like(full)), None)[0]
    assert nothing.isfinite().all()


def test_keyframe_marker():
    mask = torch.zeros(1, VIDEO_TOKENS, 1)
    mask[:, :4] = 0.5
    marked, plain = video(keyframes_mask=mask), video()
    model = build(V25)
    assert model.supports_keyframes_abs_pos_embedding
    assert not torch.allclose(model(marked, None)[0], model(plain, None)[0])
    binary = video(keyframes_mask=mask * 2)
    assert torch.equal(model(marked, None)[0], model(binary, None)[0])
    older = build(V23)
    assert not older.supports_keyframes_abs_pos_embedding
    before = older(marked, None)[0]
    older.enable_keyframes_abs_pos_embedding()
    assert older.supports_keyframes_abs_pos_embedding
    assert torch.equal(older(marked, None)[0], before)


def test_a_file_may_lack_the_keyframe_marker(tmp_path):
    model, path = build(V25), tmp_path / "x.safetensors"
    del model.keyframes_abs_pos_embedding
    save_checkpoint(path, {"transformer": model}, {"transformer": V25}, "2.5.0", torch.float32)
    again = build_model(LTXModelConfigurator, Checkpoint(path), LTXV_MODEL_COMFY_RENAMING_MAP)
    assert not again.supports_keyframes_abs_pos_embedding
    v = video(keyframes_mask=torch.ones(1, VIDEO_TOKENS, 1))
    assert torch.equal(again(v, None)[0], model(v, None)[0])
    again.enable_keyframes_abs_pos_embedding()
    assert again.supports_keyframes_abs_pos_embedding


# Denoised results


def test_x0():
    model = build(V23)
    v, a = conditioned(video()), audio()
    velocity = model(v, a)
    x0 = X0Model(model)(v, a)
    torch.testing.assert_close(x0[0], v.latent - velocity[0] * v.timesteps)
    assert torch.equal(x0[0][:, :4], v.latent[:, :4])
    per_sample = dataclasses.replace(a, timesteps=a.timesteps[:, 0])
    torch.testing.assert_close(X0Model(model)(v, per_sample)[1], x0[1])
    legacy = LegacyX0Model(model)(v, None, None, 0.25)
    torch.testing.assert_close(legacy[0], v.latent - model(v, None)[0] * 0.25)
    assert legacy[1] is None
    assert X0Model(model).num_blocks == BLOCKS


# Gradients


@pytest.mark.parametrize("section", [V20, V25], ids=["2.0", "2.5"])
def test_gradients_reach_everything_with_and_without_checkpointing(section):
    width = {"context_dim": 10} if section is V20 else {}
    mask = torch.ones(1, VIDEO_TOKENS, 1)
    v, a = conditioned(video(keyframes_mask=mask, **width)), audio(**width)
    with torch.inference_mode():
        build(section)(v, a)  # what is cached here must serve training too
    grads = []
    for checkpointing in (False, True):
        model, runs = build(section), []
        model.set_gradient_checkpointing(checkpointing)
        model.transformer_blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        sum(x.square().mean() for x in model(v, a)).backward()
        assert len(runs) == (2 if checkpointing else 1)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g is not None and g.isfinite().all() for g in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_a_block_is_given_its_activations_where_fsdp_finds_them():
    """Before PyTorch 2.13 it looks into plain containers alone, and else keeps all blocks whole to the end."""
    model, given = build(V23), []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, given_now: given.extend(given_now))
    state = model.prepare(video(), audio())
    model.run_blocks([state], [None])
    found = {id(leaf) for leaf in tree_leaves(given)}
    assert all(id(x) in found for x in state.hidden.values())


def test_gradient_agrees_with_a_difference():
    model = build(V23).double()
    v, a = (
        dataclasses.replace(m, latent=m.latent.double(), context=m.context.double())
        for m in (conditioned(video()), audio())
    )
    table = model.transformer_blocks[0].scale_shift_table

    def loss() -> torch.Tensor:
        return sum(x.square().sum() for x in model(v, a))

    (grad,) = torch.autograd.grad(loss(), table)
    with torch.no_grad():
        table[1, 3] += 1e-5
        up = loss()
        table[1, 3] -= 2e-5
        down = loss()
    assert_near((up - down) / 2e-5, grad[1, 3])


# Configurations


@pytest.mark.parametrize(
    ("section", "configurator", "parameters", "tensors"),
    [
        (FULL_SIZE, LTXModelConfigurator, 18_876_174_592, 3510),
        (FULL_23, LTXModelConfigurator, 18_988_838_144, 4186),
        (FULL_25, LTXModelConfigurator, 18_987_859_200, 4091),
        (FULL_SIZE, LTXVideoOnlyModelConfigurator, 13_041_520_768, None),
        (FULL_23, LTXVideoOnlyModelConfigurator, 13_124_316_288, 1457),
    ],
    ids=["2.0", "2.3", "2.5", "2.0 video", "2.3 video"],
)
def test_published_sizes(section, configurator, parameters, tensors):
    with torch.device("meta"):
        model = configurator.from_config({"transformer": section})
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert tensors in (None, len(model.state_dict()))


def test_single_streams_have_the_keys_of_the_whole():
    whole = build(V23).state_dict()
    video_keys = build(V23, LTXVideoOnlyModelConfigurator).state_dict().keys()
    audio_keys = build(V23, LTXAudioOnlyModelConfigurator).state_dict().keys()
    assert video_keys | audio_keys < whole.keys()
    assert not video_keys & audio_keys
    rest = whole.keys() - video_keys - audio_keys
    assert all(
        "av_ca" in key or "a2v" in key or "audio_to_video" in key or "video_to_audio" in key for key in rest
    )


@pytest.mark.parametrize("section", [V20, V23])
def test_the_audio_only_map_keeps_what_an_audio_only_model_has(section):
    key_map, kept = LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP, set()
    for key, value in build(section).state_dict().items():
        renamed = key_map.apply_to_key(f"model.diffusion_model.{key}")
        kept |= {name for name, _ in key_map.apply_to_key_value(renamed, value)}
    assert kept == build(section, LTXAudioOnlyModelConfigurator).state_dict().keys()


def test_weights_survive_a_round_trip_through_meta():
    first = build(V25)
    with torch.device("meta"):
        second = LTXModelConfigurator.from_metadata({"config": {"transformer": V25}})
    second.load_state_dict(first.state_dict(), strict=True, assign=True)
    v, a = video(), audio()
    for x, y in zip(first(v, a), second(v, a)):
        assert torch.equal(x, y)


def test_ff_bias_false_removes_the_biases_of_that_stream():
    keys = build(V23 | {"audio_ff_bias": False}).state_dict().keys()
    assert "transformer_blocks.0.ff.net.2.bias" in keys
    assert not any(".audio_ff." in key and key.endswith("bias") for key in keys)


def test_constructor_takes_what_the_configuration_says():
    model = LTXModel(
        model_type=LTXModelType.VideoOnly,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=1,
        in_channels=6,
        out_channels=6,
        positional_embedding_max_pos=None,
        attention_type=AttentionFunction.PYTORCH,
    )
    assert model.config.positional_embedding_max_pos == (20, 2048, 2048)
    assert model(video(), None)[0].shape == (1, VIDEO_TOKENS, 6)
    with pytest.raises(TypeError, match="num_head"):
        LTXModel(num_head=3)


def test_unknown_keys_are_ignored_and_absent_ones_have_defaults():
    model = build(V23 | {"_class_name": "X", "connector_num_layers": 3})
    assert model.config.rope_type.value == "split"
    assert model.config.double_precision_rope
    loose = build({k: v for k, v in V23.items() if k != "frequencies_precision"})
    assert not loose.config.double_precision_rope
    null = build(V23 | {"positional_embedding_max_pos": None, "audio_positional_embedding_max_pos": None})
    assert (null.streams[0].max_pos, null.streams[1].max_pos) == ((20, 2048, 2048), (20,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, "Config value dropout is 0.1, expected 0.0"),
        ({"qk_norm": None}, "Config value qk_norm is None, expected rms_norm"),
        ({"share_ff": True}, "Config value share_ff is True, expected False"),
        ({"caption_proj_before_connector": False}, "config.transformer.caption_channels is missing"),
        ({"audio_num_attention_heads": 4, "audio_attention_head_dim": 4}, "as many for both"),
        ({"cross_attention_dim": 32}, "cross_attention_dim is 32; expected 24"),
        ({"audio_cross_attention_dim": 8}, "audio_cross_attention_dim is 8; expected 16"),
        ({"attention_head_dim": 13, "cross_attention_dim": 26}, "attention_head_dim is 13; expected an even"),
        ({"num_layers": "many"}, "config.transformer.num_layers is 'many'"),
        ({"rope_type": "spiral"}, "expected one of 'interleaved', 'split'"),
        ({"attention_type": "flash_attention_3"}, "'flash_attention_3' needs a package"),
    ],
)
def test_configurations_that_are_not_this_model(changes, message):
    with pytest.raises(ValueError, match=message):
        build(V23 | changes)


def test_empty_configuration():
    for configurator in (LTXModelConfigurator, LTXVideoOnlyModelConfigurator, LTXAudioOnlyModelConfigurator):
        with pytest.raises(ConfigError, match="caption_channels is missing") as caught:
            configurator.from_config({})
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("config.transformer.caption_channels is missing")
    with pytest.raises(ConfigError, match="expected a parsed 'config'"):
        LTXModelConfigurator.from_metadata({"format": "pt"})


def test_caption_projections_have_no_default_width():
    sizes = ("num_attention_heads", "attention_head_dim")
    for key in (*sizes, *(f"audio_{size}" for size in sizes)):
        section = {name: value for name, value in FULL_SIZE.items() if name != key}
        with torch.device("meta"), pytest.raises(KeyError, match=f"config.transformer.{key} is missing"):
            LTXModelConfigurator.from_config({"transformer": section})
        small = {name: value for name, value in V20.items() if name != key}  # where a default would not fit
        with pytest.raises(KeyError, match=f"config.transformer.{key} is missing"):
            build(small)


def test_video_only_reads_no_audio_keys():
    section = {k: v for k, v in V20.items() if not k.startswith("audio") and k != "share_ff"}
    assert build(section, LTXVideoOnlyModelConfigurator)(video(context_dim=10), None)[0].isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("v", "a", "message"),
    [
        (None, None, "Neither video nor audio"),
        ({"latent": torch.zeros(1, VIDEO_TOKENS, 5)}, {}, r"video latent has shape \(1, 12, 5\)"),
        ({"latent": torch.zeros(1, 0, 6)}, {}, "at least one token"),
        ({}, {"context": torch.zeros(1, 7, 24)}, r"audio text context has shape \(1, 7, 24\)"),
        ({"timesteps": torch.zeros(1, 3, 1)}, {}, r"Timesteps have shape \(1, 3, 1\)"),
        ({}, {"sigma": torch.zeros(3)}, r"Sigma has shape \(3,\)"),
        ({"positions": torch.zeros(1, 1, VIDEO_TOKENS, 2)}, {}, "one axis for each of the 3"),
        ({"positions": torch.zeros(1, 3, VIDEO_TOKENS)}, {}, "needs .start, end. last"),
        ({"positions": torch.zeros(1, 3, 4, 2)}, None, "do not fit"),
        ({"latent": torch.zeros(2, VIDEO_TOKENS, 6)}, {}, "differ in batch size"),
        ({"latent": None}, {}, "video latent is None; expected a tensor"),
        ({"sigma": 0.5}, {}, r"sigma is 0\.5; expected a tensor"),
        ({}, {"timesteps": 0.5}, r"audio timesteps is 0\.5; expected a tensor"),
        ({}, {"context": None}, "audio context is None"),
        ({"attention_mask": 0.5}, {}, r"attention mask is 0\.5"),
        ({"attention_mask": torch.ones(1, 5, 5)}, {}, r"video attention mask has shape \(1, 5, 5\)"),
        ({"attention_mask": torch.ones(VIDEO_TOKENS)}, {}, r"video attention mask has shape \(12,\)"),
        ({}, {"context_mask": torch.ones(1, 6).long()}, r"audio text mask has shape \(1, 6\)"),
        ({"context_mask": torch.ones(7)}, {}, r"video text mask has shape \(7,\)"),
        ({"context_mask": torch.ones(1, 7)}, {}, None),
        ({"context_mask": torch.ones(1, 1, 1, 7)}, {"context_mask": torch.ones(1, 1, 7).long()}, None),
        ({"attention_mask": torch.ones(1, 1, VIDEO_TOKENS)}, {}, None),
        ({"attention_mask": torch.ones(1, 2, VIDEO_TOKENS, VIDEO_TOKENS)}, {}, None),
    ],
)
def test_modalities_that_do_not_fit(model23, v, a, message):
    v = None if v is None else video(**v)
    a = None if a is None else audio(**a)
    with nullcontext() if message is None else pytest.raises(InputError, match=message):
        model23(v, a)


def test_texts_that_the_caption_projection_does_not_take():
    with pytest.raises(InputError, match=r"\(1, 7, 9\); the caption projection takes .*tokens, 10\)"):
        build(V20)(video(context_dim=9), audio(context_dim=10))
    assert build(V20)(video(context=torch.zeros(1, 0, 10)), None)[0].isfinite().all()  # no text at all


def test_streams_the_model_does_not_have():
    with pytest.raises(ValueError, match="Audio is not enabled for this model"):
        build(V23, LTXVideoOnlyModelConfigurator)(video(), audio())
    with pytest.raises(ValueError, match="Video is not enabled for this model"):
        build(V23, LTXAudioOnlyModelConfigurator)(video(), None)


def test_runs_that_do_not_fit(model23):
    state = model23.prepare(video(), audio())
    with pytest.raises(InputError, match="3 perturbation configs for a batch of 1"):
        model23.run_blocks([state], [BatchedPerturbationConfig.empty(3)])
    for wrong in (PerturbationConfig.empty(), [PerturbationConfig.empty()]):
        with pytest.raises(InputError, match="expected a BatchedPerturbationConfig"):
            model23.run_blocks([state], [wrong])


class TestSharedPasses:
    """A guided step's passes run together give what each gives alone."""

    def calls(self) -> list[TransformerCall]:
        v, a = conditioned(video()), audio()
        other = dataclasses.replace(v, context=v.context + 1)
        late = BatchedPerturbationConfig([skip(SELF_V, SELF_A, blocks=[BLOCKS - 1])])
        isolated = BatchedPerturbationConfig([skip(A2V, V2A)])
        return [
            TransformerCall(v, a),
            TransformerCall(other, a),
            TransformerCall(dataclasses.replace(v), a, late),
            TransformerCall(v, a, isolated),
            TransformerCall(dataclasses.replace(v, enabled=False), a),
        ]

    @pytest.mark.parametrize("section", [V20, V23, V25], ids=["2.0", "2.3", "2.5"])
    def test_to_the_last_bit(self, section):
        model, calls = X0Model(build(section)).eval(), self.calls()
        model.max_batch_size = 1
        if section is V20:
            wide = [torch.randn(1, 7, 10, generator=torch.Generator().manual_seed(i)) for i in range(2)]
            v, a = (
                dataclasses.replace(video(), context=wide[0]),
                dataclasses.replace(audio(), context=wide[1]),
            )
            calls = [TransformerCall(v, a, call.perturbations) for call in calls]
        with torch.no_grad():
            together = model.run_passes(calls)
            for call, (video_x0, audio_x0) in zip(calls, together):
                alone = X0Model.denoised(
                    call.video,
                    call.audio,
                    model.velocity_model(call.video, call.audio, call.perturbations),
                )
                assert torch.equal(video_x0, alone[0])
                assert torch.equal(audio_x0, alone[1])

    def test_equal_work_is_done_once(self):
        """A block is entered once a step; each text is read once for all its passes; passes are one until they part.

        The unconditional pass parts at the first text, the isolated one at the first exchange, the perturbed one
        in the last block.
        """
        model = X0Model(build(V23))
        model.max_batch_size = 1
        entered, begun = [], []
        done = {name: [] for name in ("attn1", "attn2.to_k", "attn2.to_q", "ff")}
        model.velocity_model.adaln_single.register_forward_hook(lambda *_: begun.append(1))
        for index, block in enumerate(model.velocity_model.transformer_blocks):
            block.register_forward_hook(lambda *_, index=index: entered.append(index))
            for name, times in done.items():
                block.get_submodule(name).register_forward_hook(
                    lambda *_, index=index, times=times: times.append(index)
                )
        with torch.no_grad():
            model.run_passes(self.calls()[:4])
        between = BLOCKS - 2
        assert len(begun) == 1
        assert entered == list(range(BLOCKS))
        counts = {name: [times.count(index) for index in range(BLOCKS)] for name, times in done.items()}
        assert counts == {
            "attn1": [1] + [3] * between + [4],
            "attn2.to_k": [2] * BLOCKS,
            "attn2.to_q": [2] + [3] * between + [4],
            "ff": [3] + [3] * between + [4],
        }

    def test_of_steps_that_are_over_nothing_is_held(self, monkeypatch):
        model, over, exchange = X0Model(build(V23)), [], TransformerBlock.exchange

        def watched(block, *given, **named):
            assert not [number for number, left in enumerate(over) if left() is not None]
            out = exchange(block, *given, **named)
            over.append(weakref.ref(out["video"]))
            return out

        monkeypatch.setattr(TransformerBlock, "exchange", watched)
        model.max_batch_size = 1
        with torch.no_grad():
            model.run_passes(self.calls()[:4])
        assert len(over) == 3 + 3 * (BLOCKS - 2) + 4

    @pytest.mark.parametrize("size", [2, 3, None])
    @pytest.mark.parametrize("batch", [1, 2])
    def test_in_batches_but_for_rounding(self, batch, size):
        v, a = video(batch=batch), audio(batch=batch)
        swapped = dataclasses.replace(v, context=v.context.flip(1))
        late = BatchedPerturbationConfig([skip(SELF_V, SELF_A, blocks=[BLOCKS - 1])])
        isolated = BatchedPerturbationConfig([skip(A2V, V2A)] * batch)
        calls = [TransformerCall(v, a, p) for p in (None, late, isolated)] + [TransformerCall(swapped, a)]
        model, counts = X0Model(build(V23)), []
        model.velocity_model.transformer_blocks[0].register_forward_hook(
            lambda block, given, out: counts.extend(len(hidden["video"]) for hidden in out)
        )
        with torch.no_grad():
            model.max_batch_size = 1
            alone = model.run_passes(calls)
            counts.clear()
            model.max_batch_size = size
            together = model.run_passes(calls)
        assert counts == {2: [2 * batch] * 2, 3: [3 * batch, batch], None: [4 * batch]}[size]
        torch.testing.assert_close(together, alone)

    def test_calls_of_other_forms_are_not_put_together(self):
        model, calls = X0Model(build(V23)).eval(), self.calls()
        with torch.no_grad():
            model.max_batch_size = 1
            alone = model.run_passes(calls)
            model.max_batch_size = 9
            assert torch.equal(model.run_passes(calls)[4][1], alone[4][1])

    @pytest.mark.parametrize(
        "changes",
        [
            {"attention_mask": torch.linspace(0.1, 1, VIDEO_TOKENS)[None, None]},
            {"context_mask": torch.linspace(-1, 1, VIDEO_TOKENS)[:, None] * torch.arange(7)},
            {"sigma": torch.tensor([0.5])},
        ],
    )
    def test_what_is_given_once_for_a_batch_is_not_stacked(self, changes):
        model, v, a = X0Model(build(V23)), video(2, **changes), audio(2)
        other = dataclasses.replace(v, context=v.context + 1)
        with torch.no_grad():
            together = model.run_passes([TransformerCall(v, a), TransformerCall(other, a)])
            torch.testing.assert_close(together, [model(v, a), model(other, a)])

    def test_a_text_is_checked_against_each_batch_that_has_it(self):
        model, v, a = X0Model(build(V23)), video(2), audio(2)
        one = TransformerCall(video(context=v.context), audio())
        model.max_batch_size = 1
        with pytest.raises(InputError, match=r"expected \(1, text tokens, 24\)"):
            model.run_passes([TransformerCall(v, a), one])

    def test_rotary_tables_are_made_once_for_the_same_positions(self, monkeypatch):
        model, made = X0Model(build(V23)), []
        tables = LTXModel.rope_tables
        monkeypatch.setattr(LTXModel, "rope_tables", lambda *args: made.append(1) or tables(*args))
        v, a = video(), audio()
        with torch.no_grad():
            first = model(v, a)
            model(dataclasses.replace(v, sigma=v.sigma / 2), a)
            assert len(made) == 1
            moved = model(dataclasses.replace(v, positions=v.positions + 1), a)
        assert len(made) == 2
        assert not torch.equal(first[0], moved[0])

    def test_rotary_tables_follow_positions_that_are_changed_in_place(self):
        model, v, a = X0Model(build(V23)), video(), audio()
        with torch.no_grad():
            model(v, a)
            v.positions[:, 0] += 1
            assert torch.equal(model(v, a)[0], X0Model(model.velocity_model)(v, a)[0])

    def test_rotary_tables_and_their_positions_are_remembered_together(self, monkeypatch):
        model, v, a = X0Model(build(V23)), video(), audio()
        moved = dataclasses.replace(v, positions=v.positions + 1)

        def no_memory(tensor):
            raise MemoryError

        with torch.no_grad():
            expected = model(v, a)
            with monkeypatch.context() as patched:
                patched.setattr(torch.Tensor, "clone", no_memory)
                with pytest.raises(MemoryError):
                    model(moved, a)
            assert all(map(torch.equal, model(v, a), expected))

    def test_a_pass_in_inference_mode_leaves_the_model_fit_for_training(self):
        model, v, a = X0Model(build(V23)), video(), audio()
        with torch.inference_mode():
            model(v, a)
        model(v, a)[0].sum().backward()
        assert model.velocity_model.patchify_proj.weight.grad.any()


def test_compiled_blocks_heed_branches_that_come_and_go():
    v, a = video(), audio()
    plain, compiled = build(V23), build(V23)
    compiled.compile_blocks(backend="eager")
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 24), (24, 2)))
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(v, a), plain(v, a))
            without = compiled(v, a)
            hooks = [
                model.transformer_blocks[0].attn1.to_q.register_forward_hook(Branch([Pair(down, up, 0.5)]))
                for model in (plain, compiled)
            ]
            torch.testing.assert_close(compiled(v, a), plain(v, a))
            assert not torch.allclose(compiled(v, a)[0], without[0])
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_compiled_blocks_computes_with_its_own_weights(copied):
    v, a, model = video(), audio(), build(V23).requires_grad_(False)
    model.compile_blocks(backend="eager")
    before = model(v, a)
    other = copied(model)
    assert all(map(torch.equal, other(v, a), before))
    other.transformer_blocks[0].attn1.to_v.weight.mul_(2)
    assert not torch.equal(other(v, a)[0], before[0])
    assert all(map(torch.equal, model(v, a), before))


class TestOneStage:
    """What depends on texts and masks alone is made once while a stage is open."""

    SECTIONS = {"2.0": V20, "2.3": V23, "2.5": V25 | {"use_prompt_adaln_single": False}}
    # Whether a text's keys and values are the same in every step.
    ONCE = {"2.0": True, "2.3": False, "2.5": True}

    def steps(self, section) -> list[list[TransformerCall]]:
        """The passes of three steps: two texts, a mask, one perturbed pass."""
        widths = (10, 10) if section is V20 else (24, 16)
        seen = torch.linspace(0, 1, VIDEO_TOKENS)[None, None]
        first = video(context_dim=widths[0], attention_mask=seen), audio(context_dim=widths[1])
        other = [dataclasses.replace(m, context=m.context.flip(1)) for m in first]
        late = BatchedPerturbationConfig([skip(SELF_V, SELF_A, blocks=[BLOCKS - 1])])
        steps = []
        for level in (0.9, 0.5, 0.1):
            one, two = (
                [
                    dataclasses.replace(
                        m, latent=m.latent * level, sigma=m.sigma * level, timesteps=m.timesteps * level
                    )
                    for m in pair
                ]
                for pair in (first, other)
            )
            steps.append([TransformerCall(*one), TransformerCall(*two), TransformerCall(*one, late)])
        return steps

    def model(self, section) -> X0Model:
        model = X0Model(build(section)).eval()
        model.max_batch_size = 1
        return model

    def run(self, model, steps) -> list[torch.Tensor]:
        with torch.no_grad():
            return [x for calls in steps for pair in model.run_passes(calls) for x in pair]

    @pytest.mark.parametrize("with_texts", [True, False])
    @pytest.mark.parametrize("name", SECTIONS)
    def test_to_the_last_bit(self, name, with_texts):
        section = self.SECTIONS[name]
        model, steps = self.model(section), self.steps(section)
        expected = self.run(model, steps)
        with model.one_stage(with_texts=with_texts):
            found = self.run(model, steps)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))

    @pytest.mark.parametrize("name", SECTIONS)
    def test_texts_are_read_once_unless_they_follow_the_noise(self, name):
        section = self.SECTIONS[name]
        model, steps, read, projected = self.model(section), self.steps(section), [], []
        for block in model.velocity_model.transformer_blocks:
            for part in (block.attn2, block.audio_attn2):
                part.to_k.register_forward_hook(lambda *_: read.append(1))
        if section is V20:
            projection = model.velocity_model.caption_projection
            projection.register_forward_hook(lambda *_: projected.append(1))
        every, once = len(steps) * 2 * 2 * BLOCKS, 2 * 2 * BLOCKS  # steps x texts x streams x blocks
        for with_texts, expected in ((False, every), (True, once if self.ONCE[name] else every)):
            read.clear(), projected.clear()
            with model.one_stage(with_texts=with_texts):
                self.run(model, steps)
            assert len(read) == expected
            assert len(projected) == (2 if section is V20 else 0)

    def test_masks_become_biases_once(self, monkeypatch):
        model, steps, made = self.model(V23), self.steps(V23), []
        bias = model_module.self_attention_bias
        monkeypatch.setattr(
            model_module, "self_attention_bias", lambda *given: made.append(1) or bias(*given)
        )
        with model.one_stage():
            self.run(model, steps)
        assert len(made) == 2  # of video and audio

    def test_a_stage_knows_nothing_of_the_one_before(self):
        model, steps = self.model(V20), self.steps(V20)
        with model.one_stage(with_texts=True):
            before = self.run(model, steps)
        with torch.no_grad():
            for block in model.velocity_model.transformer_blocks:
                block.attn2.to_k.weight.mul_(-1)
            model.velocity_model.audio_caption_projection.linear_1.weight.mul_(-1)
        expected = self.run(model, steps)
        with model.one_stage(with_texts=True):
            found = self.run(model, steps)
        assert all(torch.equal(x, y) for x, y in zip(found, expected))
        assert not any(torch.equal(x, y) for x, y in zip(found, before))

    @pytest.mark.parametrize("name", SECTIONS)
    def test_what_texts_take_is_told_before(self, name):
        section = self.SECTIONS[name]
        model, steps, held = self.model(section), self.steps(section), []
        for block in model.velocity_model.transformer_blocks:
            for part in (block.attn2, block.audio_attn2):
                part.to_k.register_forward_hook(lambda layer, given, out: held.append(2 * out.nbytes))
        with model.one_stage(with_texts=True):
            self.run(model, steps)
        told = model.velocity_model.bytes_of_texts(2 * 7, torch.float32)  # two texts of 7 tokens
        assert told == (sum(held) if self.ONCE[name] else 0)


CUDA_GRAPHS = [{"mode": "max-autotune"}, {"options": {"triton.cudagraphs": True}}, {"backend": "cudagraphs"}]


@pytest.mark.parametrize("options", CUDA_GRAPHS, ids=str)
def test_cuda_graphs_keep_the_results_of_all_blocks_of_a_step(options, monkeypatch):
    """PyTorch lets the graphs of one marked step alone; without a mark each call may overwrite the last one's."""
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model, given = build(V23), (video(), audio())
    model.compile_blocks(options={"max_autotune": True})
    model(*given)
    assert not marks
    model.compile_blocks(**options)
    model(*given)
    assert len(marks) == 1


@pytest.mark.parametrize("options", CUDA_GRAPHS, ids=str)
def test_cuda_graphs_of_blocks_that_come_and_go_are_refused(options, monkeypatch):
    """PyTorch would record one more graph at each call, as weights are never where they were."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = build(V23)
    model.streamer = SimpleNamespace(to_gpu=True)
    with pytest.raises(InputError, match="CUDA graphs, which need weights that stay on the GPU"):
        model.compile_blocks(**options)
    model.compile_blocks(mode="max-autotune-no-cudagraphs")
    model.streamer.to_gpu = False  # they go through main memory only, where there are no graphs
    model.compile_blocks(**options)
