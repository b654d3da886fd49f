"""The residual blocks and resamplers that a configuration's block lists name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError, ShapeError
from ltx_core.model.common.folding import Stride, depth_to_space, space_to_depth
from ltx_core.model.common.timesteps import TimestepEmbedding
from ltx_core.model.video_vae.config import Block
from ltx_core.model.video_vae.enums import NormLayerType, PaddingModeType
from ltx_core.model.video_vae.layers import CausalConv3d, make_norm

STRIDES: dict[str, Stride] = {"time": (2, 1, 1), "space": (1, 2, 2), "all": (2, 2, 2)}


@dataclass(frozen=True)
class Flow:
    """What every block of a pass is told: causality, the timestep embedding's input, the noise source."""

    causal: bool
    timestep: torch.Tensor | None = None
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common."""

    norm: NormLayerType
    padding: PaddingModeType
    timestep_conditioning: bool = False

    def conv(self, in_channels: int, out_channels: int, stride: Stride = (1, 1, 1)) -> CausalConv3d:
        return CausalConv3d(in_channels, out_channels, stride, padding_mode=self.padding)


class ResBlock(nn.Module):
    """norm, silu, conv, twice, added to the input; optionally modulated by the timestep and given noise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: Style,
        *,
        noise: bool = False,
        timestep: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(style.norm, in_channels)
        self.conv1 = style.conv(in_channels, out_channels)
        self.norm2 = make_norm(style.norm, out_channels)
        self.conv2 = style.conv(out_channels, out_channels)
        self.widens = in_channels != out_channels
        if noise and self.widens:
            raise ConfigError(
                f"config.vae: inject_noise is told for a block from {in_channels} to {out_channels} channels; "
                "expected a block that keeps their number."
            )
        if self.widens:
            self.norm3 = nn.GroupNorm(1, in_channels, eps=1e-6)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, 1)
        self.noise = noise
        if noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(in_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(in_channels, 1, 1))
        if timestep:
            self.scale_shift_table = nn.Parameter(torch.zeros(4, in_channels))
        self.timestep = timestep

    def forward(self, x: torch.Tensor, flow: Flow, embedding: torch.Tensor | None = None) -> torch.Tensor:
        rows = (None,) * 4 if embedding is None else modulation(self.scale_shift_table, embedding, x.dtype)
        h = self.conv1(F.silu(modulate(self.norm1(x), *rows[:2])), flow.causal)
        h = self._add_noise(h, 1, flow)
        h = self.conv2(F.silu(modulate(self.norm2(h), *rows[2:])), flow.causal)
        h = self._add_noise(h, 2, flow)
        return (self.conv_shortcut(self.norm3(x)) if self.widens else x) + h

    def _add_noise(self, h: torch.Tensor, which: int, flow: Flow) -> torch.Tensor:
        if not self.noise:
            return h
        # One field for all frames and samples; drawn whatever its scale, so that draws keep their order.
        field = torch.randn(h.shape[-2:], dtype=h.dtype, device=h.device, generator=flow.generator)
        return h + field * getattr(self, f"per_channel_scale{which}")[:, None]


def modulation(table: torch.Tensor, embedding: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """The rows of a table (k, C) plus the embedding (B, k C) of a timestep: k tensors (B, C, 1, 1, 1)."""
    rows = table.to(dtype) + embedding.reshape(-1, *table.shape)
    return tuple(row[:, :, None, None, None] for row in rows.unbind(dim=1))


def modulate(x: torch.Tensor, shift: torch.Tensor | None, scale: torch.Tensor | None) -> torch.Tensor:
    return x if shift is None or scale is None else x * (1 + scale) + shift


class ResBlocks(nn.Module):
    """`res_x`: residual blocks of one width, with one timestep embedding for all of them."""

    def __init__(self, channels: int, layers: int, style: Style, *, noise: bool = False) -> None:
        super().__init__()
        timestep = style.timestep_conditioning
        if timestep:
            self.time_embedder = TimestepEmbedding(4 * channels)
        self.timestep = timestep
        self.res_blocks = nn.ModuleList(
            ResBlock(channels, channels, style, noise=noise, timestep=timestep) for _ in range(layers)
        )

    def forward(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        embedding = self.time_embedder(flow.timestep, x.dtype) if self.timestep else None
        for block in self.res_blocks:
            x = block(x, flow, embedding)
        return x


class Strided(nn.Module):
    """`compress_*` of an encoder: a causal convolution that skips."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, style: Style) -> None:
        super().__init__()
        self.stride = stride
        self.conv = style.conv(in_channels, out_channels, stride).conv

    def forward(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        first = x[:, :, :1]
        return self.conv(torch.cat([first, first, x], dim=2))


class Downsample(nn.Module):
    """`compress_*_res` of an encoder: space-to-depth of a convolution, plus that of the input, averaged."""

    def __init__(self, in_channels: int, out_channels: int, stride: Stride, style: Style) -> None:
        super().__init__()
        fold = stride[0] * stride[1] * stride[2]
        if out_channels % fold or in_channels * fold % out_channels:
            raise ConfigError(
                f"config.vae: cannot fold {in_channels} into {out_channels} channels by {stride}."
            )
        self.stride, self.group = stride, in_channels * fold // out_channels
        self.conv = style.conv(in_channels, out_channels // fold)

    def forward(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        if self.stride[0] == 2:
            if x.shape[2] % 2 == 0:
                raise ShapeError(
                    f"This video encoder folds more than 8 frames into one and here meets {x.shape[2]} of them, "
                    "where it needs an odd number; use 16k + 1 or 32k + 1 frames."
                )
            x = torch.cat([x[:, :, :1], x], dim=2)
        skip = space_to_depth(x, self.stride).unflatten(1, (-1, self.group)).mean(dim=2)
        return space_to_depth(self.conv(x, causal=flow.causal), self.stride) + skip


class Upsample(nn.Module):
    """`compress_*` of a decoder: depth-to-space of a convolution, optionally plus that of the input."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: Stride, style: Style, *, residual: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.fold = stride, stride[0] * stride[1] * stride[2]
        if residual and (in_channels % self.fold or self.fold * out_channels % in_channels):
            raise ConfigError(
                f"config.vae: a residual cannot unfold {in_channels} into {out_channels} channels by {stride}."
            )
        self.repeats = self.fold * out_channels // in_channels if residual else 0
        self.conv = style.conv(in_channels, self.fold * out_channels)

    def forward(self, x: torch.Tensor, flow: Flow) -> torch.Tensor:
        y = self._unfold(self.conv(x, flow.causal))
        return y + self._unfold(x).repeat(1, self.repeats, 1, 1, 1) if self.repeats else y

    def _unfold(self, x: torch.Tensor) -> torch.Tensor:
        x = depth_to_space(x, self.stride)
        return x[:, :, 1:] if self.stride[0] == 2 else x


def encoder_block(block: Block, channels: int, style: Style) -> tuple[nn.Module, int]:
    """(module, its width) of one entry of an encoder's list. Raises `ConfigError` for an unknown name."""
    name = block.name
    if name == "res_x":
        return ResBlocks(channels, block.num_layers, style), channels
    if name == "res_x_y":
        wider = channels * block.multiplier(2)
        return ResBlock(channels, wider, style), wider
    stride = STRIDES.get(name.removeprefix("compress_").removesuffix("_res").removesuffix("_x_y"))
    if stride is None or not name.startswith("compress_") or (name.endswith("_x_y") and stride != (2, 2, 2)):
        raise ConfigError(f"unknown block: {name}")
    if name.endswith("_res"):
        wider = channels * block.multiplier(2)
        return Downsample(channels, wider, stride, style), wider
    wider = channels * block.multiplier(2) if name.endswith("_x_y") else channels
    return Strided(channels, wider, stride, style), wider


def decoder_block(block: Block, channels: int, style: Style) -> tuple[nn.Module, int]:
    """(module, its width) of one entry of a decoder's list. Raises `ConfigError` for an unknown name."""
    name = block.name
    if name == "res_x":
        return ResBlocks(channels, block.num_layers, style, noise=block.flag("inject_noise")), channels
    if name == "res_x_y":
        narrower = _narrowed(channels, block, 2)
        return ResBlock(channels, narrower, style, noise=block.flag("inject_noise")), narrower
    stride = STRIDES.get(name.removeprefix("compress_"))
    if stride is None or not name.startswith("compress_"):
        raise ConfigError(f"unknown layer: {name}")
    narrower = _narrowed(channels, block, 1)
    residual = name == "compress_all" and block.flag("residual")
    return Upsample(channels, narrower, stride, style, residual=residual), narrower


def _narrowed(channels: int, block: Block, default: int) -> int:
    """The width behind a block that divides it. Raises `ConfigError` if that leaves none."""
    divisor = block.multiplier(default)
    if divisor > channels:
        raise ConfigError(
            f"config.vae: multiplier of the block {block.name} is {divisor}; expected at most its {channels} "
            "channels."
        )
    return channels // divisor
