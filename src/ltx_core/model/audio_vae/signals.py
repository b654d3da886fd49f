"""Signals (B, C, N) as pictures of one row, (B, C, 1, N): these may have their channels side by side in memory."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def as_signal(x: Tensor) -> Tensor:
    """(B, C, N) as (B, C, 1, N), laid out in memory as its device convolves quickest.

    On CPUs oneDNN goes over channels that lie side by side: with few of them up to three times as fast. PyTorch keeps
    that order in what it makes of a picture, but not of (B, C, N).
    """
    x = x[:, :, None]
    side_by_side = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return x.contiguous(memory_format=torch.channels_last) if side_by_side else x


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` of (B, C, 1, N)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = (0, *cast(tuple[int], self.padding))
        stride, dilation = (1, *self.stride), (1, *self.dilation)
        return F.conv2d(input, weight[:, :, None], bias, stride, padding, dilation, self.groups)


class ConvTranspose1d(nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` of (B, C, 1, N)."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding, extra = (0, *cast(tuple[int], self.padding)), (0, *self.output_padding)
        stride, dilation = (1, *self.stride), (1, *self.dilation)
        weight = self.weight[:, :, None]
        return F.conv_transpose2d(input, weight, self.bias, stride, padding, extra, self.groups, dilation)
