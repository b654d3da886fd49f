"""Noise levels as vectors: sinusoids, then two layers."""

from __future__ import annotations

from functools import lru_cache
from math import log

import torch
import torch.nn.functional as F
from torch import nn

TIMESTEP_FEATURES = 256
MAX_PERIOD = 10000
# Of the 128 frequencies those that float32 exp rounded to the farther neighbour where the reference was recorded.
REFERENCE_ROUNDS_UP = [12, 106]


def timestep_features(timesteps: torch.Tensor) -> torch.Tensor:
    """Sinusoids of (N,) scaled timesteps: cos then sin of t / 10000^(j / 128), (N, 256) float32.

    Evaluated in float32 in this order: t reaches 1000, where rounding is part of the result.
    """
    angles = timesteps.float()[:, None] * _timestep_frequencies(timesteps.device)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


@lru_cache(maxsize=16)
def _timestep_frequencies(device: torch.device) -> torch.Tensor:
    """(128,) float32, the same bits on every device and CPU.

    exp of float32 is rounded otherwise by the libraries of different CPUs, and times t = 1000 the last bit is 6e-5
    of an angle. So it is rounded here from float64, and as the reference's machine rounded it.
    """
    half = TIMESTEP_FEATURES // 2
    with torch.inference_mode(False):
        exponents = -log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device="cpu")
        frequencies = torch.exp((exponents / half).double()).float()
        above = torch.nextafter(frequencies, 2 * frequencies)
        frequencies[REFERENCE_ROUNDS_UP] = above[REFERENCE_ROUNDS_UP]
        return frequencies.to(device)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, linear on the features of scaled timesteps (N,): (N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = {"linear_1": nn.Linear(TIMESTEP_FEATURES, dim), "linear_2": nn.Linear(dim, dim)}
        self.timestep_embedder = nn.ModuleDict(layers)

    def forward(self, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """In `dtype`, that of the layers' weights."""
        first, second = self.timestep_embedder.values()
        return second(F.silu(first(timestep_features(timesteps).to(dtype))))
