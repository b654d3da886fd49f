"""Keyframes as extra tokens: given ones, and empty slots that are generated with the video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ltx_core.conditioning.exceptions import ConditioningError
from ltx_core.conditioning.types.append import append_tokens
from ltx_core.tools import VideoLatentTools
from ltx_core.types import GeneratedKeyframeLayout, LatentState, VideoLatentShape


@dataclass(eq=False)
class VideoConditionByKeyframeIndex:
    """Given latent frames at some pixel frame, as tokens beside the target's.

    keyframes: (B, C, f, h, w). frame_idx: the pixel frame they begin at. strength: 1 keeps them exactly.
    num_pixel_frames: 1 where each latent frame was encoded from a single picture.
    """

    keyframes: torch.Tensor
    frame_idx: int
    strength: float
    num_pixel_frames: int = 1

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        shape = VideoLatentShape.from_torch_shape(self.keyframes.shape)
        coords = latent_tools.pixel_coords(shape, self.keyframes.device, causal_fix=self.frame_idx == 0)
        coords[:, 0] += self.frame_idx
        if self.num_pixel_frames == 1:
            coords[:, 0, :, 1] = coords[:, 0, :, 0] + 1
        tokens = latent_tools.patchifier.patchify(self.keyframes)
        positions = latent_tools.to_positions(coords)
        return append_tokens(latent_state, latent_tools, tokens, positions, 1 - self.strength)


@dataclass(eq=False)
class VideoGeneratedKeyframeSlots:
    """Slots for keyframes that the model generates beside the video, one latent frame each.

    pixel_frame_indices: ascending pixel frames. initial_keyframes: None or (B, C, K, H, W) to start from.
    """

    pixel_frame_indices: Sequence[int]
    initial_keyframes: torch.Tensor | None = None

    def __post_init__(self) -> None:
        indices = list(self.pixel_frame_indices)
        if not indices or indices[0] < 0 or indices != sorted(set(indices)):
            raise ConditioningError(
                f"Keyframe slots are at pixel frames {indices}; give at least one, from 0 up, ascending."
            )

    def apply_to(self, latent_state: LatentState, latent_tools: VideoLatentTools) -> LatentState:
        """Raises `ConditioningError` for slots beyond the video, or for seeds of another shape."""
        target, indices = latent_tools.target_shape, tuple(self.pixel_frame_indices)
        if latent_state.generated_keyframe_layout is not None:
            raise ConditioningError("The state has keyframe slots already; give all of them in one item.")
        frames = target.upscale(latent_tools.scale_factors).frames
        if indices[-1] >= frames:
            raise ConditioningError(f"A keyframe slot is at pixel frame {indices[-1]} of {frames} (from 0).")
        shape = target._replace(frames=len(indices))
        seeds = self._seeds(latent_state, latent_tools, shape)
        coords = latent_tools.pixel_coords(shape, seeds.device, causal_fix=False)
        per_keyframe = seeds.shape[1] // len(indices)
        coords[:, 0, :, 0] = torch.tensor(indices, device=seeds.device).repeat_interleave(per_keyframe)
        coords[:, 0, :, 1] = coords[:, 0, :, 0] + 1
        state = append_tokens(
            latent_state,
            latent_tools,
            torch.zeros_like(seeds),
            latent_tools.to_positions(coords),
            denoise=1.0,
            latent=seeds,
            keyframe=True,
        )
        layout = GeneratedKeyframeLayout(indices, per_keyframe, latent_state.latent.shape[1])
        return replace(state, generated_keyframe_layout=layout)

    def _seeds(self, state: LatentState, tools: VideoLatentTools, shape: VideoLatentShape) -> torch.Tensor:
        """(B, K * H * W, D) tokens that the slots start from."""
        seeds = self.initial_keyframes
        if seeds is None:
            seeds = state.latent.new_zeros(shape)
        elif tuple(seeds.shape) != tuple(shape):
            raise ConditioningError(
                f"The initial keyframes have shape {tuple(seeds.shape)}, not {tuple(shape)}."
            )
        return tools.patchifier.patchify(seeds.to(state.latent))
