"""Reference clips and sounds as extra tokens, for in-context control."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ltx_core.conditioning.types.append import append_tokens
from ltx_core.tools import LatentTools, VideoLatentTools
from ltx_core.types import LatentState, VideoLatentShape


@dataclass(eq=False)
class VideoConditionByReferenceLatent:
    """A reference clip, as IC-LoRAs are trained with.

    latent: (B, C, f, h, w). downscale_factor: the clip's sides are 1/this of the target's.
    strength: 1 keeps it exactly. temporal_scale_factor: the clip has 1/this of the target's frames.
    """

    latent: torch.Tensor
    downscale_factor: int = 1
    strength: float = 1.0
    temporal_scale_factor: int = 1

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        shape = VideoLatentShape.from_torch_shape(self.latent.shape)
        coords = latent_tools.pixel_coords(shape, self.latent.device)
        positions = latent_tools.to_positions(coords)
        positions[:, 1:] *= self.downscale_factor
        if self.temporal_scale_factor != 1:
            # A reference frame lasts as long as several target frames, but the first of both begin together.
            first_frame_end = latent_state.positions[:, 0, 0, 1].view(-1, 1, 1).to(positions.device)
            times = coords[:, 0].float() / (latent_tools.fps / self.temporal_scale_factor)
            positions[:, 0] = (times - (self.temporal_scale_factor - 1) * first_frame_end).clamp(min=0)
        tokens = latent_tools.patchifier.patchify(self.latent)
        return append_tokens(latent_state, latent_tools, tokens, positions, 1 - self.strength)


@dataclass(eq=False)
class AudioConditionByReferenceLatent:
    """A reference sound.

    patchified: (B, T, D) tokens. positions: (B, 1, T, 2) seconds. strength: 1 keeps it exactly.
    """

    patchified: torch.Tensor
    positions: torch.Tensor
    strength: float = 1.0

    def apply_to(self, latent_state: LatentState, latent_tools: LatentTools) -> LatentState:
        positions = self.positions.float()
        return append_tokens(latent_state, latent_tools, self.patchified, positions, 1 - self.strength)
