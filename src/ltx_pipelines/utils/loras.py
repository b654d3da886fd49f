"""LoRA arguments as users write them, and what their files say about IC-LoRA use."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ltx_core.errors import InputError
from ltx_core.loader import Checkpoint, LoraPathStrengthAndSDOps
from ltx_pipelines.utils.constants import DEFAULT_LORA_STRENGTH
from ltx_pipelines.utils.validation import check_path, finite, items_of

log = logging.getLogger(__name__)


def as_loras(given: Iterable[Any] | Path | None, name: str = "loras") -> tuple[LoraPathStrengthAndSDOps, ...]:
    """LoRAs from paths, (path, strength) pairs or `LoraPathStrengthAndSDOps`; a single path is one, too.

    name: of the argument, for an error.
    """
    if isinstance(given, str | Path):
        given = [given]
    return tuple(map(_as_lora, items_of(name, given, "paths or (path, strength)")))


def _as_lora(item: Any) -> LoraPathStrengthAndSDOps:
    if not isinstance(item, LoraPathStrengthAndSDOps):
        parts = item if isinstance(item, tuple | list) else (item,)
        if not 1 <= len(parts) <= 3:
            raise InputError(f"{item!r} is not a LoRA; give a path, or (path, strength).")
        path, strength, *key_map = parts if len(parts) > 1 else (*parts, DEFAULT_LORA_STRENGTH)
        item = LoraPathStrengthAndSDOps(path, strength, *key_map)
    check_path("A LoRA", item.path)
    item = item._replace(path=str(item.path))
    return item._replace(strength=finite(f"The strength of {item.path}", item.strength))


def reference_downscale_factor(loras: Iterable[LoraPathStrengthAndSDOps]) -> int:
    """How much smaller than the video an IC-LoRA wants its reference clips: the one factor that is not 1.

    Raises `InputError` if two LoRAs disagree.
    """
    factors = {lora.path: _factor(lora.path) for lora in loras}
    distinct = {factor for factor in factors.values() if factor != 1}
    if len(distinct) > 1:
        listed = ", ".join(f"{path}: {factor}" for path, factor in factors.items() if factor != 1)
        raise InputError(
            f"These IC-LoRAs want reference clips of different sizes ({listed}); use one of them."
        )
    return distinct.pop() if distinct else 1


def _factor(path: str) -> int:
    stated = Checkpoint(path).metadata.get("reference_downscale_factor", "1")
    if not stated.strip().isdecimal() or int(stated) < 1:
        log.warning("%s: reference_downscale_factor is %r, no number from 1 on; using 1.", path, stated)
        return 1
    return int(stated)
