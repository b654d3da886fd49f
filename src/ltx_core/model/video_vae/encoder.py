"""The video encoder: pixels to normalised latents."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError, ShapeError
from ltx_core.model.common.checks import check_tensor
from ltx_core.model.common.statistics import LatentStatistics
from ltx_core.model.video_vae.blocks import Downsample, Flow, Strided, Style, encoder_block
from ltx_core.model.video_vae.config import VideoVAEConfig, parse_blocks
from ltx_core.model.video_vae.enums import LogVarianceType, PaddingModeType
from ltx_core.model.video_vae.layers import make_norm, patchify
from ltx_core.model.video_vae.tiling import SPACE, TIME, AnyTiling, blend, encode_tiles

log = logging.getLogger(__name__)


class VideoEncoder(nn.Module):
    """(B, 3, F, H, W) in [-1, 1] to (B, C, 1 + (F - 1) / 8, H / 32, W / 32). Always causal, deterministic."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        if config.latent_log_var is LogVarianceType.NONE:
            raise ConfigError(
                "config.vae.latent_log_var is 'none'; expected uniform, constant or per_channel."
            )
        self.patch_size, self.norm_layer = config.patch_size, config.norm_layer
        self.in_channels = config.in_channels
        self.latent_channels, self.latent_log_var = config.latent_channels, config.latent_log_var
        style = Style(config.norm_layer, config.spatial_padding_mode or PaddingModeType.ZEROS)
        self.per_channel_statistics = LatentStatistics(config.latent_channels)
        width = config.latent_channels  # the first width is that of the latent
        self.conv_in = style.conv(config.in_channels * config.patch_size**2, width)
        self.down_blocks = nn.ModuleList()
        self.strides = [(config.patch_size, True)]  # of height and width, and whether they need multiples
        for entry in parse_blocks(config.encoder_blocks):
            block, width = encoder_block(entry, width, style)
            self.down_blocks.append(block)
            if isinstance(block, Downsample | Strided):
                self.strides.append((block.stride[1], isinstance(block, Downsample)))
        self.conv_norm_out = make_norm(config.norm_layer, width)
        variances = self.latent_channels if self.latent_log_var is LogVarianceType.PER_CHANNEL else 1
        self.conv_out = style.conv(width, self.latent_channels + variances)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Normalised latent means. Frames beyond 8k + 1 are dropped, with a warning.

        Raises `ShapeError` for a video that cannot be cut into latents, `InputError` for another dtype than
        the network's.
        """
        means, _ = self.encode_moments(sample)
        return self.per_channel_statistics.normalize(means)

    def encode_moments(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(means, log variances) before normalisation; the log variances broadcast against the means."""
        self._check(video, self.conv_in.conv.weight.dtype)
        flow = Flow(causal=True)
        x = self.conv_in(patchify(crop_frames(video), self.patch_size))
        for block in self.down_blocks:
            x = block(x, flow)
        moments = self.conv_out(F.silu(self.conv_norm_out(x)))
        return moments[:, : self.latent_channels], moments[:, self.latent_channels :]

    def tiled_encode(self, video: torch.Tensor, tiling_config: AnyTiling | None = None) -> torch.Tensor:
        """`forward` tile by tile, blended in latent space; `video` may stay on another device.

        Raises `InputError` for overlaps under 16 frames or 64 pixels on an axis that is tiled, and what
        `forward` raises; floating-point pixels are converted to the network's dtype.
        """
        self._check(video, None, multiple=SPACE)
        video = crop_frames(video)
        weight = self.conv_in.conv.weight
        grid = (1 + (video.shape[2] - 1) // TIME, *(side // SPACE for side in video.shape[3:]))
        tiles = encode_tiles(tiling_config, grid)
        shape = (video.shape[0], self.latent_channels, *grid)
        latents = ((tile, self(video[tile.pixels].to(weight))) for tile in tiles)
        return blend(latents, shape, weight.device).to(weight.dtype)

    def _check(self, video: torch.Tensor, dtype: torch.dtype | None, multiple: int = 1) -> None:
        """Refuse what cannot be encoded. multiple: of what the sides must be multiples, whatever the blocks."""
        sizes = ("batch", self.in_channels, "frames", "height", "width")
        check_tensor(video, "The video encoder", "pixels", sizes, dtype, scaling="; scale them to [-1, 1]")
        least = 2 if self.conv_in.conv.padding_mode == "reflect" else 1  # an edge has nothing to reflect
        if any(side % multiple or self._latent_side(side) < least for side in video.shape[3:]):
            factor = math.lcm(math.prod(stride for stride, _ in self.strides), multiple)
            raise ShapeError(
                f"A video of {video.shape[4]}x{video.shape[3]} pixels cannot be cut into latents; use sides "
                f"that are multiples of {factor}, at least {least * factor}."
            )

    def _latent_side(self, side: int) -> int:
        """A side in latents for one in pixels; 0 if a patch or a fold does not come out even."""
        for stride, folds in self.strides:
            if folds and side % stride:
                return 0
            side = -(-side // stride)
        return side


def crop_frames(video: torch.Tensor) -> torch.Tensor:
    """The first 8k + 1 frames."""
    surplus = (video.shape[2] - 1) % TIME
    if not surplus:
        return video
    kept = video.shape[2] - surplus
    log.warning("Cropping %d frames to %d, the nearest number of the form 8k + 1.", video.shape[2], kept)
    return video[:, :, :kept]
