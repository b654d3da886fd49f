"""Norms over channels; those of the VAEs by the name a configuration gives them."""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn

from ltx_core.utils import rms_norm


class NormType(Enum):
    GROUP = "group"
    PIXEL = "pixel"


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + eps) at each position, in the dtype of x; no parameters."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(dim=1, keepdim=True) + self.eps)


class RMSNorm(nn.Module):
    """`rms_norm` over the last axis, times a weight."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)
