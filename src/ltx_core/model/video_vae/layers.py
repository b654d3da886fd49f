"""Primitive operations of the video VAE: causal convolution, norms, patches, statistics."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.model.common.convolution import Conv3d
from ltx_core.model.common.folding import Stride
from ltx_core.model.common.normalization import PixelNorm
from ltx_core.model.video_vae.enums import NormLayerType, PaddingModeType


class CausalConv3d(nn.Module):
    """3x3x3 convolution whose time axis is padded with copies of the edge frames.

    causal: two copies of the first frame in front; otherwise one in front and one of the last behind.
    Height and width are padded by one in `padding_mode`. Key names carry the official doubled ``conv.conv``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride = (1, 1, 1),
        *,
        padding_mode: PaddingModeType = PaddingModeType.ZEROS,
    ) -> None:
        super().__init__()
        self.conv = Conv3d(
            in_channels, out_channels, 3, stride=stride, padding=(0, 1, 1), padding_mode=padding_mode.value
        )

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        first = x[:, :, :1]
        parts = [first, first, x] if causal else [first, x, x[:, :, -1:]]
        return self.conv(torch.cat(parts, dim=2))


def make_norm(kind: NormLayerType, channels: int) -> nn.Module:
    """The configured norm: parameter-free pixel norm, or group norm of 32 groups (`ConfigError` if uneven)."""
    if kind is NormLayerType.GROUP_NORM:
        if channels % 32:
            raise ConfigError(
                f"config.vae.norm_layer is 'group_norm', whose 32 groups do not divide {channels} channels; "
                "expected 'pixel_norm' or widths that are multiples of 32."
            )
        return nn.GroupNorm(32, channels, eps=1e-6)
    return PixelNorm(eps=1e-8)


class PerChannelStatistics(nn.Module):
    """Mean and deviation of each latent channel over the training data; part of the file, not learnt here.

    Before it is loaded it changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The official keys are spelt with hyphens.
        self.register_buffer("std-of-means", torch.ones(channels))
        self.register_buffer("mean-of-means", torch.zeros(channels))

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std per channel; x (B, C, F, H, W) in any dtype, which is kept."""
        return (x - self._get("mean-of-means", x)) / self._get("std-of-means", x)

    def un_normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x * std + mean per channel, the inverse of `normalize`."""
        return x * self._get("std-of-means", x) + self._get("mean-of-means", x)

    def _get(self, name: str, like: torch.Tensor) -> torch.Tensor:
        return self.get_buffer(name).view(1, -1, 1, 1, 1).to(like)


def patchify(x: torch.Tensor, p: int) -> torch.Tensor:
    """(B, C, F, H p, W p) -> (B, C p p, F, H, W); within a channel the column offset is the slower index."""
    b, c, f, h, w = x.shape
    x = x.reshape(b, c, f, h // p, p, w // p, p).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(b, c * p * p, f, h // p, w // p)


def unpatchify(x: torch.Tensor, p: int) -> torch.Tensor:
    """The inverse of `patchify`."""
    b, c, f, h, w = x.shape
    x = x.reshape(b, c // (p * p), p, p, f, h, w).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(b, c // (p * p), f, h * p, w * p)


class TimestepEmbedding(nn.Module):
    """Two linear layers on a 256-wide sinusoid of the (scaled) timestep; cosines first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(256, channels), "linear_2": nn.Linear(channels, channels)}
        )

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B, channels). The sinusoid is float32, the layers have their weights' dtype."""
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        features = sinusoid(timestep).to(next(first.parameters()).dtype)
        return second(F.silu(first(features)))


def sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """[cos(t w), sin(t w)] at 128 frequencies w = exp(-ln(10000) k / 128): (B,) -> (B, 256) float32."""
    k = torch.arange(128, dtype=torch.float32, device=timestep.device)
    decay = torch.log(torch.tensor(10000.0, dtype=torch.float32, device="cpu")).item()
    angles = timestep.float()[:, None] * torch.exp(-decay * k / 128)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
