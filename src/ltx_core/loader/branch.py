"""LoRAs beside the weights: what they add to a layer's output, computed with every call of the layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ltx_core.loader.lora import Pair


class Branch:
    """A forward hook of a linear layer: adds ``scale * (x @ down^T) @ up^T`` for each update to its output."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = tuple(pairs)

    def __call__(self, layer: nn.Module, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        (x,) = given
        for down, up, scale in self.pairs:
            output = torch.add(output, F.linear(F.linear(x, down), up), alpha=scale)
        return output
