"""Latent grids to token sequences and back, and where each token lies in time and space."""

from __future__ import annotations

import math

import torch

from ltx_core.errors import InputError, LayoutError, ShapeError
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoLatentShape, VideoPixelShape

__all__ = [
    "AudioLatentShape",
    "AudioPatchifier",
    "SpatioTemporalScaleFactors",
    "VideoLatentPatchifier",
    "VideoLatentShape",
    "VideoPixelShape",
    "get_pixel_coords",
]


class VideoLatentPatchifier:
    """Cuts each latent frame into patches of `patch_size` x `patch_size` cells (1 in every pipeline)."""

    def __init__(self, patch_size: int) -> None:
        self._side = patch_size

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """(frames, rows, columns) of a patch."""
        return 1, self._side, self._side

    def get_token_count(self, tgt_shape: VideoLatentShape) -> int:
        return tgt_shape.frames * tgt_shape.height * tgt_shape.width // self._side**2

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, F, H, W) to (B, F * H/p * W/p, C * p * p).

        Tokens are ordered by frame, row, column; within a token by channel, row, column.
        Raises `LayoutError` for other axes, and for sides that are not made of whole patches.
        """
        side = self._side
        if latents.ndim != 5 or latents.shape[3] % side or latents.shape[4] % side:
            raise LayoutError(
                f"A latent of shape {tuple(latents.shape)} cannot be cut into tokens; expected (batch, channels, "
                f"frames, height, width){f', both sides multiples of {side}' if side > 1 else ''}."
            )
        batch, channels, frames, height, width = latents.shape
        x = latents.reshape(batch, channels, frames, height // side, side, width // side, side)
        return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 6).flatten(1, 3).contiguous()

    def unpatchify(self, latents: torch.Tensor, output_shape: VideoLatentShape) -> torch.Tensor:
        """The inverse of `patchify`: (B, T, D) to (B, C, F, H, W) of `output_shape`; C follows from D.

        Raises `LayoutError` for tokens that do not fill it.
        """
        side = self._side
        grid = output_shape.frames, output_shape.height // side, output_shape.width // side
        if latents.ndim != 3 or latents.shape[1] != math.prod(grid) or latents.shape[2] % side**2:
            raise LayoutError(
                f"Tokens of shape {tuple(latents.shape)} do not fill {output_shape}; expected (batch, "
                f"{math.prod(grid)}, channels{f' x {side**2}' if side > 1 else ''})."
            )
        batch, _, dim = latents.shape
        x = latents.reshape(batch, *grid, dim // side**2, side, side)
        return x.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).contiguous()

    def get_patch_grid_bounds(
        self, output_shape: AudioLatentShape | VideoLatentShape, device: torch.device | None = None
    ) -> torch.Tensor:
        """Latent coordinates [start, end) of each token: (B, 3, T, 2) int64, axes frame, row, column.

        Raises `InputError` for a shape that is not a video's, `ShapeError` for an empty one.
        """
        if not isinstance(output_shape, VideoLatentShape):
            raise InputError(f"A video patchifier needs a VideoLatentShape, not {output_shape!r}.")
        batch, _, *sizes = output_shape
        if min(batch, *sizes) <= 0:
            raise ShapeError(f"{output_shape} is empty; every size must be at least 1.")
        starts = [torch.arange(0, n, p, device=device) for n, p in zip(sizes, self.patch_size)]
        start = torch.stack(torch.meshgrid(*starts, indexing="ij")).flatten(1)
        end = start + torch.tensor(self.patch_size, device=device)[:, None]
        return torch.stack([start, end], dim=-1).expand(batch, -1, -1, -1)


def get_pixel_coords(
    latent_coords: torch.Tensor, scale_factors: SpatioTemporalScaleFactors, causal_fix: bool = False
) -> torch.Tensor:
    """Latent coordinates (B, 3, T, 2) to pixel coordinates, same shape and dtype.

    causal_fix: the first latent frame holds a single pixel frame, so later ones begin that much earlier:
    latent frame 0 covers pixel frame [0, 1), k > 0 covers [8k - 7, 8k + 1).
    """
    factors = torch.tensor(scale_factors, device=latent_coords.device).view(1, 3, 1, 1)
    frame, *space = (latent_coords * factors).unbind(1)
    if causal_fix:
        frame = (frame + 1 - scale_factors[0]).clamp(min=0)
    return torch.stack([frame, *space], dim=1)


class AudioPatchifier:
    """One token per latent frame; `patch_size` does not change the layout.

    sample_rate, hop_length, audio_latent_downsample_factor: of the mel front end and the audio VAE; they give
    the duration of a latent frame (40 ms by default). is_causal: the first latent frame covers one mel frame.
    shift: index of the first latent frame.
    """

    def __init__(
        self,
        patch_size: int,
        sample_rate: int = 16000,
        hop_length: int = 160,
        audio_latent_downsample_factor: int = 4,
        is_causal: bool = True,
        shift: int = 0,
    ) -> None:
        self._side = patch_size
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.audio_latent_downsample_factor = audio_latent_downsample_factor
        self.is_causal = is_causal
        self.shift = shift

    @property
    def patch_size(self) -> tuple[int, int, int]:
        return 1, self._side, self._side

    def get_token_count(self, tgt_shape: AudioLatentShape) -> int:
        return tgt_shape.frames

    def patchify(self, audio_latents: torch.Tensor) -> torch.Tensor:
        """(B, C, T, M) to (B, T, C * M), by channel, then mel bin. Raises `LayoutError` for other axes."""
        if audio_latents.ndim != 4:
            raise LayoutError(
                f"A latent of shape {tuple(audio_latents.shape)} cannot be cut into tokens; "
                "expected (batch, channels, frames, mel bins)."
            )
        return audio_latents.permute(0, 2, 1, 3).flatten(2)

    def unpatchify(self, audio_latents: torch.Tensor, output_shape: AudioLatentShape) -> torch.Tensor:
        """The inverse of `patchify`: (B, T, C * M) to (B, C, T, M). Raises `LayoutError` for another width."""
        channel = output_shape.channels, output_shape.mel_bins
        if audio_latents.ndim != 3 or audio_latents.shape[2] != math.prod(channel):
            raise LayoutError(
                f"Tokens of shape {tuple(audio_latents.shape)} do not fill {output_shape}; expected (batch, tokens, "
                f"{math.prod(channel)})."
            )
        return audio_latents.unflatten(2, channel).transpose(1, 2)

    def get_patch_grid_bounds(
        self, output_shape: AudioLatentShape | VideoLatentShape, device: torch.device | None = None
    ) -> torch.Tensor:
        """Time span [start, end) of each token in seconds: (B, 1, T, 2) float32.

        Raises `InputError` for a shape that is not an audio's.
        """
        if not isinstance(output_shape, AudioLatentShape):
            raise InputError(f"An audio patchifier needs an AudioLatentShape, not {output_shape!r}.")
        last = self.shift + output_shape.frames
        edges = self._seconds(torch.arange(self.shift, last + 1, dtype=torch.float32, device=device))
        return torch.stack([edges[:-1], edges[1:]], dim=-1).expand(output_shape.batch, 1, -1, -1)

    def _seconds(self, frames: torch.Tensor) -> torch.Tensor:
        """When latent frames begin."""
        mel = frames * self.audio_latent_downsample_factor
        if self.is_causal:
            mel = (mel + 1 - self.audio_latent_downsample_factor).clamp(min=0)
        return mel * self.hop_length / self.sample_rate
