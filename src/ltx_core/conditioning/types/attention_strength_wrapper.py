"""How strongly the target and the tokens that an item appends attend to each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ltx_core.conditioning.item import ConditioningItem
from ltx_core.conditioning.mask_utils import update_attention_mask
from ltx_core.tools import LatentTools
from ltx_core.types import LatentState


@dataclass(eq=False)
class ConditioningItemAttentionStrengthWrapper:
    """Another item, with attention between its M appended tokens and the target weighted.

    attention_mask: weights in [0, 1], one for all, one per token (M,), or (B, M).
    """

    conditioning: ConditioningItem
    attention_mask: float | torch.Tensor

    def apply_to(self, latent_state: LatentState, latent_tools: LatentTools) -> LatentState:
        """An item that appends nothing is applied as it is. Raises `InputError` for an odd mask size."""
        state = self.conditioning.apply_to(latent_state, latent_tools)
        batch, tokens, _ = state.latent.shape
        appended = tokens - latent_state.latent.shape[1]
        if appended == 0:
            return state
        mask = update_attention_mask(
            latent_state,
            self.attention_mask,
            latent_tools.target_shape.token_count(),
            appended,
            batch,
            state.latent.device,
            state.latent.dtype,
        )
        return replace(state, attention_mask=mask)
