"""Puts the files of single trainings together into one official-format file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ltx_core.errors import InputError
from ltx_core.loader import Checkpoint, describe, write_tensors
from ltx_core.loader.describe import MODEL
from ltx_core.quantization.fp8 import FP8_DTYPES, requantize_scaled

# Section of the configuration -> what the keys of its tensors begin with.
TENSORS_OF = {
    "vae": "vae.",
    "audio_vae": "audio_vae.",
    "vocoder": "vocoder.",
    "transformer": "model.diffusion_model.",
}
BLOCKS = "model.diffusion_model.transformer_blocks."
SCALE = "_scale"  # what the name of a weight in fp8 ends with for its scale


def assemble(
    parts: Sequence[Path], path: Path, metadata: Mapping[str, str] | None = None, *, fp8: bool = False
) -> Path:
    """Write the tensors and metadata of `parts` as one file; where two have the same, the later counts.

    Of a section that describes no tensor of its part, as a vocoder's of the spectrograms it takes, the part that has
    them counts. `metadata` are entries to add. With `fp8` the matrices of the transformer's blocks are stored in 8
    bits (e4m3) with a scale each, as published fp8 files have them.
    Raises `InputError` if there are no parts, and for one that is no part of a model, as a LoRA.
    """
    if not parts:
        raise InputError("There is nothing to put together; give the files of trainings with --parts.")
    tensors: dict[str, Any] = {}
    config: dict[str, Any] = {}
    header: dict[str, str] = {}
    for part in parts:
        if (kind := describe(part).kind) != MODEL:
            raise InputError(
                f"{part} is no part of a model ({kind}); LoRAs and the like stay files of their own."
            )
        checkpoint = Checkpoint(part)
        added = {key: checkpoint.read(key) for key in checkpoint}
        tensors = {key: t for key, t in tensors.items() if key.removesuffix(SCALE) not in added} | added
        for section, value in checkpoint.config.items():
            prefix = TENSORS_OF.get(section, "")
            if section not in config or any(key.startswith(prefix) for key in checkpoint):
                config[section] = value
        header |= checkpoint.metadata
    if fp8:
        tensors = in_fp8(tensors)
    return write_tensors(path, tensors, header | {"config": json.dumps(config)} | dict(metadata or {}))


def in_fp8(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors with the matrices of transformer blocks as e4m3 codes and ``weight_scale``s; codes stay codes."""
    stored = dict(tensors)
    for key, value in tensors.items():
        matrix = key.startswith(BLOCKS) and key.endswith(".weight") and value.ndim == 2
        if matrix and value.dtype not in FP8_DTYPES:
            stored[key], stored[f"{key}{SCALE}"] = requantize_scaled(value.float())
    return stored
