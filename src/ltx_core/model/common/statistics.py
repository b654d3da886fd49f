"""What latents are normalised by."""

from __future__ import annotations

import torch
from torch import nn


class LatentStatistics(nn.Module):
    """Mean and deviation of each feature of a latent over the training data; part of the file, not learnt here.

    A feature is a channel of video (B, C, F, H, W), and a channel at a frequency bin of audio (B, C, L, bins).
    Before it is loaded it changes nothing.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        # The official keys are spelt with hyphens.
        self.register_buffer("std-of-means", torch.ones(features))
        self.register_buffer("mean-of-means", torch.zeros(features))

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """(x - mean) / std of each feature; a latent in any dtype, which is kept."""
        return (x - self._get("mean-of-means", x)) / self._get("std-of-means", x)

    def un_normalize(self, x: torch.Tensor) -> torch.Tensor:
        """x * std + mean of each feature, the inverse of `normalize`."""
        return x * self._get("std-of-means", x) + self._get("mean-of-means", x)

    def _get(self, name: str, like: torch.Tensor) -> torch.Tensor:
        bins = like.shape[3] if like.ndim == 4 else 1
        return self.get_buffer(name).view(-1, 1, bins, *[1] * (like.ndim - 4)).to(like)
