"""From the caller's modalities to what needs no weights: which streams run, checks, rotary tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ltx_core.errors import DtypeError, InputError
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.rope import (
    generate_freq_grid_np,
    generate_freq_grid_pytorch,
    precompute_freqs_cis,
)
from ltx_core.model.transformer.state import RopeTables
from ltx_core.types import Modality


def passed_modalities(
    streams: tuple[StreamConfig, ...], video: Modality | None, audio: Modality | None
) -> dict[str, Modality]:
    """The modalities that are not None, by name, checked against the model's streams."""
    passed = {name: m for name, m in (("video", video), ("audio", audio)) if m is not None}
    if not passed:
        raise InputError("Neither video nor audio was passed; the transformer needs at least one of them.")
    by_name = {stream.name: stream for stream in streams}
    for name, modality in passed.items():
        if name not in by_name:
            raise InputError(f"{name.capitalize()} is not enabled for this model")
        for field in ("latent", "timesteps", "positions", "context"):
            check_is_tensor(getattr(modality, field), f"{name} {field}")
        check_latent(by_name[name], modality.latent)
    sizes = {name: modality.latent.shape[0] for name, modality in passed.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"Video and audio differ in batch size: {sizes}.")
    return passed


def check_is_tensor(value: object, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise DtypeError(f"The {name} is {value!r}; expected a tensor.")


def check_latent(stream: StreamConfig, latent: torch.Tensor) -> None:
    if latent.ndim != 3 or latent.shape[1] == 0 or latent.shape[2] != stream.in_channels:
        raise InputError(
            f"The {stream.name} latent has shape {tuple(latent.shape)}; "
            f"expected (batch, tokens, {stream.in_channels}) with at least one token."
        )


def fitting(mask: torch.Tensor | None, name: str, *forms: tuple[int, ...]) -> torch.Tensor | None:
    """The mask, if there is one. Raises `InputError` unless it has one of the forms but for sizes of 1."""
    if mask is None:
        return None
    check_is_tensor(mask, name)
    shape = tuple(mask.shape)
    if not any(len(shape) == len(form) and all(n in (1, m) for n, m in zip(shape, form)) for form in forms):
        known = " or ".join(map(str, forms))
        raise InputError(f"The {name} has shape {shape}; expected {known}, where a size may also be 1.")
    return mask


def check_context(stream: StreamConfig, context: torch.Tensor, batch: int) -> None:
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != stream.dim:
        raise InputError(
            f"The {stream.name} text context has shape {tuple(context.shape)}; "
            f"expected ({batch}, text tokens, {stream.dim})."
        )


def rope_tables(
    config: TransformerConfig, streams: tuple[StreamConfig, ...], modalities: Mapping[str, Modality]
) -> dict[str, RopeTables]:
    """The rotary tables of the streams passed, by name, in the dtype of their latents.

    Where both are passed they also get tables of one width on their common axis, time.
    """
    generator = generate_freq_grid_np if config.double_precision_rope else generate_freq_grid_pytorch
    common_extent = max(stream.max_pos[0] for stream in streams)

    def table(
        stream: StreamConfig, positions: torch.Tensor, dim: int, max_pos: tuple[int, ...], middle: bool
    ):
        return precompute_freqs_cis(
            positions,
            dim,
            modalities[stream.name].latent.dtype,
            config.positional_embedding_theta,
            max_pos,
            middle,
            stream.heads,
            config.rope_type,
            generator,
        )

    tables = {}
    for stream in (s for s in streams if s.name in modalities):
        positions, cross = modalities[stream.name].positions, None
        own = table(stream, positions, stream.dim, stream.max_pos, config.use_middle_indices_grid)
        if len(modalities) == 2:
            cross = table(stream, positions[:, :1], config.audio_cross_attention_dim, (common_extent,), True)
        tables[stream.name] = RopeTables(own, cross)
    return tables
