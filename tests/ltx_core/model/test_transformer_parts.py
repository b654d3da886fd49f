"""The transformer's parts by themselves: rotary positions, attention, modulation, masks, perturbations."""

import itertools
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ltx_core.errors import InputError
from ltx_core.guidance import BatchedPerturbationConfig, Perturbation, PerturbationConfig, PerturbationType
from ltx_core.model.common.timesteps import timestep_features
from ltx_core.model.transformer.adaln import (
    AdaLayerNormSingle,
    Modulation,
    add_gated,
    modulate,
    sample_levels,
    token_levels,
)
from ltx_core.model.transformer.attention import Attention, AttentionFunction, attention_named, best_attention
from ltx_core.model.transformer.feed_forward import FeedForward
from ltx_core.model.transformer.masks import merge_repeats, self_attention_bias, text_bias
from ltx_core.model.transformer.rope import (
    LTXRopeType,
    apply_rotary_emb,
    generate_freq_grid_np,
    generate_freq_grid_pytorch,
    precompute_freqs_cis,
)
from ltx_core.utils import NORM_ROWS, rms_norm

BOTH = pytest.mark.parametrize("rope_type", list(LTXRopeType))


def intervals(batch: int = 2, axes: int = 3, tokens: int = 5) -> torch.Tensor:
    start = torch.rand(batch, axes, tokens, 1, generator=torch.Generator().manual_seed(0)) * 10
    return torch.cat((start, start + 0.5), dim=-1)


def table(rope_type: LTXRopeType, positions: torch.Tensor, dim: int = 32, **kwargs):
    axes = positions.shape[1]
    settings = {"max_pos": [20, 2048, 2048][:axes], "use_middle_indices_grid": True, "num_attention_heads": 2}
    return precompute_freqs_cis(positions, dim, rope_type=rope_type, **settings | kwargs)


# Rotary positions


def test_grids_run_from_half_pi_to_theta_half_pi():
    for grid in (generate_freq_grid_np(10000.0, 3, 64), generate_freq_grid_pytorch(10000.0, 3, 64)):
        assert grid.shape == (10,)
        assert grid.dtype == torch.float32
        expected = torch.tensor([math.pi / 2, 10000 * math.pi / 2])
        torch.testing.assert_close(grid[[0, -1]], expected, rtol=1e-6, atol=0)


def test_shapes_of_tables():
    cos, sin = table(LTXRopeType.SPLIT, intervals())
    assert cos.shape == sin.shape == (2, 2, 5, 8)
    assert cos[:, 0, :, 0].eq(1).all()  # 32 // 6 * 3 = 15 of 16 angles; the front is unrotated
    assert sin[:, 0, :, 0].eq(0).all()
    cos, sin = table(LTXRopeType.INTERLEAVED, intervals(), out_dtype=torch.bfloat16)
    assert cos.shape == sin.shape == (2, 5, 32)
    assert cos.dtype == torch.bfloat16
    assert cos[..., :2].eq(1).all()


@BOTH
def test_rotation_keeps_lengths(rope_type):
    x = torch.randn(2, 5, 32)
    rotated = apply_rotary_emb(x, table(rope_type, intervals()), rope_type)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(rotated, x)


@BOTH
def test_scores_depend_on_distance_only(rope_type):
    q, k = torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def score(at: float, to: float) -> torch.Tensor:
        turned = (
            apply_rotary_emb(x, table(rope_type, torch.full((1, 1, 1, 2), p), theta=100.0), rope_type)
            for x, p in ((q, at), (k, to))
        )
        return torch.mul(*turned).sum()

    torch.testing.assert_close(score(1.0, 3.0), score(11.0, 13.0), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(score(1.0, 3.0), score(1.0, 4.0), atol=1e-2)


@BOTH
def test_tables_of_one_sample_serve_a_batch(rope_type):
    x, one = torch.randn(3, 5, 32), table(rope_type, intervals(1))
    each = table(rope_type, intervals(1).expand(3, -1, -1, -1))
    assert torch.equal(apply_rotary_emb(x, one, rope_type), apply_rotary_emb(x, each, rope_type))


def test_heads_may_be_apart():
    x, given = torch.randn(2, 5, 32), table(LTXRopeType.SPLIT, intervals())
    apart = x.unflatten(2, (given[0].shape[1], -1)).transpose(1, 2)
    rotated = apply_rotary_emb(apart, given)
    assert torch.equal(rotated.transpose(1, 2).flatten(2), apply_rotary_emb(x, given))


def test_the_default_extents_are_20_seconds_and_2048_pixels():
    default = precompute_freqs_cis(intervals(), 64, max_pos=None)
    for one, other in zip(default, precompute_freqs_cis(intervals(), 64, max_pos=[20, 2048, 2048])):
        assert torch.equal(one, other)


def test_points_and_starts():
    positions = intervals()
    starts = table(LTXRopeType.SPLIT, positions, use_middle_indices_grid=False)
    points = table(LTXRopeType.SPLIT, positions[..., 0], use_middle_indices_grid=False)
    assert torch.equal(starts[0], points[0])


@pytest.mark.parametrize(
    ("positions", "message"),
    [(intervals()[:, :2], "one axis for each of the 3"), (intervals()[..., 0], "needs .start, end. last")],
)
def test_positions_of_another_form(positions, message):
    with pytest.raises(AssertionError, match=message):
        table(LTXRopeType.SPLIT, positions, max_pos=[20, 2048, 2048])


@BOTH
def test_tables_that_do_not_fit(rope_type):
    cos, sin = table(rope_type, intervals())
    for x, bad in (
        (torch.randn(2, 6, 32), (cos, sin)),
        (torch.randn(2, 5, 30), (cos, sin)),
        (torch.randn(3, 5, 32), (cos, sin)),
        (torch.randn(2, 5, 32), (cos, sin[:1])),
    ):
        with pytest.raises(InputError, match="do not fit"):
            apply_rotary_emb(x, bad, rope_type)


# Attention


def by_hand(module: Attention, x: torch.Tensor, context: torch.Tensor, bias=None) -> torch.Tensor:
    q, k, v = module.q_norm(module.to_q(x)), module.k_norm(module.to_k(context)), module.to_v(context)
    q, k, v = (t.unflatten(-1, (module.heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    out = (scores if bias is None else scores + bias).softmax(-1) @ v
    if module.to_gate_logits is not None:
        out = out * 2 * module.to_gate_logits(x).sigmoid().mT[..., None]
    return module.to_out[0](out.transpose(1, 2).flatten(-2))


@pytest.mark.parametrize("gated", [False, True])
def test_attention_is_softmax_attention(gated):
    module = Attention(12, 10, heads=3, dim_head=4, apply_gated_attention=gated)
    x, context, bias = torch.randn(2, 5, 12), torch.randn(2, 7, 10), torch.randn(2, 1, 5, 7)
    torch.testing.assert_close(module(x, context), by_hand(module, x, context))
    torch.testing.assert_close(module(x, context, bias), by_hand(module, x, context, bias))


def test_a_bias_of_each_sample_is_for_all_heads():
    q, k, v, bias = torch.randn(3, 5, 12), torch.randn(3, 7, 12), torch.randn(3, 7, 12), torch.randn(3, 5, 7)
    attention = AttentionFunction.DEFAULT
    for given in (bias, bias[0]):  # as many samples as heads: the wrong axis would fit too
        alone = [
            attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], 3, given.expand(3, 5, 7)[i]) for i in range(3)
        ]
        torch.testing.assert_close(attention(q, k, v, heads=3, mask=given), torch.cat(alone))


def test_skipped_attention_passes_values():
    module = Attention(12, heads=3, dim_head=4)
    x = torch.randn(2, 5, 12)
    values = module.to_out[0](module.to_v(x))
    assert torch.equal(module(x, all_perturbed=True), values)
    mixed = module(x, perturbation_mask=torch.tensor([1.0, 0.0]).view(2, 1, 1))
    torch.testing.assert_close(mixed[0], module(x)[0])
    torch.testing.assert_close(mixed[1], values[1])


KERNELS = {  # the module and function that a kernel is imported from
    AttentionFunction.XFORMERS: ("xformers.ops", "memory_efficient_attention"),
    AttentionFunction.FLASH_ATTENTION_3: ("flash_attn_interface", "flash_attn_func"),
    AttentionFunction.FLASH_ATTENTION_4: ("flash_attn.cute", "flash_attn_func"),
    AttentionFunction.SAGE: ("sageattention", "sageattn"),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_missing_kernels_are_named(kind, monkeypatch):
    package, _ = KERNELS[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"'{kind.value}' needs a package that is not installed"):
        Attention(8, heads=2, dim_head=4, attention_function=kind)


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_get_tokens_before_heads_and_masks_only_if_they_take_them(kind, monkeypatch):
    """Every package's function has this layout; a stand-in computes what the package would."""
    package, function = KERNELS[kind]
    biases = []

    def stand_in(q, k, v, attn_bias=None, tensor_layout="NHD", is_causal=False):
        assert (tensor_layout, is_causal) == ("NHD", False)
        biases.append(attn_bias)
        weights = torch.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
        weights = weights if attn_bias is None else weights + attn_bias
        out = torch.einsum("bhts,bshd->bthd", weights.softmax(dim=-1), v)
        return (out, weights) if kind is AttentionFunction.FLASH_ATTENTION_4 else out

    for name in (package.split(".")[0], package):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    setattr(sys.modules[package], function, stand_in)
    module = Attention(12, 10, heads=3, dim_head=4, attention_function=kind)
    x, context, bias = torch.randn(2, 5, 12), torch.randn(2, 7, 10), torch.randn(2, 1, 5, 7)
    torch.testing.assert_close(module(x, context), by_hand(module, x, context))
    assert len(biases) == 1
    torch.testing.assert_close(module(x, context, bias), by_hand(module, x, context, bias))
    assert len(biases) == 1 + kind.takes_bias
    if not kind.takes_bias:
        with pytest.raises(NotImplementedError, match=f"'{kind.value}' takes no mask"):
            kind(*torch.randn(3, 2, 5, 12), 3, bias)


def test_without_a_gpu_the_best_kernel_is_pytorchs():
    assert best_attention(torch.device("cpu"), torch.bfloat16) is AttentionFunction.DEFAULT
    with pytest.raises(InputError, match="attention is 'flash'; choose one of pytorch, xformers"):
        attention_named("flash")


# Modulation


def test_timestep_features():
    features = timestep_features(torch.tensor([0.0, 1000.0, 2.5]))
    assert features.shape == (3, 256)
    assert features.dtype == torch.float32
    assert features[0].equal(torch.cat((torch.ones(128), torch.zeros(128))))
    angles = 2.5 * 10000.0 ** (-torch.arange(128.0) / 128)
    torch.testing.assert_close(features[2], torch.cat((angles.cos(), angles.sin())))
    assert timestep_features(torch.tensor([2.5], dtype=torch.float64)).equal(features[2:])


def test_levels_are_counted():
    uniform = token_levels(torch.full((2, 9, 1), 0.7), 2, 9)
    assert uniform.values.shape == (1, 1)
    per_sample = token_levels(torch.tensor([[[0.7]], [[0.3]]]).expand(2, 9, 1), 2, 9)
    assert per_sample.values.flatten().tolist() == pytest.approx([0.7, 0.3])
    assert per_sample.index is None
    timesteps = torch.full((2, 9, 1), 0.7)
    timesteps[:, :3] = 0
    few = token_levels(timesteps, 2, 9)
    assert few.values.shape == (2,)
    assert few.values[few.index].equal(timesteps[..., 0])
    many = token_levels(torch.rand(2, 9, 1), 2, 9)
    assert many.index is None
    assert many.values.shape == (2, 9)
    assert sample_levels(torch.tensor(0.5), 4).scaled(1000).values.tolist() == [[500.0]]


def test_modulation_spreads_rows_over_tokens():
    network = AdaLayerNormSingle(8, 3)
    timesteps = torch.zeros(2, 9, 1)
    timesteps[:, 3:], timesteps[1, 5:] = 0.5, 0.25
    levels = token_levels(timesteps, 2, 9).scaled(1000)
    modulation, embedded = network(levels, torch.float32)
    assert (modulation.rows.shape, embedded.rows.shape) == ((3, 3, 8), (3, 1, 8))
    offset = torch.randn(8)
    each, _ = network(type(levels)(timesteps[..., 0] * 1000), torch.float32)
    assert each.rows.shape == (2, 9, 3, 8)
    torch.testing.assert_close(modulation.vector(2, offset), each.vector(2, offset))


def test_modulation_in_bfloat16_casts_the_offset_first():
    rows = torch.randn(1, 1, 2, 8).bfloat16()
    offset = torch.randn(8)
    assert Modulation(rows).vector(1, offset).equal(rows[..., 1, :] + offset.bfloat16())
    assert Modulation(rows).factor(1, offset).equal(1 + (rows[..., 1, :] + offset.bfloat16()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_place_are_rounded_like_plain_ones_and_leave_what_is_given(dtype):
    x, y, gate, shift = torch.randn(4, 2, 5, 8).to(dtype).unbind()
    given = [t.clone() for t in (x, y, gate, shift)]
    assert modulate(x, gate, shift).equal(x * gate + shift)
    assert add_gated(x, y, gate[:, :1]).equal(x + y * gate[:, :1])
    network = FeedForward(8).to(dtype)
    with_gradients = network(x)
    with torch.no_grad():
        assert network(x).equal(with_gradients)
    with_gradients.sum().backward()
    assert all(t.equal(before) for t, before in zip((x, y, gate, shift), given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape", [(16,), (0, 16), (5, 16), (2, 3 * NORM_ROWS * torch.get_num_threads() + 7, 16)]
)
def test_rms_norm_of_pieces_is_that_of_the_whole_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype):
    x, weight = torch.randn(*shape, dtype=dtype), torch.randn(16, dtype=dtype)
    whole = torch.nn.functional.rms_norm
    assert rms_norm(x).equal(whole(x, (16,), None, 1e-6))
    assert rms_norm(x, weight, 1e-3).equal(whole(x, (16,), weight, 1e-3))
    across = x.expand(3, *shape).movedim(0, -2)  # not contiguous
    assert rms_norm(across, weight).equal(whole(across, (16,), weight, 1e-6))


# Masks


def test_text_bias():
    assert text_bias(None, torch.float32) is None
    lowest = torch.finfo(torch.bfloat16).min
    bias = text_bias(torch.tensor([[1, 1, 0], [0, 1, 1]]), torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert bias.tolist() == [[[[0, 0, lowest]]], [[[lowest, 0, 0]]]]
    assert text_bias(torch.ones(2, 4, 3, dtype=torch.bool), torch.float32).shape == (2, 1, 4, 3)
    floating = torch.randn(2, 4, 3)
    assert text_bias(floating, torch.float32).equal(floating)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for given, kind in itertools.product(kinds, kinds):  # of less range, and of more
        lowest = text_bias(torch.full((1, 3), torch.finfo(given).min, dtype=given), kind)
        assert lowest.dtype is kind
        assert lowest.isfinite().all()


def test_self_attention_bias():
    assert self_attention_bias(None, torch.float32) is None
    weights = torch.tensor([[[1.0, 0.5, 0.0, -1.0, 1e-44, math.nan]]])
    info = torch.finfo(torch.float32)
    expected = torch.tensor([0.0, math.log(0.5), info.min, info.min, math.log(info.tiny), info.min])
    torch.testing.assert_close(self_attention_bias(weights, torch.float32).flatten(), expected)
    for kind in (torch.int64, torch.bool):
        bias = self_attention_bias(torch.tensor([[[1, 0]]], dtype=kind), torch.bfloat16)
        assert bias.dtype is torch.bfloat16
        assert bias.tolist() == [[[0, torch.finfo(torch.bfloat16).min]]]


# Perturbations

SELF, A2V = PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_A2V_CROSS_ATTN


def test_equal_rows_at_the_end_of_a_context_count_once_with_their_weight():
    generator = torch.Generator().manual_seed(3)
    attention = Attention(32, context_dim=24, heads=2, dim_head=16)
    x = torch.randn(2, 5, 32, generator=generator)
    context = torch.randn(2, 40, 24, generator=generator)
    context[0, 10:] = context[0, -1:].clone()
    context[1, 25:] = context[1, -1:].clone()
    with torch.no_grad():
        merged, bias = merge_repeats(context)
        assert merged.shape == (2, 26, 24)
        torch.testing.assert_close(attention(x, merged, bias), attention(x, context), rtol=1e-5, atol=1e-6)
    ramp = torch.randn(2, 40, 24, generator=generator)
    assert merge_repeats(ramp) == (ramp, None)
    assert merge_repeats(context.bfloat16())[1] is None  # which would round the weight's logarithm
    assert merge_repeats(context.requires_grad_())[1] is None


def test_perturbation_masks():
    config = BatchedPerturbationConfig(
        [
            PerturbationConfig([Perturbation(SELF, [1, 3])]),
            PerturbationConfig([Perturbation(SELF, None), Perturbation(A2V, [])]),
            PerturbationConfig.empty(),
            PerturbationConfig(None),
        ]
    )
    assert config.mask(SELF, 1).tolist() == [0, 0, 1, 1]
    assert config.mask(SELF, 0, "cpu", torch.bfloat16).tolist() == [1, 0, 1, 1]
    assert config.mask_like(SELF, 3, torch.ones(4, 2, 5)).shape == (4, 1, 1)
    assert config.any_in_batch(SELF, 0)
    assert not config.all_in_batch(SELF, 0)
    assert not config.any_in_batch(A2V, 0)


def test_perturbations_say_what_to_compute():
    x = torch.ones(2, 3, 4)
    some = BatchedPerturbationConfig([PerturbationConfig([Perturbation(SELF, [2])]), PerturbationConfig([])])
    everyone = BatchedPerturbationConfig([PerturbationConfig([Perturbation(SELF, [2])])])
    kept = some.keeps(4, x)
    assert kept[1][SELF] is True
    assert kept[2][SELF].flatten().tolist() == [0, 1]
    assert everyone.keeps(4, x)[2][SELF] is False


def test_masks_of_the_same_values_are_made_once():
    """Each one that is made on a GPU waits for it."""
    isolated = PerturbationConfig(
        [Perturbation(A2V, None), Perturbation(PerturbationType.SKIP_V2A_CROSS_ATTN, None)]
    )
    kept = BatchedPerturbationConfig([PerturbationConfig.empty(), isolated]).keeps(48, torch.ones(2, 3, 4))
    masks = [value for block in kept for value in block.values() if isinstance(value, torch.Tensor)]
    assert len(masks) == 2 * 48
    assert len({id(mask) for mask in masks}) == 1


@pytest.mark.parametrize(
    ("major", "best"),
    [
        (8, AttentionFunction.DEFAULT),
        (9, AttentionFunction.FLASH_ATTENTION_3),
        (10, AttentionFunction.FLASH_ATTENTION_4),
        (12, AttentionFunction.DEFAULT),
    ],
)
def test_the_best_kernel_follows_the_generation_of_the_gpu(major, best, monkeypatch):
    for package, _ in KERNELS.values():
        for name in (package.split(".")[0], package):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    gpu = SimpleNamespace(get_device_capability=lambda device: (major, 0))
    monkeypatch.setattr(torch, "get_device_module", lambda device: gpu)
    assert best_attention(torch.device("cuda"), torch.bfloat16) is best


def test_a_package_that_breaks_on_import_is_not_there(monkeypatch):
    def broken(name):
        raise AttributeError("made for another GPU")

    monkeypatch.setattr("ltx_core.model.transformer.attention.import_module", broken)
    with pytest.raises(InputError, match="made for another GPU"):
        AttentionFunction.SAGE.check()
