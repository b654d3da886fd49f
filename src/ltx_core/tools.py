"""From the shape of a latent to the token state that a sampler works on, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.errors import ShapeError
from ltx_core.types import (
    VIDEO_SCALE_FACTORS,
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
)

DEFAULT_SCALE_FACTORS = VIDEO_SCALE_FACTORS


class LatentTools:
    """What conditioning and sampling need to know about one stream: its grid, its layout, where its tokens lie."""

    patchifier: Any
    target_shape: Any

    def positions(self, device: torch.device | None = None) -> torch.Tensor:
        """Where the target tokens lie: [start, end) in seconds, and rows and columns, (B, 3 or 1, T, 2) float32."""
        raise NotImplementedError

    def create_initial_state(
        self, device: torch.device, dtype: torch.dtype, initial_latent: torch.Tensor | None = None
    ) -> LatentState:
        """A patchified state to denoise in full: `initial_latent` (in its own dtype) or zeros of `dtype`.

        Raises `ShapeError` (an AssertionError) if `initial_latent` is not of the target shape.
        """
        shape = self.target_shape.to_torch_shape()
        latent = torch.zeros(shape, dtype=dtype, device=device) if initial_latent is None else initial_latent
        if latent.shape != shape:
            raise ShapeError(
                f"The initial latent has shape {tuple(latent.shape)}, but {self.target_shape} is needed; "
                "check the size and length of the source."
            )
        mask = torch.ones(self.target_shape.mask_shape(), dtype=torch.float32, device=device)
        state = LatentState(latent, mask, self.positions(device), clean_latent=latent.clone())
        return self.patchify(state)

    def patchify(self, latent_state: LatentState) -> LatentState:
        """Grids to tokens; positions are tokens already. Raises `ShapeError` for another shape."""
        shape = self.target_shape.to_torch_shape()
        if latent_state.latent.shape != shape:
            raise ShapeError(f"The latent has shape {tuple(latent_state.latent.shape)}, not {tuple(shape)}.")
        tokens = self.patchifier.patchify
        keyframes = latent_state.keyframes_mask
        return replace(
            latent_state,
            latent=tokens(latent_state.latent),
            clean_latent=tokens(latent_state.clean_latent),
            denoise_mask=tokens(latent_state.denoise_mask),
            keyframes_mask=None if keyframes is None else tokens(keyframes),
        )

    def unpatchify(self, latent_state: LatentState) -> LatentState:
        """Tokens to grids: the inverse of `patchify`. Appended tokens must have been cleared."""
        shape, mask_shape = self.target_shape, self.target_shape.mask_shape()
        grid = self.patchifier.unpatchify
        keyframes = latent_state.keyframes_mask
        return replace(
            latent_state,
            latent=grid(latent_state.latent, shape),
            clean_latent=grid(latent_state.clean_latent, shape),
            denoise_mask=grid(latent_state.denoise_mask, mask_shape),
            keyframes_mask=None if keyframes is None else grid(keyframes, mask_shape),
        )

    def clear_conditioning(self, latent_state: LatentState) -> LatentState:
        """The target tokens alone, with a mask of ones and no attention or keyframes mask."""
        count = self.patchifier.get_token_count(self.target_shape)
        return replace(
            latent_state,
            latent=latent_state.latent[:, :count],
            clean_latent=latent_state.clean_latent[:, :count],
            denoise_mask=torch.ones_like(latent_state.denoise_mask[:, :count]),
            positions=latent_state.positions[:, :, :count],
            attention_mask=None,
            keyframes_mask=None,
        )


@dataclass(frozen=True)
class VideoLatentTools(LatentTools):
    """Tools of a video stream.

    fps: frames per second, gives token times. scale_factors: pixels per latent cell.
    causal_fix: the first latent frame holds a single pixel frame.
    """

    patchifier: VideoLatentPatchifier
    target_shape: VideoLatentShape
    fps: float
    scale_factors: SpatioTemporalScaleFactors = DEFAULT_SCALE_FACTORS
    causal_fix: bool = True

    def pixel_coords(
        self, shape: VideoLatentShape, device: torch.device | None = None, causal_fix: bool = True
    ) -> torch.Tensor:
        """Pixel coordinates [start, end) of the tokens of a grid from frame 0 on: (B, 3, T, 2) int64."""
        bounds = self.patchifier.get_patch_grid_bounds(shape, device)
        return get_pixel_coords(bounds, self.scale_factors, causal_fix and self.causal_fix)

    def to_positions(self, pixel_coords: torch.Tensor) -> torch.Tensor:
        """Pixel coordinates to positions (B, 3, T, 2): seconds, rows, columns; always float32."""
        frames, *space = pixel_coords.float().unbind(1)
        return torch.stack([frames / self.fps, *space], dim=1)

    def positions(self, device: torch.device | None = None) -> torch.Tensor:
        """Positions of the target tokens."""
        return self.to_positions(self.pixel_coords(self.target_shape, device))

    def create_initial_state(
        self, device: torch.device, dtype: torch.dtype, initial_latent: torch.Tensor | None = None
    ) -> LatentState:
        """As for any stream; the tokens of latent frame 0 are marked as a single pixel frame each."""
        state = super().create_initial_state(device, dtype, initial_latent)
        first_frame = self.patchifier.get_token_count(self.target_shape._replace(frames=1))
        marks = torch.zeros_like(state.denoise_mask)
        marks[:, :first_frame] = 1
        return replace(state, keyframes_mask=marks)

    def clear_conditioning(self, latent_state: LatentState) -> LatentState:
        """The target tokens alone; generated keyframes move from their slots to `generated_keyframes`."""
        keyframes = self.extract_generated_keyframes(latent_state)
        return replace(super().clear_conditioning(latent_state), generated_keyframes=keyframes)

    def extract_generated_keyframes(self, latent_state: LatentState) -> torch.Tensor | None:
        """The slots' tokens as latent frames (B, C, K, H, W), None for a state without slots.

        Raises `ShapeError` if the layout does not fit the state.
        """
        layout = latent_state.generated_keyframe_layout
        if layout is None:
            return None
        frame = self.target_shape._replace(frames=1)
        if layout.tokens_per_keyframe != self.patchifier.get_token_count(frame):
            raise ShapeError(
                f"A keyframe slot has {layout.tokens_per_keyframe} tokens, but a latent frame of "
                f"{self.target_shape} has {self.patchifier.get_token_count(frame)}."
            )
        tokens = latent_state.latent[:, layout.token_slice]
        if tokens.shape[1] != layout.num_tokens:
            raise ShapeError(
                f"The keyframe slots end at token {layout.token_slice.stop}, but the state has only "
                f"{latent_state.latent.shape[1]} tokens."
            )
        return self.patchifier.unpatchify(tokens, self.target_shape._replace(frames=layout.num_keyframes))


@dataclass(frozen=True)
class AudioLatentTools(LatentTools):
    """Tools of an audio stream."""

    patchifier: AudioPatchifier
    target_shape: AudioLatentShape

    def positions(self, device: torch.device | None = None) -> torch.Tensor:
        """Time spans of the target tokens in seconds: (B, 1, T, 2) float32."""
        return self.patchifier.get_patch_grid_bounds(self.target_shape, device)
