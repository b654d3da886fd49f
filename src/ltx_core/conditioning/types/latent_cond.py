"""Items that fix part of the target itself: latent frames, or whatever a mask covers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ltx_core.conditioning.exceptions import ConditioningError, ConditioningRangeError
from ltx_core.tools import VideoLatentTools
from ltx_core.types import LatentState, VideoLatentShape


@dataclass(eq=False)
class VideoConditionByLatentIndex:
    """Latent frames in place of the target's.

    latent: (B, C, f, H, W) on the target's grid. strength: 1 keeps them exactly, 0 not at all.
    latent_idx: the first latent frame they stand for.
    """

    latent: torch.Tensor
    strength: float
    latent_idx: int

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        """Raises `ConditioningError` for another grid, `ConditioningRangeError` beyond the last frame."""
        target = latent_tools.target_shape
        given = VideoLatentShape.from_torch_shape(self.latent.shape)
        if given._replace(frames=target.frames) != target:
            raise ConditioningError(f"The conditioning latent is {given}, which does not fit {target}.")
        if self.latent_idx < 0 or self.latent_idx + given.frames > target.frames:
            raise ConditioningRangeError(
                f"Latent frames {self.latent_idx} to {self.latent_idx + given.frames - 1} are given, but the "
                f"video has only latent frames 0 to {target.frames - 1}."
            )
        tokens = latent_tools.patchifier.patchify(self.latent)
        start = latent_tools.patchifier.get_token_count(target._replace(frames=self.latent_idx))
        where = slice(start, start + tokens.shape[1])
        clean, mask = latent_state.clean_latent.clone(), latent_state.denoise_mask.clone()
        clean[:, where] = tokens
        mask[:, where] = 1 - self.strength
        return replace(latent_state, clean_latent=clean, denoise_mask=mask)


@dataclass(eq=False)
class VideoConditionByMask:
    """A whole latent, kept where a mask says so.

    latent: (B, C, F, H, W). mask: (B, F, H, W), 1 = keep. strength: how firmly, as above.
    """

    latent: torch.Tensor
    mask: torch.Tensor
    strength: float = 1.0

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        """Raises `ConditioningError` for a latent or mask that is not on the target's grid."""
        target = latent_tools.target_shape
        grid = (target.batch, *target[2:])
        if tuple(self.latent.shape) != tuple(target) or tuple(self.mask.shape) != grid:
            raise ConditioningError(
                f"A latent of shape {tuple(self.latent.shape)} and a mask of shape {tuple(self.mask.shape)} "
                f"do not fit {target}."
            )
        patchify, count = latent_tools.patchifier.patchify, target.token_count()
        keep = patchify(self.mask[:, None].to(latent_state.latent))
        clean, mask = latent_state.clean_latent.clone(), latent_state.denoise_mask.clone()
        clean[:, :count] = clean[:, :count] * (1 - keep) + patchify(self.latent) * keep
        mask[:, :count] = mask[:, :count] * (1 - keep) + (1 - self.strength) * keep
        return replace(latent_state, clean_latent=clean, denoise_mask=mask)
