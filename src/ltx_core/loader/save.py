"""Writing checkpoints in the official format: the way back from modules to one monolithic file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ltx_core.errors import CheckpointError
from ltx_core.utils import whole_file

_STATISTICS = "per_channel_statistics."


def _autoencoder(part: str, prefix: str) -> tuple[tuple[str, str], ...]:
    """Encoder and decoder share their statistics, which stand beside them."""
    return (_STATISTICS, f"{prefix}.{_STATISTICS}"), ("", f"{prefix}.{part}.")


# Component -> (prefix of its keys in the module, prefix in the file), the longest first.
OFFICIAL_PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "transformer": (("", "model.diffusion_model."),),
    "video_encoder": _autoencoder("encoder", "vae"),
    "video_decoder": _autoencoder("decoder", "vae"),
    "audio_encoder": _autoencoder("encoder", "audio_vae"),
    "audio_decoder": _autoencoder("decoder", "audio_vae"),
    "vocoder": (("", "vocoder."),),
    "embeddings_processor": (
        ("feature_extractor.", "text_embedding_projection."),
        ("video_connector.", "model.diffusion_model.video_embeddings_connector."),
        ("audio_connector.", "model.diffusion_model.audio_embeddings_connector."),
    ),
    "upsampler": (("", ""),),
}


def official_state_dict(component: str, module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of `module` under the names that an official file gives them, floats cast to `dtype`."""
    named = {}
    for key, tensor in module.state_dict().items():
        inside, outside = next(pair for pair in OFFICIAL_PREFIXES[component] if key.startswith(pair[0]))
        value = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        named[outside + key.removeprefix(inside)] = value.contiguous()
    return named


def save_checkpoint(
    path: str | Path,
    components: Mapping[str, nn.Module],
    config: Mapping[str, Any],
    model_version: str,
    dtype: torch.dtype = torch.bfloat16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one official-format file; complete under its name or not there at all.

    components: by the names of `OFFICIAL_PREFIXES`. config: the nested configuration, stored as JSON.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, module in components.items():
        tensors |= official_state_dict(name, module, dtype)
    header = {"config": json.dumps(config), "model_version": model_version, **(metadata or {})}
    write_tensors(path, tensors, header)


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file, complete under its name or not there at all, and return its path.

    Raises `CheckpointError` where it cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with whole_file(path) as partial:
            save_file(dict(tensors), partial, metadata=dict(metadata or {}))
    except SafetensorError as error:  # what the library makes of an OSError
        raise CheckpointError(
            f"{path} could not be written ({error}); make room there, or give another path."
        ) from error
    return Path(path)
