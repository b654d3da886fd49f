"""LoRA files: their namings, which weights of a model they touch, and their low-rank pairs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader.build import EVERYTHING, find_tensors
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.quantization.fp8 import FP8_DTYPES
from ltx_core.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP, SDOps

log = logging.getLogger(__name__)

Shape = tuple[int, ...]

# What tools put before a module's name, in the order in which it may pile up.
PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.")
KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
DOWN_ENDINGS = (".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight")
UP_ENDINGS = (".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight")
ALPHA_ENDING = ".alpha"
PARTS = dict.fromkeys(DOWN_ENDINGS, "down") | dict.fromkeys(UP_ENDINGS, "up") | {ALPHA_ENDING: "alpha"}


class LoraPathStrengthAndSDOps(NamedTuple):
    """A LoRA file with its strength and key map."""

    path: str
    strength: float = 1.0
    sd_ops: SDOps = LTXV_LORA_COMFY_RENAMING_MAP


class Pair(NamedTuple):
    """One low-rank update: ``scale * up @ down`` with down (rank, in), up (out, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def wide(key: str, half: torch.Tensor) -> torch.Tensor:
    """Half of a pair as it is, or in bfloat16, which holds all of its values, where it is stored in 8 bits."""
    if not half.dtype.is_floating_point:
        raise CheckpointError(f"{key} of a LoRA is {half.dtype}; only floating-point pairs are supported.")
    return half.bfloat16() if half.dtype in FP8_DTYPES else half


@dataclass(frozen=True)
class LoraKeys:
    """The tensors of one module's LoRA, by their names after the file's key map.

    alpha: alpha / rank multiplies the strength; the key of a tensor with one number, the number, or None.
    """

    down: str
    up: str
    alpha: str | float | None = None

    def pair(self, read: Callable[[str], torch.Tensor], strength: float) -> Pair:
        """The update at this strength, in the wider dtype of both halves."""
        down, up = (wide(key, read(key)) for key in (self.down, self.up))
        dtype = torch.promote_types(down.dtype, up.dtype)
        alpha = self.alpha
        number = read(alpha).item() if isinstance(alpha, str) else alpha
        scale = strength if number is None else strength * number / max(down.shape[0], 1)
        return Pair(down.to(dtype), up.to(dtype), scale)


@dataclass(frozen=True)
class LoraMatch:
    """How a LoRA file fits a model.

    modules: module name -> keys of its pair. unmatched: names that are no module of the model, or have half a
    pair only. ignored: keys that are no part of a pair (DoRA scales, full differences).
    """

    path: str
    modules: dict[str, LoraKeys]
    unmatched: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def check(self, targets: Iterable[str]) -> None:
        """Raise `CheckpointError` if nothing fits; warn, with counts and examples, if something does not."""
        left_out = self.unmatched + self.ignored
        if not self.modules:
            ours, theirs = ", ".join(sorted(targets)[:2]), ", ".join(left_out[:2]) or "no tensors"
            raise CheckpointError(
                f"{self.path} matches no weight of this model; it is a LoRA for another one, or no LoRA. "
                f"It has: {theirs}. The model has: {ours}."
            )
        if left_out:
            log.warning(
                "%s: %d modules are used; %d match no weight or are incomplete and %d keys are no part of a "
                "LoRA pair: these are left out (%s%s).",
                self.path,
                len(self.modules),
                len(self.unmatched),
                len(self.ignored),
                ", ".join(left_out[:3]),
                ", ..." if len(left_out) > 3 else "",
            )


def match_lora(
    path: str,
    shapes: Mapping[str, Shape],
    targets: Mapping[str, Shape],
    alpha: float | None = None,
) -> LoraMatch:
    """Sort the keys of a LoRA, after its key map and given with their shapes, by the modules it touches.

    targets: module name (without ``.weight``) -> weight shape (out, in).

    Understands the official naming (``lora_A`` / ``lora_B``, bare or after ``diffusion_model.``), PEFT and
    diffusers (``base_model.model.``, ``transformer.``), checkpoint names (``model.diffusion_model.``),
    ``lora_down`` / ``lora_up``, and Kohya (``lora_unet_`` with underscores).
    A tensor ``.alpha`` beside a pair, or else `alpha`, scales it by alpha / rank - except in the official
    naming, where the reference gives it no effect.

    Raises `CheckpointError` where a pair does not make a weight of its module's shape, or an alpha is no number.
    """
    flat = {target.replace(".", "_"): target for target in targets}
    found: dict[str, dict[str, str]] = {}
    ignored = []
    for key in shapes:
        ending = next((ending for ending in PARTS if key.endswith(ending)), None)
        if ending is None:
            ignored.append(key)
        else:
            found.setdefault(key.removesuffix(ending), {})[PARTS[ending]] = key
    modules, unmatched = {}, []
    for name, parts in found.items():
        module, is_official = _module(name, targets, flat)
        if module is None or "down" not in parts or "up" not in parts:
            unmatched.append(name)
            continue
        is_official &= ".lora_A." in parts["down"]
        scaled_by = None if is_official else parts.get("alpha", alpha)
        if isinstance(scaled_by, str) and math.prod(shapes[scaled_by]) != 1:
            raise CheckpointError(f"{path}: {scaled_by} has shape {shapes[scaled_by]}; expected one number.")
        modules[module] = LoraKeys(parts["down"], parts["up"], scaled_by)
        _check_shapes(path, module, shapes[parts["down"]], shapes[parts["up"]], targets[module])
    return LoraMatch(path, modules, tuple(unmatched), tuple(ignored))


def _module(name: str, targets: Mapping[str, Shape], flat: Mapping[str, str]) -> tuple[str | None, bool]:
    """The module that a name in a LoRA file means, or None; and whether the name is an official one."""
    bare = name.removeprefix("diffusion_model.")
    if bare in targets:
        return bare, True
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name in targets:
        return name, False
    for prefix in KOHYA_PREFIXES:
        if name.startswith(prefix):
            return flat.get(name.removeprefix(prefix)), False
    return None, False


def _check_shapes(path: str, module: str, down: Shape, up: Shape, weight: Shape) -> None:
    if len(down) == len(up) == 2 and up[1] == down[0] and (up[0], down[1]) == weight:
        return
    raise CheckpointError(
        f"{path}: the pair of {module} has shapes {down} and {up}, the model's weight is {weight}; "
        "this LoRA was made for another model."
    )


class LoraFile:
    """A LoRA opened against a model; it keeps nothing of what is read."""

    def __init__(self, path: str, targets: Mapping[str, Shape], sd_ops: SDOps | None = None) -> None:
        self.checkpoint, self._key_map = Checkpoint(path), sd_ops or EVERYTHING
        self._stored = find_tensors(self.checkpoint, self._key_map)
        shapes = {name: stored.shape for name, stored in self._stored.items()}
        self.match = match_lora(str(path), shapes, targets, adapter_alpha(self.checkpoint))
        self.match.check(targets)

    def bytes_in(self, dtype: torch.dtype) -> int:
        """What all its pairs take in `dtype`, from the header."""
        names = [name for pair in self.match.modules.values() for name in (pair.down, pair.up)]
        return sum(math.prod(self._stored[name].shape) for name in names) * dtype.itemsize

    def read(self, module: str) -> Pair:
        """The update of one of the modules in `match` at strength 1, on the CPU."""
        return self.match.modules[module].pair(self._read, 1.0)

    def _read(self, name: str) -> torch.Tensor:
        key = self._stored[name].key
        renamed = self._key_map.apply_to_key(key) or key
        return dict(self._key_map.apply_to_key_value(renamed, self.checkpoint.read(key)))[name]


def adapter_alpha(checkpoint: Checkpoint) -> float | None:
    """The ``lora_alpha`` that diffusers writes into the metadata and PEFT into adapter_config.json beside."""
    text = checkpoint.metadata.get("lora_adapter_metadata")
    beside = checkpoint.path.with_name("adapter_config.json")
    try:
        if text is None and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        settings = json.loads(text or "{}")
        alphas = {float(v) for key, v in settings.items() if key.rpartition(".")[2] == "lora_alpha"}
    except (OSError, ValueError, TypeError, AttributeError):
        log.warning("%s: the PEFT settings cannot be read; alpha is taken to be the rank.", checkpoint.path)
        return None
    return alphas.pop() if len(alphas) == 1 else None
