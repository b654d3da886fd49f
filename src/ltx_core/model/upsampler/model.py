"""The latent upsampler: residual convolutions around one pixel shuffle in space, time, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.config import Configurator, parse_config
from ltx_core.model.common.checks import check_tensor
from ltx_core.model.common.convolution import Conv3d
from ltx_core.model.common.folding import Stride, depth_to_space
from ltx_core.model.upsampler.config import RATIOS, UpsamplerConfig


class ResBlock(nn.Module):
    """silu(norm(conv(silu(norm(conv(x))))) + x), zero padded on every axis."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(dims, channels, channels), _conv(dims, channels, channels)
        self.norm1, self.norm2 = nn.GroupNorm(32, channels), nn.GroupNorm(32, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + x)


class BlurDown(nn.Module):
    """Depthwise 5x5 binomial blur with a stride; no operation for stride 1."""

    kernel: torch.Tensor

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device="cpu")
        self.register_buffer("kernel", (taps[:, None] * taps / 256)[None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            return x
        kernel = self.kernel.to(x).expand(x.shape[1], 1, 5, 5)
        return F.conv2d(x, kernel, stride=self.stride, padding=2, groups=x.shape[1])


class RationalResampler(nn.Module):
    """Height and width times num / den: a shuffle up by num, a blur down by den."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.up, down = RATIOS[scale]
        self.conv = _conv(2, channels, self.up**2 * channels)
        self.blur_down = BlurDown(down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blur_down(F.pixel_shuffle(self.conv(x), self.up))


class LatentUpsampler(nn.Module):
    """(B, C, F, H, W) un-normalised latents to twice (or 1.5 times) the size, or F to 2 F - 1 frames."""

    def __init__(
        self,
        in_channels: int = 128,
        mid_channels: int = 512,
        num_blocks_per_stage: int = 4,
        dims: int = 3,
        spatial_upsample: bool = True,
        temporal_upsample: bool = False,
        spatial_scale: float = 2.0,
        rational_resampler: bool = False,
    ) -> None:
        super().__init__()
        config = UpsamplerConfig(
            in_channels, mid_channels, num_blocks_per_stage, dims,
            spatial_upsample, temporal_upsample, spatial_scale, rational_resampler,
        )  # fmt: skip
        for name, value in vars(config).items():
            setattr(self, name, value)
        self.factors: Stride = (1 + temporal_upsample, 1 + spatial_upsample, 1 + spatial_upsample)
        # By what it multiplies frames (2 for 2 F - 1) and sides.
        self.growth = (self.factors[0], spatial_scale if config.uses_ratio else self.factors[1])
        mid = mid_channels
        self.initial_conv = _conv(dims, in_channels, mid)
        self.initial_norm = nn.GroupNorm(32, mid)
        self.res_blocks = nn.ModuleList(ResBlock(mid, dims) for _ in range(num_blocks_per_stage))
        if config.uses_ratio:
            self.upsampler: nn.Module = RationalResampler(mid, spatial_scale)
        else:
            fold = self.factors[0] * self.factors[1] * self.factors[2]
            self.upsampler = nn.Sequential(_conv(3 if temporal_upsample else 2, mid, fold * mid))
        self.post_upsample_res_blocks = nn.ModuleList(
            ResBlock(mid, dims) for _ in range(num_blocks_per_stage)
        )
        self.final_conv = _conv(dims, mid, in_channels)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Raises what `check` raises."""
        self.check(latent)
        if self.dims == 2:  # every frame on its own, through the whole network
            x = latent.transpose(1, 2).flatten(0, 1)
            return self._network(x).unflatten(0, (latent.shape[0], -1)).transpose(1, 2)
        return self._network(latent)

    def check(self, latent: torch.Tensor) -> None:
        """Raise `ShapeError`, or `InputError` for another dtype than the network's."""
        weight = self.final_conv.weight
        sizes = ("batch", weight.shape[0], "frames", "height", "width")
        check_tensor(latent, "The upsampler", "latents", sizes, weight.dtype)

    def _network(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.initial_norm(self.initial_conv(x)))
        for block in self.res_blocks:
            x = block(x)
        x = self._upsample(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)

    def _upsample(self, x: torch.Tensor) -> torch.Tensor:
        if self.factors[0] == 2:
            # The first frame stands for itself alone: of its two copies one is dropped.
            return depth_to_space(self.upsampler(x), self.factors)[:, :, 1:]
        if self.dims == 2:
            return F.pixel_shuffle(self.upsampler(x), 2)
        frames = x.transpose(1, 2).flatten(0, 1)
        frames = self.upsampler(frames)
        if isinstance(self.upsampler, nn.Sequential):
            frames = F.pixel_shuffle(frames, 2)
        return frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _conv(dims: int, in_channels: int, out_channels: int) -> nn.Conv2d | Conv3d:
    return (nn.Conv2d if dims == 2 else Conv3d)(in_channels, out_channels, 3, padding=1)


class LatentUpsamplerConfigurator(Configurator[LatentUpsampler]):
    """Makes a `LatentUpsampler` from its file's configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LatentUpsampler:
        return LatentUpsampler(**vars(parse_config(UpsamplerConfig, config, "config")))


def upsample_video(
    latent: torch.Tensor, video_encoder: Any, upsampler: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Upsample a normalised latent: the network works on un-normalised ones.

    video_encoder: whatever has ``per_channel_statistics``, those of the latent's VAE. upsampler: a
    `LatentUpsampler`, or what is called like one.
    """
    if isinstance(upsampler, LatentUpsampler):
        upsampler.check(latent)
    statistics = video_encoder.per_channel_statistics
    return statistics.normalize(upsampler(statistics.un_normalize(latent)))
