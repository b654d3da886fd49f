"""AdaLN-single: from noise levels to the scales, shifts and gates of the blocks, once per distinct level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.errors import InputError
from ltx_core.model.common.timesteps import TimestepEmbedding


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


class AdaLayerNormSingle(nn.Module):
    """Noise levels to `num_vectors` vectors of width `dim`, one set for all blocks (PixArt-alpha)."""

    def __init__(self, dim: int, num_vectors: int) -> None:
        super().__init__()
        self.num_vectors = num_vectors
        self.emb = TimestepEmbedding(dim)
        self.linear = nn.Linear(dim, num_vectors * dim)

    def forward(self, levels: NoiseLevels, dtype: torch.dtype) -> tuple[Modulation, Modulation]:
        """(modulation with k = num_vectors, embedded timestep with k = 1) at scaled levels, in `dtype`."""
        shape = levels.values.shape
        embedded = self.emb(levels.values.flatten(), dtype)
        vectors = self.linear(F.silu(embedded))
        return (
            Modulation(vectors.view(*shape, self.num_vectors, -1), levels.index),
            Modulation(embedded.view(*shape, 1, -1), levels.index),
        )
