"""A moving average of a model's weights, which is what is evaluated and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average w <- d w + (1 - d) v, with d growing to `decay` so that the start is soon forgotten."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.weights, self._live(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, object]:
        return {"weights": self.weights, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        stored = state["weights"]
        for mine, theirs in zip(self.weights, stored):  # type: ignore[call-overload]
            mine.copy_(theirs)
        self.updates = int(state["updates"])  # type: ignore[call-overload]

    def _live(self) -> list[Tensor]:
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    @torch.no_grad()
    def _swap(self) -> None:
        for mine, theirs in zip(self.weights, self._live()):
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)
