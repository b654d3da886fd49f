"""Self-attention over all positions of a spectrogram."""

from __future__ import annotations

from enum import Enum

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import UnsupportedConfigError
from ltx_core.model.audio_vae.layers import make_norm
from ltx_core.model.common.normalization import NormType


class AttentionType(Enum):
    VANILLA = "vanilla"
    LINEAR = "linear"
    NONE = "none"


class AttentionBlock(nn.Module):
    """x + proj(attention(norm(x))), one head, every time-frequency position attends to every other."""

    def __init__(self, channels: int, norm_type: NormType) -> None:
        super().__init__()
        self.norm = make_norm(norm_type, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm(x)
        q, k, v = (layer(n).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


def make_attention(kind: AttentionType, channels: int, norm_type: NormType) -> nn.Module:
    """The configured attention. Raises `UnsupportedConfigError` for the linear kind."""
    if kind is AttentionType.LINEAR:
        raise UnsupportedConfigError(
            "config.audio_vae: attn_type 'linear' is not implemented; expected 'vanilla'."
        )
    return AttentionBlock(channels, norm_type) if kind is AttentionType.VANILLA else nn.Identity()
