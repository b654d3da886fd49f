"""AdaLN-single: from noise levels to the scales, shifts and gates of the blocks, once per distinct level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import InputError

TIMESTEP_FEATURES = 256
MAX_PERIOD = 10000
# Of the 128 frequencies those that float32 exp rounded to the farther neighbour where the reference was recorded.
REFERENCE_ROUNDS_UP = [12, 106]


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels with the tokens that have them.

    values: (B or 1, T or 1) when `index` is None; else (U,), the distinct levels.
    index: None or (B, T), the entry of `values` for each token.
    """

    values: torch.Tensor
    index: torch.Tensor | None = None

    def scaled(self, factor: float) -> NoiseLevels:
        return NoiseLevels(self.values * factor, self.index)


def token_levels(timesteps: torch.Tensor, batch: int, tokens: int) -> NoiseLevels:
    """The levels of (B, T, 1), (B, T) or (B, 1) timesteps, each distinct one once.

    A video has 32k tokens and mostly one or two levels; the embedding is worth computing per level. Counting
    the levels waits for the device once.
    """
    if timesteps.numel() not in (batch, batch * tokens):
        raise InputError(
            f"Timesteps have shape {tuple(timesteps.shape)}; expected one per sample ({batch}, 1) "
            f"or one per token ({batch}, {tokens}, 1)."
        )
    levels = timesteps.reshape(batch, -1)
    if levels.shape[1] == 1:
        return NoiseLevels(levels)
    values, index = torch.unique(levels, return_inverse=True)
    if len(values) == 1:
        return NoiseLevels(values[:, None])
    if len(values) <= batch and bool((index == index[:, :1]).all()):
        return NoiseLevels(levels[:, :1])
    if 2 * len(values) > levels.numel():
        return NoiseLevels(levels)
    return NoiseLevels(values, index)


def sample_levels(sigma: torch.Tensor, batch: int) -> NoiseLevels:
    """The levels of a (B,) sigma, or of a single one for the whole batch."""
    if sigma.numel() not in (1, batch):
        raise InputError(f"Sigma has shape {tuple(sigma.shape)}; expected a single value or ({batch},).")
    return NoiseLevels(sigma.reshape(-1, 1))


@dataclass(frozen=True)
class Modulation:
    """k vectors of width D for every token, held once per distinct noise level and spread on demand.

    rows: (B or 1, T or 1, k, D) when `index` is None; else (U, k, D).
    index: None or (B, T), the entry of `rows` for each token.
    """

    rows: torch.Tensor
    index: torch.Tensor | None = None

    def vector(self, number: int, offset: torch.Tensor) -> torch.Tensor:
        """Vector `number` plus `offset` (D,), broadcastable to (B, T, D)."""
        return self._spread(self._values(number, offset))

    def factor(self, number: int, offset: torch.Tensor) -> torch.Tensor:
        """1 + `vector`."""
        return self._spread(1 + self._values(number, offset))

    def _values(self, number: int, offset: torch.Tensor) -> torch.Tensor:
        return self.rows[..., number, :] + offset.to(self.rows.dtype)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.index is None else F.embedding(self.index, values)


# A tensor of all tokens is new memory, which costs about as much as what is computed in it: sums are made in their
# products' place. Each operation is rounded by itself: in bfloat16 a fused one would give other results.


def modulate(x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x * factor + shift."""
    return (x * factor).add_(shift)


def add_gated(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x + y * gate; y is as large as x."""
    return (y * gate).add_(x)


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
    """Linear, SiLU, linear: features (N, 256) to (N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_FEATURES, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class AdaLayerNormSingle(nn.Module):
    """Noise levels to `num_vectors` vectors of width `dim`, one set for all blocks (PixArt-alpha)."""

    def __init__(self, dim: int, num_vectors: int) -> None:
        super().__init__()
        self.num_vectors = num_vectors
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(dim)})
        self.linear = nn.Linear(dim, num_vectors * dim)

    def forward(self, levels: NoiseLevels, dtype: torch.dtype) -> tuple[Modulation, Modulation]:
        """(modulation with k = num_vectors, embedded timestep with k = 1) at scaled levels, in `dtype`."""
        shape = levels.values.shape
        embedded = self.emb["timestep_embedder"](timestep_features(levels.values.flatten()).to(dtype))
        vectors = self.linear(F.silu(embedded))
        return (
            Modulation(vectors.view(*shape, self.num_vectors, -1), levels.index),
            Modulation(embedded.view(*shape, 1, -1), levels.index),
        )
