"""Key maps, LoRA fusing, fp8 arithmetic, and a tiny transformer loaded in every way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ltx_core import sd_ops
from ltx_core.errors import CheckpointError
from ltx_core.loader import (
    Checkpoint,
    LoraPathStrengthAndSDOps,
    LoraStateDictWithStrength,
    LoraSwitcher,
    SafetensorsStateDictLoader,
    SDOps,
    apply_loras,
    build_model,
)
from ltx_core.model.transformer import LTXModelConfigurator, Modality, X0Model
from ltx_core.quantization import FP8_TRANSPOSE_SD_OPS, TRANSFORMER_LINEAR_DOWNCAST_MAP, QuantizationPolicy
from ltx_core.quantization.fp8 import (
    FP8_DTYPES,
    CastLinear,
    ScaledLinear,
    dequantize,
    quantize_activation,
    requantize_scaled,
    scaled_matmul,
    to_fp8,
)
from tests.conformance.harness import (
    Case,
    Check,
    Context,
    equal,
    errors,
    exact,
    near_max,
    near_norm,
    read_json,
    read_tensors,
)

MAPS = {value.name: value for value in vars(sd_ops).values() if isinstance(value, SDOps)}
TRANSFORMER_MAP = sd_ops.LTXV_MODEL_COMFY_RENAMING_MAP
# What each policy name in a case adds to the transformer's key map. Scaled weights rest as (out, in) here.
POLICY_MAPS = {ops.name: ops for ops in (TRANSFORMER_LINEAR_DOWNCAST_MAP, FP8_TRANSPOSE_SD_OPS)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
# Kind of an end-to-end build -> (policy, multiple of the case's LoRA strength or None for no LoRA).
BUILDS = {
    "plain": (None, None),
    "lora": (None, 1.0),
    "lora_zero": (None, 0.0),
    "fp8_cast": (QuantizationPolicy.fp8_cast(), None),
    "fp8_cast_lora": (QuantizationPolicy.fp8_cast(), 1.0),
}
BF16_ULP = 2.0**-7  # of the largest value; what a GPU's other order of sums may change


def recognises(folder: Path) -> bool:
    return (folder / "keymaps.json").is_file() or any(folder.glob("lora_*.base.safetensors"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    for path in sorted(folder.iterdir()):
        name = path.name.split(".")[0]
        if path.name == "keymaps.json":
            for map_name, table in read_json(path).items():
                yield Case(f"keymaps/{map_name}", lambda m=map_name, t=table: _key_map(m, t))
        elif path.name == "sdops_semantics.json":
            yield Case(name, lambda p=path: [check for entry in read_json(p) for check in _semantics(entry)])
        elif name.startswith("lora_") and path.suffix == ".json":
            yield Case(name, lambda n=name: _lora(folder, n, context))
        elif name.startswith("ignored_"):
            yield Case(name, lambda p=path: _converted(folder, p))
        elif path.name == "fp8_cast.safetensors":
            yield Case(name, lambda p=path: _fp8_cast(p, context))
        elif path.name == "fp8_scaled.safetensors":
            yield Case(name, lambda p=path: _fp8_scaled(p, context))
        elif name.startswith("e2e") and path.name.endswith(".tensors.safetensors"):
            yield Case(name, lambda n=name: _end_to_end(folder, n, context))
        elif not _belongs(path):
            yield Case(path.name, lambda: [Check("kind", False, "nobody knows how to run this file")])


def _belongs(path: Path) -> bool:
    """Files that are read with another one."""
    part = path.name.split(".", 1)[1]
    lora_part = path.name.startswith("lora_") and part.endswith("safetensors")
    e2e_part = path.name.startswith("e2e") and part in ("json", "checkpoint.safetensors", "lora.safetensors")
    return lora_part or e2e_part or path.name in ("README.md", "fp8_scaled.json", "fp8_cast.json")


def _rename(ops: SDOps, key: str) -> list[str] | None:
    renamed = ops.apply_to_key(key)
    if renamed is None:
        return None
    return [result.new_key for result in ops.apply_to_key_value(renamed, torch.empty(0))]


def _key_map(name: str, table: dict) -> Iterator[Check]:
    got = {key: _rename(MAPS[name], key) for key in table}
    yield equal(name, got, table)


def _semantics(entry: dict) -> Iterator[Check]:
    ops = SDOps(entry["name"])
    for prefix, suffix in entry["matching"]:
        ops = ops.with_matching(prefix=prefix, suffix=suffix)
    for content, replacement in entry["replacement"]:
        ops = ops.with_replacement(content, replacement)
    yield equal(entry["name"], {key: ops.apply_to_key(key) for key in entry["out"]}, entry["out"])


def _lora(folder: Path, name: str, context: Context) -> Iterator[Check]:
    meta = read_json(folder / f"{name}.json")
    loader, base_map = SafetensorsStateDictLoader(), TRANSFORMER_MAP
    if meta.get("policy"):
        base_map = base_map.chain(POLICY_MAPS[meta["policy"]])
    base = loader.load(str(folder / f"{name}.base.safetensors"), base_map, context.device)
    files = [str(folder / f"{name}.lora{i}.safetensors") for i in range(len(meta["strengths"]))]
    dicts = [loader.load(file, sd_ops.LTXV_LORA_COMFY_RENAMING_MAP) for file in files]
    loras = [LoraStateDictWithStrength(sd, strength) for sd, strength in zip(dicts, meta["strengths"])]
    before = {key: value.clone() for key, value in base.sd.items()}
    got = apply_loras(base, loras, DTYPES[_dtype_name(meta["dtype"])]).sd
    want = read_tensors(folder / f"{name}.expected.safetensors")
    yield equal("keys", sorted(got), sorted(want))
    untouched = all(torch.equal(base.sd[key].float(), value.float()) for key, value in before.items())
    yield equal("base unchanged", untouched, True)
    for key in sorted(want):
        yield _fused(key, got[key].cpu(), want[key], context)


def _dtype_name(name: str | None) -> str | None:
    return None if name is None else name.removeprefix("torch.")


def _fused(key: str, got: torch.Tensor, want: torch.Tensor, context: Context) -> Check:
    if got.dtype != want.dtype or got.shape != want.shape:
        return Check(key, False, f"{got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}")
    if want.dtype in FP8_DTYPES:
        off = (got.view(torch.uint8).int() - want.view(torch.uint8).int()).abs()
        share, allowed = (off > 0).float().mean().item(), 1e-3 if context.device.type == "cpu" else 1e-2
        return Check(key, off.max().item() <= 1 and share <= allowed, f"codes differ {share:.1e}")
    if want.dtype is torch.bfloat16:
        return _one_ulp(key, got, want, context)
    return near_max(key, got, want, context.relax(1e-6))


def _one_ulp(name: str, got: torch.Tensor, want: torch.Tensor, context: Context) -> Check:
    """bfloat16 values that are equal or neighbours."""
    if context.device.type != "cpu":
        return near_max(name, got, want, BF16_ULP)
    ulp = 2.0 ** (want.float().abs().clamp(min=2.0**-126).log2().floor() - 7)
    rel, top = errors(got, want)
    ok = bool(((got.float() - want.float()).abs() <= ulp * 1.001).all())
    return Check(name, ok, f"rel {rel:.1e} max {top:.1e} (1 ulp)")


def _converted(folder: Path, path: Path) -> Iterator[Check]:
    """Other tools' namings: refused, or fused as the same LoRA in ComfyUI's naming would be."""
    loader = SafetensorsStateDictLoader()
    base = loader.load(str(folder / "lora_bf16_comfy.base.safetensors"), TRANSFORMER_MAP)
    lora = loader.load(str(path), sd_ops.LTXV_LORA_COMFY_RENAMING_MAP)
    try:
        got = apply_loras(base, [LoraStateDictWithStrength(lora, 1.0)]).sd
    except CheckpointError as error:
        found = [
            key for key in lora.sd for name in base.sd if key.endswith(DOWNS) and _same_module(key, name)
        ]
        yield equal(f"refused ({error}), pairs that fit", found, [])
        return
    changed = 0
    for name, value in base.sd.items():
        pairs = [key for key in lora.sd if key.endswith(DOWNS) and _same_module(key, name)]
        delta = sum((_up(lora.sd, key) @ lora.sd[key]).to(value.dtype) for key in pairs)
        yield exact(name, got[name], value + delta)
        changed += bool(pairs)
    yield equal("something fused", changed > 0, True)


DOWNS = (".lora_A.weight", ".lora_down.weight")


def _up(lora: dict[str, torch.Tensor], down: str) -> torch.Tensor:
    return lora[down.replace("lora_A", "lora_B").replace("lora_down", "lora_up")]


def _same_module(down: str, weight: str) -> bool:
    """Whether a LoRA key is for the weight, whatever prefix it has and with dots or underscores."""
    module, target = (key.rsplit(".", n)[0].replace(".", "_") for key, n in ((down, 2), (weight, 1)))
    return weight.endswith(".weight") and (module == target or module.endswith(f"_{target}"))


def _fp8_cast(path: Path, context: Context) -> Iterator[Check]:
    t = read_tensors(path, context.device)
    codes = t["all_codes.uint8"].view(torch.float8_e4m3fn)
    for dtype in ("float32", "bfloat16"):
        yield exact(f"codes as {dtype}", codes.to(DTYPES[dtype]), t[f"all_codes.{dtype}"])
        cast = to_fp8(t[f"cast.in.{dtype}"]).view(torch.uint8)
        yield exact(f"cast from {dtype}", cast, t[f"cast.from_{dtype}.uint8"])
    for i in _numbers(t, "linear"):
        weight, bias, x = t[f"linear.{i}.weight_fp8"], t.get(f"linear.{i}.bias_fp8"), t[f"linear.{i}.x_bf16"]
        yield exact(f"linear.{i}.weight", to_fp8(t[f"linear.{i}.weight_bf16"]).float(), weight.float())
        layer = _layer(CastLinear, weight, bias)
        yield near_max(
            f"linear.{i}.y_float32", layer(x.float()), t[f"linear.{i}.y_float32"], context.relax(1e-5)
        )
        yield near_norm(f"linear.{i}.y_bf16", layer(x), t[f"linear.{i}.y_bf16"], 1e-2)


def _fp8_scaled(path: Path, context: Context) -> Iterator[Check]:
    t = read_tensors(path, context.device)
    for i in _numbers(t, "q"):
        q = {key.split(".", 2)[2]: value for key, value in t.items() if key.startswith(f"q.{i}.")}
        weight = next(v for v in q.values() if v.dtype == torch.float32 and v.dim() == 2)
        codes = next(v for v in q.values() if v.dtype in FP8_DTYPES)
        got, scale = requantize_scaled(weight)
        yield exact(f"q.{i}.codes", got.float(), codes.float())
        yield near_max(f"q.{i}.scale", scale, q["weight_scale"], 1e-6)
        yield from _scaled_linear(t, i, codes, q["weight_scale"], context)


def _scaled_linear(
    t: dict[str, torch.Tensor], i: str, codes: torch.Tensor, weight_scale: torch.Tensor, context: Context
) -> Iterator[Check]:
    x, input_scale, bias = t[f"lin.{i}.x_bf16"], t[f"lin.{i}.input_scale"], t.get(f"lin.{i}.bias_bf16")
    widened = dequantize(codes, weight_scale, torch.float32)
    yield exact(f"lin.{i}.dequantised", widened, t[f"lin.{i}.dequant_weight_float32"])
    q = quantize_activation(x, input_scale)
    yield exact(f"lin.{i}.x", q.float(), t[f"lin.{i}.bf16.x_fp8"].float())
    layer = _layer(ScaledLinear, codes, bias)
    layer.weight_scale, layer.input_scale = weight_scale, input_scale
    yield _one_ulp(f"lin.{i}.y_bf16", layer(x), t[f"lin.{i}.bf16.y_bf16"], context)
    flat = scaled_matmul(q.flatten(0, -2), codes, input_scale, weight_scale, torch.float32)
    wide = flat.reshape(*x.shape[:-1], -1) if bias is None else flat.reshape(*x.shape[:-1], -1) + bias.float()
    yield near_max(f"lin.{i}.y_float32", wide, t[f"lin.{i}.bf16.y_float32"], context.relax(1e-5))


def _numbers(t: dict[str, torch.Tensor], kind: str) -> list[str]:
    return sorted({key.split(".")[1] for key in t if key.startswith(f"{kind}.")})


def _layer(cls: type, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    layer = cls(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.to(weight.device).requires_grad_(False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    return layer


@torch.no_grad()
def _end_to_end(folder: Path, name: str, context: Context) -> Iterator[Check]:
    meta = read_json(folder / f"{name}.json")
    t = read_tensors(folder / f"{name}.tensors.safetensors", context.device)
    checkpoint = Checkpoint(folder / meta.get("checkpoint", f"{name}.checkpoint.safetensors"))
    lora = str(folder / meta.get("lora", f"{name}.lora.safetensors"))
    for build in meta["builds"]:
        kind, dtype_name = build.rsplit(".", 1)
        dtype, (policy, multiple) = DTYPES[dtype_name], BUILDS[kind]
        model = build_model(LTXModelConfigurator, checkpoint, TRANSFORMER_MAP, context.device, dtype, policy)
        if multiple is not None:
            used = LoraPathStrengthAndSDOps(lora, multiple * meta["lora_strength"])
            LoraSwitcher(model).apply([used])
        video, audio = (_modality(t, stream, dtype) for stream in ("video", "audio"))
        x0 = dict(zip(("video", "audio"), X0Model(model)(video=video, audio=audio, perturbations=None)))
        for stream, got in x0.items():
            tolerance = context.relax(1e-5) if dtype is torch.float32 else 8e-3
            yield near_norm(f"{build}.{stream}", got, t[f"{build}.denoised_{stream}"], tolerance)


def _modality(t: dict[str, torch.Tensor], stream: str, dtype: torch.dtype) -> Modality:
    return Modality(
        latent=t[f"{stream}_latent"].to(dtype),
        sigma=t["sigma"],
        timesteps=t[f"{stream}_timesteps"],
        positions=t[f"{stream}_positions"],
        context=t[f"{stream}_context"].to(dtype),
    )
