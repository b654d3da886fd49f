"""Fusing LoRAs into weights, with the reference's arithmetic: which roundings happen, and in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ltx_core.loader.lora import LoraMatch, Pair, match_lora
from ltx_core.loader.state_dict import StateDict
from ltx_core.quantization.fp8 import FP8_DTYPES, as_factor, requantize_scaled, to_fp8


class LoraStateDictWithStrength(NamedTuple):
    """A LoRA in memory with its strength."""

    state_dict: StateDict
    strength: float


def lora_delta(pairs: Sequence[Pair], dtype: torch.dtype) -> torch.Tensor:
    """The sum of updates in `dtype`: each product in its LoRA's own dtype, cast, then summed in one go."""
    products = [torch.matmul(pair.up * pair.scale, pair.down).to(dtype) for pair in pairs]
    return products[0] if len(products) == 1 else torch.stack(products).sum(dim=0)


def fuse(
    weight: torch.Tensor,
    pairs: Sequence[Pair],
    dtype: torch.dtype | None = None,
    scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight with the updates fused, its new fp8 scale or None).

    dtype: of the result, default the weight's. scale: the ``weight_scale`` of a scaled fp8 weight, which is
    requantised from float32. Other fp8 results are rounded to nearest from bfloat16.
    """
    target = weight.dtype if dtype is None or scale is not None else dtype
    delta = lora_delta(pairs, torch.bfloat16 if target in FP8_DTYPES else target)
    if scale is not None:
        wide = weight.float() * as_factor(scale) + delta.float()
        return requantize_scaled(wide, target, by_row=scale.numel() > 1)
    base = weight.to(torch.bfloat16) if weight.dtype in FP8_DTYPES else weight
    # In place where it can be: memory for a new tensor costs more than the sum.
    fused = delta.add_(base) if delta.dtype is base.dtype else delta + base
    return (to_fp8(fused, target) if target in FP8_DTYPES else fused.to(target)), None


def apply_loras(
    model_sd: StateDict,
    lora_sd_and_strengths: Sequence[LoraStateDictWithStrength],
    dtype: torch.dtype | None = None,
    destination_sd: StateDict | None = None,
) -> StateDict:
    """`model_sd` with LoRAs fused, the rest cast to `dtype` if given; written to `destination_sd` if given.

    Scaled fp8 weights stay what they are, and so do all scales.

    LoRA keys are as after `LTXV_LORA_COMFY_RENAMING_MAP`; other namings are understood as `match_lora` says.
    The tensors of `model_sd` are neither changed nor shared with the result. Raises `CheckpointError` for a
    LoRA that fits no weight at all.
    """
    sd, loras = model_sd.sd, lora_sd_and_strengths
    targets = {
        key.removesuffix(".weight"): tuple(v.shape) for key, v in sd.items() if key.endswith(".weight")
    }
    matches = [_match(lora.state_dict.sd, targets) for lora in loras]
    result = {} if destination_sd is None else destination_sd.sd
    for key, value in sd.items():
        module = key.removesuffix(".weight")
        touching = [(lora, match) for lora, match in zip(loras, matches) if module in match.modules]
        scale = sd.get(f"{key}_scale") if value.dtype in FP8_DTYPES else None
        if touching and key != module:
            pairs = [_pair(lora, match, module, value.device) for lora, match in touching]
            result[key], scale = fuse(value, pairs, dtype, scale)
            if scale is not None:
                result[f"{key}_scale"] = scale
        elif key not in result:
            is_scaled = scale is not None or key.endswith("_scale")
            cast = dtype is not None and value.is_floating_point() and not is_scaled
            result[key] = value.to(dtype if cast else value.dtype, copy=True)
    return StateDict.of(result, model_sd.device)


def _match(lora: Mapping[str, torch.Tensor], targets: Mapping[str, tuple[int, ...]]) -> LoraMatch:
    match = match_lora("The LoRA", {key: tuple(value.shape) for key, value in lora.items()}, targets)
    match.check(targets)
    return match


def _pair(lora: LoraStateDictWithStrength, match: LoraMatch, module: str, device: torch.device) -> Pair:
    sd = lora.state_dict.sd
    return match.modules[module].pair(lambda key: sd[key].to(device), lora.strength)
