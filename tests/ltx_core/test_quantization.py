"""Eight-bit weights: the arithmetic, which layers of a transformer, and every pairing of file and policy."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ltx_core import quantization
from ltx_core.errors import ConfigError
from ltx_core.loader import (
    Checkpoint,
    LoraPathStrengthAndSDOps,
    LoraSwitcher,
    build_model,
    tensor_bytes,
)
from ltx_core.model.transformer import LTXModelConfigurator, model_configurator
from ltx_core.quantization import QuantizationPolicy, UpcastWithStochasticRounding
from ltx_core.quantization import fp8 as fp8_module
from ltx_core.quantization.fp8 import (
    CastLinear,
    ScaledLinear,
    dequantize,
    has_scaled_matmul,
    quantize_activation,
    requantize_scaled,
    scaled_matmul,
    to_fp8,
)
from ltx_core.quantization.policy import scale_linears
from ltx_core.sd_ops import LTXV_MODEL_COMFY_RENAMING_MAP as MAP

PREFIX = "model.diffusion_model."
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CONFIG = (
    model_configurator.EXPECTED
    | model_configurator.EXPECTED_AUDIO_VIDEO
    | {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "in_channels": 6,
        "out_channels": 6,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "caption_proj_before_connector": True,
        "cross_attention_adaln": True,
        "apply_gated_attention": True,
    }
)
SCALED = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2", "adaln_single.linear")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Weights of a tiny transformer, bfloat16."""
    with torch.device("meta"):
        model = LTXModelConfigurator.from_config({"transformer": CONFIG})
    return {
        name: (randn(*value.shape, seed=i) * 0.2).bfloat16()
        for i, (name, value) in enumerate(model.state_dict().items())
    }


def write(path, tensors) -> Checkpoint:
    named = {PREFIX + name: value for name, value in tensors.items()}
    save_file(named, path, {"config": json.dumps({"transformer": CONFIG})})
    return Checkpoint(path)


@pytest.fixture
def plain(tmp_path, tensors) -> Checkpoint:
    return write(tmp_path / "bf16.safetensors", tensors)


def with_scales(tensors, layers=SCALED, **changes) -> dict[str, torch.Tensor]:
    scaled = dict(tensors)
    for layer in layers:
        weight, scale = requantize_scaled(tensors[f"{layer}.weight"].float())
        scaled |= {f"{layer}.weight": weight, f"{layer}.weight_scale": scale}
        scaled[f"{layer}.input_scale"] = torch.tensor(0.02)
    return scaled


@pytest.fixture
def scaled(tmp_path, tensors) -> Checkpoint:
    """The same with three layers in scaled fp8, and a foreign one that belongs to another component."""
    values = with_scales(tensors)
    for part in ("weight", "weight_scale"):
        values[f"video_embeddings_connector.proj.{part}"] = values[f"{SCALED[0]}.{part}"].clone()
    return write(tmp_path / "fp8.safetensors", values)


def build(checkpoint, policy=None, dtype=torch.bfloat16) -> nn.Module:
    return build_model(LTXModelConfigurator, checkpoint, MAP, "cpu", dtype, policy)


# -- arithmetic -------------------------------------------------------------------------------------


def test_casting_saturates_and_rounds_to_even():
    values = torch.tensor([1e9, -1e9, 448.0, 460.0, 2.0**-10, 2.0**-9, 1.0625, 1.1875, 0.0])
    expected = torch.tensor([448.0, -448.0, 448.0, 448.0, 0.0, 2.0**-9, 1.0, 1.25, 0.0])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(to_fp8(values.to(dtype)).float(), expected.to(dtype).clamp(-448, 448))
    assert to_fp8(torch.tensor([1e9]), E5M2).float().item() == 57344
    assert to_fp8(torch.tensor([torch.nan])).float().isnan().all()


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_casting_is_the_identity_on_what_fp8_can_hold(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes.view(dtype).float().isfinite()].view(dtype)
    assert torch.equal(to_fp8(codes.float(), dtype).view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(to_fp8(codes, dtype).view(torch.uint8), codes.view(torch.uint8))


def test_eight_bit_values_of_the_other_kind_are_converted():
    assert torch.equal(to_fp8(torch.tensor([1.0, 1024.0]).to(E5M2)).float(), torch.tensor([1.0, 448.0]))


def test_requantising_uses_the_whole_range_and_is_close():
    for factor in (1e-6, 1.0, 1e6):
        weight = randn(32, 16) * factor
        codes, scale = requantize_scaled(weight)
        assert codes.float().abs().max() == 448
        error = (dequantize(codes, scale, torch.float32) - weight).abs()
        assert (error <= weight.abs() * 2**-4 + scale * 2**-10).all()


def test_a_cast_layer_computes_with_the_widened_weights():
    layer, x = nn.Linear(8, 4), randn(3, 8, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(to_fp8(layer.weight.detach()), requires_grad=False)
    layer.bias = nn.Parameter(to_fp8(layer.bias.detach()), requires_grad=False)
    layer.__class__ = CastLinear
    for dtype in (torch.bfloat16, torch.float32):
        expected = nn.functional.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))
        assert torch.equal(layer(x.to(dtype)), expected)
    layer.bias = None
    assert layer(x).shape == (3, 4)


def scaled_layer(out_features: int, in_features: int, bias: bool = True) -> ScaledLinear:
    model = nn.Sequential(nn.Linear(in_features, out_features, bias)).requires_grad_(False)
    [layer] = scale_linears(model, {"0": dict.fromkeys(ScaledLinear.SCALES, ())})
    weight, layer.weight_scale = requantize_scaled(randn(out_features, in_features))
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.input_scale = torch.tensor(0.01)
    if bias:
        layer.bias.copy_(randn(out_features, seed=3))
    return layer


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16), (2, 1, 3, 16), (0, 16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_scaled_layer_quantises_its_input_and_adds_the_bias_after_rounding(shape, bias, dtype):
    layer, x = scaled_layer(7, 16, bias), randn(*shape, seed=2).to(dtype)
    q = (x * (1 / layer.input_scale)).clamp(-448, 448).to(E4M3).float()
    product = q @ layer.weight.float().t() * (layer.input_scale * layer.weight_scale)
    expected = product.to(dtype) + (layer.bias.to(dtype) if bias else 0)
    got = layer(x)
    assert got.dtype is dtype
    assert got.shape == (*shape[:-1], 7)
    assert torch.allclose(
        got.float(), expected.float(), rtol=2**-8 if dtype is torch.bfloat16 else 1e-6, atol=1e-6
    )


def test_a_scaled_layer_is_close_to_the_dense_one():
    layer, x = scaled_layer(32, 64), randn(10, 64, seed=2)
    dense = nn.functional.linear(x, dequantize(layer.weight, layer.weight_scale, torch.float32), layer.bias)
    assert (layer(x) - dense).norm() < 0.05 * dense.norm()


def test_activations_beyond_the_range_saturate():
    q = quantize_activation(torch.tensor([1e4, -1e4, 1.0], dtype=torch.bfloat16), torch.tensor(1.0))
    assert torch.equal(q.float(), torch.tensor([448.0, -448.0, 1.0]))


@pytest.mark.parametrize("by_row", [False, True])
def test_the_scaled_matmul_of_pytorch_agrees_with_the_widened_sum(monkeypatch, by_row):
    q, weight = (
        quantize_activation(randn(5, 32), torch.tensor(0.02)),
        requantize_scaled(randn(16, 32, seed=1))[0],
    )
    scales = torch.tensor(0.02), rows(weight)[:, None] if by_row else torch.tensor(0.003)
    wide = scaled_matmul(q, weight, *scales, torch.bfloat16)
    assert not has_scaled_matmul(q, weight, torch.bfloat16)
    monkeypatch.setattr(fp8_module, "has_scaled_matmul", lambda *arguments: True)
    try:
        native = scaled_matmul(q, weight, *scales, torch.bfloat16)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"this PyTorch has no scaled matmul on the CPU: {error}")
    assert torch.allclose(native.float(), wide.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sides", [(64, 32), (40, 24)], ids=str)
@pytest.mark.parametrize("by_row", [False, True])
def test_a_scaled_layer_on_a_gpu(sides, by_row):
    layer, x = scaled_layer(*sides), randn(2, 9, sides[1], seed=2).bfloat16()
    if by_row:
        layer.weight_scale, layer.input_scale = rows(layer.weight)[:, None], None
    expected = layer(x)
    got = layer.cuda()(x.cuda()).cpu()
    assert (got - expected).norm() < 1e-2 * expected.norm()


# -- policies ---------------------------------------------------------------------------------------


def test_fp8_cast_stores_the_attention_and_feed_forward_layers_of_blocks(plain, tensors):
    model = build(plain, QuantizationPolicy.fp8_cast())
    cast = {name for name, value in model.state_dict().items() if value.dtype is E4M3}
    parts = [name.rpartition(".")[0] for name in cast]
    assert cast
    assert all(name.startswith("transformer_blocks.") for name in cast)
    assert {name.split(".", 2)[2] for name in parts} == {
        *(
            f"{attention}.{layer}"
            for attention in (
                "attn1",
                "attn2",
                "audio_attn1",
                "audio_attn2",
                "audio_to_video_attn",
                "video_to_audio_attn",
            )
            for layer in ("to_q", "to_k", "to_v", "to_out.0")
        ),
        *(f"{ff}.net.{layer}" for ff in ("ff", "audio_ff") for layer in ("0.proj", "2")),
    }
    assert {name.rpartition(".")[2] for name in cast} == {"weight", "bias"}
    for name, value in model.state_dict().items():
        expected = to_fp8(tensors[name]) if name in cast else tensors[name]
        assert torch.equal(value.float(), expected.float())
    assert all(type(module) is not nn.Linear for module in model.modules())


def test_fp8_cast_rounds_once_from_the_files_dtype(tmp_path, tensors):
    name = "transformer_blocks.0.attn1.to_q.weight"
    wide = write(tmp_path / "f32.safetensors", tensors | {name: randn(16, 16)})
    model = build(wide, QuantizationPolicy.fp8_cast(), torch.bfloat16)
    assert torch.equal(model.state_dict()[name].float(), to_fp8(randn(16, 16)).float())


def test_a_file_that_is_cast_already_serves_under_fp8_cast(tmp_path, tensors):
    name = "transformer_blocks.0.attn1.to_q.weight"
    stored = write(tmp_path / "cast.safetensors", tensors | {name: to_fp8(tensors[name])})
    policy = QuantizationPolicy.fp8_cast()
    for dtype in (torch.bfloat16, None):
        model = build(stored, policy, dtype)
        assert model.state_dict()[name].dtype is E4M3
        assert torch.equal(model.state_dict()[name].float(), to_fp8(tensors[name]).float())
        taken = sum(tensor.nbytes for tensor in model.state_dict().values())
        assert sum(tensor_bytes(stored, MAP, dtype, policy).values()) == taken
    assert build(stored).state_dict()[name].dtype is torch.bfloat16


def test_a_scaled_file_without_policy_is_widened(scaled, tensors):
    model = build(scaled)
    for layer in SCALED:
        weight, scale = requantize_scaled(tensors[f"{layer}.weight"].float())
        assert torch.equal(model.get_submodule(layer).weight, dequantize(weight, scale, torch.bfloat16))
    assert not any(name.endswith("_scale") for name in model.state_dict())


def test_a_scaled_file_under_fp8_cast_is_widened_then_cast(scaled, tensors):
    model = build(scaled, QuantizationPolicy.fp8_cast(), torch.float32)
    for layer in SCALED:
        weight, scale = requantize_scaled(tensors[f"{layer}.weight"].float())
        wide, got = dequantize(weight, scale, torch.bfloat16), model.get_submodule(layer).weight
        if layer.startswith("transformer_blocks."):
            assert torch.equal(got.float(), to_fp8(wide).float())
        else:
            assert got.dtype is torch.float32
            assert torch.equal(got, wide.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, None], ids=str)
def test_fp8_scaled_mm_takes_its_layers_from_the_file(scaled, tensors, dtype):
    model = build(scaled, QuantizationPolicy.fp8_scaled_mm(), dtype)
    assert {name for name, module in model.named_modules() if isinstance(module, ScaledLinear)} == set(SCALED)
    expected = with_scales(tensors)
    for name, value in model.state_dict().items():
        is_stored = name.rpartition(".")[0] in SCALED and not name.endswith(".bias")
        kept = expected[name].dtype if is_stored or dtype is None else dtype
        assert value.dtype is kept
        assert torch.equal(value.float(), expected[name].to(kept).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("policy", [QuantizationPolicy.fp8_cast(), QuantizationPolicy.fp8_scaled_mm(), None])
def test_the_size_of_a_scaled_file_is_told_from_its_header(scaled, policy, dtype):
    taken = {name: value.nbytes for name, value in build(scaled, policy, dtype).state_dict().items()}
    told = tensor_bytes(scaled, MAP, dtype, policy)
    assert {name: told[name] for name in taken} == taken


@pytest.mark.parametrize("policy", [QuantizationPolicy.fp8_cast(), QuantizationPolicy.fp8_scaled_mm(), None])
def test_a_scale_may_be_stored_as_a_list_of_one(tmp_path, tensors, scaled, policy):
    values = with_scales(tensors)
    listed = {name: value.reshape(1) for name, value in values.items() if name.endswith("_scale")}
    model, expected = build(write(tmp_path / "x.safetensors", values | listed), policy), build(scaled, policy)
    x = randn(3, 16, dtype=torch.bfloat16)
    for name, value in expected.state_dict().items():
        assert model.state_dict()[name].shape == value.shape
    assert torch.equal(model.get_submodule(SCALED[0])(x), expected.get_submodule(SCALED[0])(x))


def test_fp8_scaled_mm_of_a_plain_file_is_refused_with_advice(plain):
    with pytest.raises(ConfigError, match=r"bf16\.safetensors: no layer is stored as fp8.*fp8-cast"):
        build(plain, QuantizationPolicy.fp8_scaled_mm())
    assert issubclass(ConfigError, ValueError)


def test_without_input_scales_each_token_is_rounded_by_its_largest_value(tmp_path, tensors):
    values = {name: value for name, value in with_scales(tensors).items() if not name.endswith("input_scale")}
    layer = build(
        write(tmp_path / "x.safetensors", values), QuantizationPolicy.fp8_scaled_mm()
    ).get_submodule(SCALED[0])
    x = torch.stack([randn(16), 1000 * randn(16, seed=1)])
    assert torch.allclose(layer(x)[0], layer(x[:1])[0])  # a token does not depend on the others
    dense = nn.functional.linear(
        x, dequantize(layer.weight, layer.weight_scale, torch.float32), layer.bias.float()
    )
    assert ((layer(x) - dense).norm(dim=1) < 0.05 * dense.norm(dim=1)).all()


def rows(codes: torch.Tensor) -> torch.Tensor:
    """Scales of its rows, each another one."""
    return 0.001 * torch.arange(1, len(codes) + 1)


@pytest.mark.parametrize("policy", [QuantizationPolicy.fp8_cast(), QuantizationPolicy.fp8_scaled_mm(), None])
@pytest.mark.parametrize("listed", [True, False])
def test_weights_may_have_a_scale_for_each_row(tmp_path, tensors, policy, listed):
    values = with_scales(tensors)
    for name in SCALED:
        scale = rows(values[f"{name}.weight"])
        values[f"{name}.weight_scale"] = scale if listed else scale[:, None]
    layer = build(write(tmp_path / "x.safetensors", values), policy).get_submodule(SCALED[0])
    wide = values[f"{SCALED[0]}.weight"].float() * rows(layer.weight)[:, None]
    x = randn(3, 16, dtype=torch.bfloat16)
    expected = nn.functional.linear(x.float(), wide, layer.bias.float())
    assert (layer(x) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("policy", [QuantizationPolicy.fp8_cast(), QuantizationPolicy.fp8_scaled_mm(), None])
@pytest.mark.parametrize("by_row", [False, True])
def test_loras_fuse_under_every_policy(tmp_path, tensors, policy, by_row):
    values = with_scales(tensors)
    if by_row:
        for name in SCALED:
            values[f"{name}.weight_scale"] = (
                values[f"{name}.weight_scale"].expand(len(values[f"{name}.weight"])).clone()
            )
    model, layer = build(write(tmp_path / "x.safetensors", values), policy), SCALED[0]
    before, x = model.get_submodule(layer).weight.detach().clone(), randn(3, 16, dtype=torch.bfloat16)
    clean = model.get_submodule(layer)(x)
    lora = {
        f"diffusion_model.{layer}.lora_{half}.weight": randn(16, 16, seed=i) for i, half in enumerate("AB")
    }
    save_file(lora, tmp_path / "lora.safetensors")
    switcher = LoraSwitcher(model)
    switcher.apply([LoraPathStrengthAndSDOps(str(tmp_path / "lora.safetensors"), 0.1)])
    touched = model.get_submodule(layer)
    assert touched.weight.dtype is before.dtype
    delta = nn.functional.linear(x.float(), 0.1 * randn(16, 16, seed=1) @ randn(16, 16, seed=0))
    assert ((touched(x) - clean).float() - delta).norm() < 0.1 * delta.norm()
    switcher.apply([])
    assert torch.equal(touched.weight.float(), before.float())


def test_policies_are_values_with_the_official_fields():
    assert QuantizationPolicy() == QuantizationPolicy(sd_ops=None, module_ops=())
    assert QuantizationPolicy.fp8_cast() == QuantizationPolicy.fp8_cast()
    assert QuantizationPolicy.fp8_cast().sd_ops is quantization.TRANSFORMER_LINEAR_DOWNCAST_MAP
    assert QuantizationPolicy.fp8_cast().module_ops == (quantization.UPCAST_DURING_INFERENCE,)


def test_the_official_names_are_importable_and_harmless():
    assert set(quantization.__all__) == {
        "QuantizationPolicy",
        "TRANSFORMER_LINEAR_DOWNCAST_MAP",
        "UPCAST_DURING_INFERENCE",
        "UpcastWithStochasticRounding",
        "FP8_PREPARE_MODULE_OPS",
        "FP8_TRANSPOSE_SD_OPS",
    }
    model = nn.Sequential(nn.Linear(2, 2))
    assert not quantization.FP8_PREPARE_MODULE_OPS.matcher(model)
    operation = UpcastWithStochasticRounding(seed=3)
    assert operation.matcher(model)
    assert type(operation.mutator(model)[0]) is CastLinear
    assert not operation.matcher(model)
