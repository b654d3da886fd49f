"""Building blocks of the audio VAE: causal convolutions, residual blocks, resampling."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae.causality_axis import CausalityAxis
from ltx_core.model.common.normalization import NormType, PixelNorm

# Zero padding (frequency left, right, time top, bottom) of a 3x3 convolution, and of one with stride 2.
CONV_PADDING = {
    CausalityAxis.NONE: (1, 1, 1, 1),
    CausalityAxis.WIDTH: (2, 0, 1, 1),
    CausalityAxis.HEIGHT: (1, 1, 2, 0),
    CausalityAxis.WIDTH_COMPATIBILITY: (2, 0, 1, 1),
}
DOWNSAMPLE_PADDING = {
    CausalityAxis.NONE: (0, 1, 0, 1),
    CausalityAxis.WIDTH: (2, 0, 0, 1),
    CausalityAxis.HEIGHT: (0, 1, 2, 0),
    CausalityAxis.WIDTH_COMPATIBILITY: (1, 0, 0, 1),
}


class CausalConv2d(nn.Module):
    """Convolution of a (time, frequency) plane, causal along one axis; the key carries an extra ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, axis: CausalityAxis) -> None:
        super().__init__()
        self.padding = CONV_PADDING[axis] if kernel == 3 else (0, 0, 0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, self.padding))


def make_norm(norm_type: NormType, channels: int) -> nn.Module:
    """The configured norm: 32 groups (`ConfigError` if uneven), or parameter-free pixel norm."""
    if norm_type is NormType.GROUP:
        if channels % 32:
            raise ConfigError(
                f"config.audio_vae: the 32 groups of norm_type 'group' do not divide {channels} channels; "
                "expected 'pixel' or widths that are multiples of 32."
            )
        return nn.GroupNorm(32, channels, eps=1e-6)
    return PixelNorm(eps=1e-6)


class ResBlock(nn.Module):
    """Two convolutions behind norm and silu, added to the input (through a 1x1 where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, norm_type: NormType, axis: CausalityAxis) -> None:
        super().__init__()
        if norm_type is NormType.GROUP and axis is not CausalityAxis.NONE:
            raise ConfigError(
                "config.audio_vae: norm_type 'group' looks ahead; it needs causality_axis null."
            )
        self.norm1 = make_norm(norm_type, in_channels)
        self.conv1 = CausalConv2d(in_channels, out_channels, 3, axis)
        self.norm2 = make_norm(norm_type, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels, 3, axis)
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, 1, axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Downsample(nn.Module):
    """Half of both axes, by a strided convolution or (non-causal only) by averaging."""

    def __init__(self, channels: int, axis: CausalityAxis, *, with_conv: bool) -> None:
        super().__init__()
        if not with_conv and axis is not CausalityAxis.NONE:
            raise ConfigError(
                "config.audio_vae: resamp_with_conv false looks ahead; it needs causality_axis null."
            )
        self.padding = DOWNSAMPLE_PADDING[axis]
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Twice both axes; what a causal axis has too much at its start is dropped."""

    def __init__(self, channels: int, axis: CausalityAxis) -> None:
        super().__init__()
        self.axis = axis
        self.conv = CausalConv2d(channels, channels, 3, axis)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if self.axis is CausalityAxis.HEIGHT:
            return x[:, :, 1:]
        return x[..., 1:] if self.axis is CausalityAxis.WIDTH else x
