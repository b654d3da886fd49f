"""Self-attention masks of states with appended tokens: who may attend to whom, and how strongly."""

from __future__ import annotations

import torch

from ltx_core.errors import InputError
from ltx_core.types import LatentState


def resolve_cross_mask(
    attention_mask: float | torch.Tensor,
    num_new_tokens: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(B, M) weights of M new tokens from one number, one per token (M,), or (1, M) or (B, M).

    Raises `InputError` for other shapes.
    """
    mask = torch.as_tensor(attention_mask, dtype=dtype, device=device)
    if mask.ndim > 2:
        raise InputError(f"The attention mask has {mask.ndim} dimensions; give a number, (M,) or (B, M).")
    if mask.ndim and mask.shape[-1] != num_new_tokens:
        raise InputError(f"The attention mask covers {mask.shape[-1]} tokens, but {num_new_tokens} are new.")
    if mask.ndim == 2 and mask.shape[0] not in (1, batch_size):
        raise InputError(f"The attention mask is for a batch of {mask.shape[0]}, the state for {batch_size}.")
    return mask.expand(batch_size, num_new_tokens)


def build_attention_mask(
    existing_mask: torch.Tensor | None,
    num_noisy_tokens: int,
    num_new_tokens: int,
    num_existing_tokens: int,
    cross_mask: torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(B, N + M, N + M) attention weights after M tokens were appended to N.

    Among the N, `existing_mask` (B, N, N) holds, or full attention; among the M, full attention. The first
    `num_noisy_tokens` and the new ones see each other by `cross_mask` (B, M); tokens appended earlier and the
    new ones do not.
    """
    old, total = num_existing_tokens, num_existing_tokens + num_new_tokens
    mask = torch.zeros(cross_mask.shape[0], total, total, device=device, dtype=dtype)
    mask[:, :old, :old] = 1 if existing_mask is None else existing_mask
    mask[:, old:, old:] = 1
    mask[:, :num_noisy_tokens, old:] = cross_mask[:, None, :]
    mask[:, old:, :num_noisy_tokens] = cross_mask[:, :, None]
    return mask


def update_attention_mask(
    latent_state: LatentState,
    attention_mask: float | torch.Tensor | None,
    num_noisy_tokens: int,
    num_new_tokens: int,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor | None:
    """The mask of `latent_state` once M tokens are appended to it; see `build_attention_mask`.

    attention_mask: as in `resolve_cross_mask`; None means full weight, and no mask at all if there was none.
    """
    existing = latent_state.attention_mask
    if attention_mask is None and existing is None:
        return None
    cross = resolve_cross_mask(
        1.0 if attention_mask is None else attention_mask, num_new_tokens, batch_size, device, dtype
    )
    tokens = latent_state.latent.shape[1]
    return build_attention_mask(existing, num_noisy_tokens, num_new_tokens, tokens, cross, device, dtype)
