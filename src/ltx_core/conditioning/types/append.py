"""What all items that append tokens to a state have in common."""

from __future__ import annotations

from dataclasses import replace

import torch

from ltx_core.conditioning.exceptions import ConditioningError
from ltx_core.conditioning.mask_utils import update_attention_mask
from ltx_core.tools import LatentTools
from ltx_core.types import LatentState


def append_tokens(
    state: LatentState,
    tools: LatentTools,
    clean: torch.Tensor,
    positions: torch.Tensor,
    denoise: float,
    *,
    latent: torch.Tensor | None = None,
    keyframe: bool = False,
) -> LatentState:
    """The state with M more tokens at its end.

    clean: (B, M, D) what they are. positions: (B, axes, M, 2). denoise: their value in the denoise mask.
    latent: (B, M, D) where denoising starts, zeros by default. keyframe: their mark in the keyframes mask.
    Tokens appended before and the new ones do not attend to each other once there is an attention mask.
    Raises `ConditioningError` for tokens or positions that do not fit the state.
    """
    _check(state, clean, positions)
    batch, count, _ = clean.shape
    new = clean.new_full((batch, count, 1), denoise)
    marks = state.keyframes_mask
    if marks is not None:
        marks = torch.cat([marks, torch.full_like(new, float(keyframe), dtype=marks.dtype)], dim=1)
    latent = torch.zeros_like(clean) if latent is None else latent
    return replace(
        state,
        latent=torch.cat([state.latent, latent], dim=1),
        clean_latent=torch.cat([state.clean_latent, clean], dim=1),
        denoise_mask=torch.cat([state.denoise_mask, new], dim=1),
        positions=torch.cat([state.positions, positions.to(state.positions.device)], dim=2),
        keyframes_mask=marks,
        attention_mask=update_attention_mask(
            state, None, tools.target_shape.token_count(), count, batch, clean.device, clean.dtype
        ),
    )


def _check(state: LatentState, clean: torch.Tensor, positions: torch.Tensor) -> None:
    """Both must fit the state but for the number of tokens, in which they must agree."""
    batch, _, width = state.latent.shape
    if clean.ndim != 3 or (clean.shape[0], clean.shape[2]) != (batch, width):
        raise ConditioningError(
            f"The tokens to append have shape {tuple(clean.shape)}; the state takes ({batch}, tokens, {width})."
        )
    axes = state.positions.shape[1]
    if tuple(positions.shape) != (batch, axes, clean.shape[1], 2):
        raise ConditioningError(
            f"The positions of {clean.shape[1]} tokens to append have shape {tuple(positions.shape)}; "
            f"expected {(batch, axes, clean.shape[1], 2)}."
        )
