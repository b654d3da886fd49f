"""The arithmetic of fusing: which roundings happen in which order, for every dtype of base and LoRA."""

import pytest
import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader import LoraStateDictWithStrength, StateDict, apply_loras
from ltx_core.loader.fuse import fuse, lora_delta
from ltx_core.loader.lora import Pair
from ltx_core.quantization.fp8 import requantize_scaled, to_fp8

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair(seed: int = 0, dtype: torch.dtype = torch.bfloat16, scale: float = 0.8) -> Pair:
    return Pair(randn(4, 24, seed=seed, dtype=dtype), randn(32, 4, seed=seed + 1, dtype=dtype), scale)


WEIGHT = randn(32, 24, seed=9)


@pytest.mark.parametrize("base", FLOATS, ids=str)
@pytest.mark.parametrize("lora", FLOATS, ids=str)
def test_strength_and_product_round_in_the_loras_dtype_then_once_to_the_targets(base, lora):
    one, weight = pair(dtype=lora), WEIGHT.to(base)
    scaled = (one.up.float() * 0.8).to(lora)
    product = (scaled @ one.down).to(base)
    got, scale = fuse(weight, [one])
    assert scale is None
    assert got.dtype is base
    assert torch.equal(got, (product.float() + weight.float()).to(base))


def test_several_loras_are_summed_before_they_meet_the_weight():
    pairs = [pair(seed, scale=strength) for seed, strength in ((0, 0.6), (10, -0.35), (20, 1.0))]
    products = [((p.up * p.scale) @ p.down).float() for p in pairs]
    total = (products[0] + products[1] + products[2]).bfloat16()
    assert torch.equal(lora_delta(pairs, torch.bfloat16), total)
    got, _ = fuse(WEIGHT.bfloat16(), pairs)
    assert torch.equal(got, (total.float() + WEIGHT.bfloat16().float()).bfloat16())


def test_a_target_dtype_is_where_the_sum_is_made():
    one = pair()
    got, _ = fuse(WEIGHT.bfloat16(), [one], torch.float32)
    assert got.dtype is torch.float32
    assert torch.equal(got, ((one.up * one.scale) @ one.down).float() + WEIGHT.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_fp8_without_scale_goes_through_bfloat16(dtype):
    one, weight = pair(), to_fp8(WEIGHT, dtype)
    got, scale = fuse(weight, [one])
    total = (((one.up * one.scale) @ one.down) + weight.bfloat16()).float()
    assert scale is None
    assert got.dtype is dtype
    assert torch.equal(got.float(), to_fp8(total, dtype).float())


def test_scaled_fp8_is_requantised_with_a_new_scale():
    codes, scale = requantize_scaled(WEIGHT)
    one = pair(scale=3.0)
    got, new = fuse(codes, [one], torch.bfloat16, scale)
    wide = codes.float() * scale + ((one.up * one.scale) @ one.down).float()
    assert got.dtype is torch.float8_e4m3fn
    assert torch.isclose(new, wide.abs().max() / 448)
    assert got.float().abs().max() == 448
    assert ((got.float() * new - wide).abs() <= wide.abs() * 2**-4 + new * 2**-10).all()


def test_a_weight_of_zeros_survives_requantising():
    codes, scale = requantize_scaled(torch.zeros(4, 4))
    assert torch.equal(codes.float(), torch.zeros(4, 4))
    assert scale.isfinite()


def test_strength_zero_changes_nothing():
    for dtype in (*FLOATS, torch.float8_e4m3fn):
        weight = WEIGHT.to(dtype)
        assert torch.equal(fuse(weight, [pair(scale=0.0)])[0].float(), weight.float())


def model_state() -> StateDict:
    return StateDict.of(
        {
            "a.weight": WEIGHT.bfloat16(),
            "a.bias": randn(32, seed=5),
            "b.weight": randn(8, 8, seed=6),
            "counts": torch.arange(3),
        }
    )


def lora_state(name: str = "a", dtype: torch.dtype = torch.bfloat16) -> StateDict:
    one = pair(dtype=dtype)
    return StateDict.of({f"{name}.lora_A.weight": one.down, f"{name}.lora_B.weight": one.up})


def test_apply_loras_fuses_casts_the_rest_and_shares_nothing():
    base = model_state()
    before = {name: value.clone() for name, value in base.sd.items()}
    got = apply_loras(base, [LoraStateDictWithStrength(lora_state(), 0.8)], torch.bfloat16)
    assert torch.equal(got.sd["a.weight"], fuse(WEIGHT.bfloat16(), [pair()])[0])
    assert [got.sd[key].dtype for key in ("a.bias", "b.weight", "counts")] == [
        *[torch.bfloat16] * 2,
        torch.int64,
    ]
    for name, value in got.sd.items():
        value.zero_()
        assert torch.equal(base.sd[name], before[name])


def test_apply_loras_without_dtype_keeps_dtypes():
    got = apply_loras(model_state(), [LoraStateDictWithStrength(lora_state(), 0.8)])
    assert {key: value.dtype for key, value in got.sd.items()} == {
        key: value.dtype for key, value in model_state().sd.items()
    }
    assert got.size == sum(value.nbytes for value in model_state().sd.values())


def test_a_destination_takes_the_fused_weights_and_keeps_the_rest():
    base = model_state()
    got = apply_loras(base, [LoraStateDictWithStrength(lora_state(), 0.8)], torch.float32, base)
    assert got.sd is base.sd
    assert base.sd["a.weight"].dtype is torch.float32
    assert base.sd["b.weight"].data_ptr() == got.sd["b.weight"].data_ptr()


def test_the_scale_of_a_scaled_weight_is_replaced_wherever_it_stands():
    codes, scale = requantize_scaled(WEIGHT)
    for order in (("a.weight", "a.weight_scale"), ("a.weight_scale", "a.weight")):
        tensors = {"a.weight": codes, "a.weight_scale": scale, "a.input_scale": torch.tensor(0.5)}
        base = StateDict.of({name: tensors[name] for name in (*order, "a.input_scale")})
        got = apply_loras(base, [LoraStateDictWithStrength(lora_state(), 0.8)]).sd
        weight, new = fuse(codes, [pair()], scale=scale)
        assert new is not None
        assert torch.equal(got["a.weight"].float(), weight.float())
        assert torch.equal(got["a.weight_scale"], new)
        assert got["a.input_scale"] == 0.5
        assert base.sd["a.weight_scale"] == scale


def test_fp8_weights_without_scale_are_cast_with_the_rest_and_scaled_ones_stay():
    codes = WEIGHT.to(torch.float8_e4m3fn)
    scales = {"scaled.weight_scale": torch.tensor(2.01), "scaled.input_scale": torch.tensor(0.03)}
    tensors = {"plain.weight": codes, "scaled.weight": codes} | scales
    base = StateDict.of(tensors | model_state().sd)
    got = apply_loras(base, [LoraStateDictWithStrength(lora_state(), 0.8)], torch.bfloat16).sd
    assert torch.equal(got["plain.weight"], codes.bfloat16())
    assert got["scaled.weight"].dtype is torch.float8_e4m3fn
    assert {name: got[name] for name in scales} == scales


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_lora_in_8_bits_is_widened(dtype):
    narrow = {name: to_fp8(half, dtype) for name, half in lora_state().sd.items()}
    halves = (narrow, {name: half.bfloat16() for name, half in narrow.items()})
    got = [apply_loras(model_state(), [LoraStateDictWithStrength(StateDict.of(sd), 0.8)]).sd for sd in halves]
    assert torch.equal(got[0]["a.weight"], got[1]["a.weight"])


def test_a_lora_in_memory_that_fits_nothing_is_refused():
    with pytest.raises(CheckpointError, match="matches no weight"):
        apply_loras(model_state(), [LoraStateDictWithStrength(lora_state("elsewhere"), 1.0)])
