"""LoRA files: their namings, which weights they touch, and fusing them exactly as the reference does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.state_dict import StateDict
from ltx_core.quantization.fp8 import FP8_DTYPES, requantize_scaled, to_fp8
from ltx_core.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP, SDOps

log = logging.getLogger(__name__)

# What other tools put before a module's name, the longest first.
PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.")
KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
}


class LoraPathStrengthAndSDOps(NamedTuple):
    """A LoRA file with its strength and key map."""

    path: str
    strength: float = 1.0
    sd_ops: SDOps = LTXV_LORA_COMFY_RENAMING_MAP


class LoraStateDictWithStrength(NamedTuple):
    """A LoRA in memory with its strength."""

    state_dict: StateDict
    strength: float


@dataclass(frozen=True)
class LoraKeys:
    """Where the parts of one module's LoRA are in a file. `scaled`: alpha / rank multiplies the strength."""

    down: str
    up: str
    alpha: str | None = None


@dataclass(frozen=True)
class LoraMatch:
    """How a LoRA file fits a model: module name -> keys, and the module names that fit nothing."""

    path: str
    modules: dict[str, LoraKeys]
    unmatched: tuple[str, ...]

    def check(self, targets: Collection[str]) -> None:
        """Raise `CheckpointError` if nothing fits; warn, with counts and examples, if something does not."""
        total = len(self.modules) + len(self.unmatched)
        if not self.modules:
            ours = ", ".join(sorted(targets)[:2])
            theirs = ", ".join(self.unmatched[:2]) or "no LoRA pairs at all"
            raise CheckpointError(
                f"{self.path} matches no weight of this model; it is a LoRA for another one, or no LoRA. "
                f"It has: {theirs}. The model has: {ours}."
            )
        if self.unmatched:
            log.warning(
                "%s: %d of %d modules match no weight and are left out (%s).",
                self.path,
                len(self.unmatched),
                total,
                ", ".join(self.unmatched[:3]),
            )


def match_lora(path: str, keys: Iterable[str], targets: Collection[str], sd_ops: SDOps | None = None) -> LoraMatch:
    """Sort the keys of a LoRA file by the modules (names without ``.weight``) of `targets`.

    Understands ComfyUI (``diffusion_model.``), bare, PEFT and diffusers (``transformer.``,
    ``base_model.model.``) and Kohya (``lora_unet_`` with underscores, ``lora_down`` / ``lora_up``) names.
    Alpha counts where the naming defines it (``lora_down`` / ``lora_up``), not beside ``lora_A`` / ``lora_B``.
    """
    flat = {target.replace(".", "_"): target for target in targets}
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        renamed = key if sd_ops is None else sd_ops.apply_to_key(key)
        suffix = next((s for s in PARTS if renamed is not None and renamed.endswith(s)), None)
        if renamed is None or suffix is None:
            continue
        module = _module_name(renamed.removesuffix(suffix), targets, flat)
        found.setdefault(module, {})[PARTS[suffix]] = key
    modules, unmatched = {}, []
    for module, parts in found.items():
        if module in targets and "A" in parts and "B" in parts:
            alpha = parts.get("alpha") if parts["A"].endswith(".lora_down.weight") else None
            modules[module] = LoraKeys(parts["A"], parts["B"], alpha)
        else:
            unmatched.append(module)
    return LoraMatch(path, modules, tuple(unmatched))


def _module_name(name: str, targets: Collection[str], flat: Mapping[str, str]) -> str:
    for prefix in PREFIXES:
        if name not in targets:
            name = name.removeprefix(prefix)
    for prefix in KOHYA_PREFIXES:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix), name)
    return name


class Pair(NamedTuple):
    """One low-rank update: ``scale * up @ down`` with down (rank, in), up (out, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def _pair(keys: LoraKeys, read: Callable[[str], torch.Tensor], strength: float) -> Pair:
    down, up = read(keys.down), read(keys.up)
    factor = 1.0 if keys.alpha is None else read(keys.alpha).item() / down.shape[0]
    return Pair(down, up, strength * factor)


class LoraFile:
    """A LoRA opened against a model: its pairs are read when a weight asks for them."""

    def __init__(self, lora: LoraPathStrengthAndSDOps, targets: Collection[str]) -> None:
        self.strength = lora.strength
        self.checkpoint = Checkpoint(lora.path)
        self.match = match_lora(str(lora.path), self.checkpoint, targets, lora.sd_ops)
        self.match.check(targets)
        self._pairs: dict[str, Pair] = {}

    def pair(self, module: str, device: torch.device) -> Pair | None:
        """The update of `module`, or None if this LoRA does not touch it. Read once, then kept on the CPU."""
        if module not in self.match.modules:
            return None
        if module not in self._pairs:
            self._pairs[module] = _pair(self.match.modules[module], self.checkpoint.read, self.strength)
        down, up, scale = self._pairs[module]
        return Pair(down.to(device), up.to(device), scale)


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

    dtype: of the result, default the weight's. scale: the ``weight_scale`` of a scaled fp8 weight.
    fp8 results are rounded to nearest, from bfloat16 without and from float32 with a scale.
    """
    target = dtype or weight.dtype
    compute = torch.bfloat16 if target in FP8_DTYPES else target
    delta = lora_delta(pairs, compute)
    if scale is not None:
        return requantize_scaled(weight.float() * scale + delta.float(), weight.dtype)
    base = weight.to(torch.bfloat16) if weight.dtype in FP8_DTYPES else weight
    fused = delta + base
    return (to_fp8(fused, target) if target in FP8_DTYPES else fused.to(target)), None


def apply_loras(
    model_sd: StateDict,
    lora_sd_and_strengths: Sequence[LoraStateDictWithStrength],
    dtype: torch.dtype | None = None,
    destination_sd: StateDict | None = None,
) -> StateDict:
    """`model_sd` with LoRAs fused, the rest cast to `dtype` if given; written to `destination_sd` if given.

    LoRA keys are as after `LTXV_LORA_COMFY_RENAMING_MAP`. The tensors of `model_sd` are not changed.
    """
    targets = {key.removesuffix(".weight") for key in model_sd.sd if key.endswith(".weight")}
    matches = [match_lora("LoRA", lora.state_dict.sd, targets) for lora in lora_sd_and_strengths]
    result = {} if destination_sd is None else destination_sd.sd
    for key, value in model_sd.sd.items():
        module = key.removesuffix(".weight")
        pairs = [
            _pair(match.modules[module], lambda k, lora=lora: lora.state_dict.sd[k].to(value.device), lora.strength)
            for lora, match in zip(lora_sd_and_strengths, matches)
            if key.endswith(".weight") and module in match.modules
        ]
        if pairs:
            scale = model_sd.sd.get(f"{module}.weight_scale")
            result[key], new_scale = fuse(value, pairs, None if scale is not None else dtype, scale)
            if new_scale is not None:
                result[f"{module}.weight_scale"] = new_scale
        elif key not in result:
            result[key] = value.to(dtype) if dtype and value.dtype not in FP8_DTYPES else value.clone()
    return StateDict.of(result, model_sd.device)
