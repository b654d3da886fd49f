"""Norms over channels, by the name a configuration gives them."""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn


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
