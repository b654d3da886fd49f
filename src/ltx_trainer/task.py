"""What the training loop asks of a thing that can be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltx_trainer.config import RunConfig, WorldRun
from ltx_trainer.world import World, WorldConfig

Batch = Any  # a tensor, or a dictionary of tensors and other values


class Task(ABC):
    """A model, its clips by number, and its losses.

    Batches must depend on (stage, numbers, turn) only, and losses on (batch, generator) only: that makes a resumed
    run the same as one that was never interrupted.
    """

    name: str  # of the file that is written, without its ending
    model: nn.Module
    network: Mapping[str, Any]  # the configuration that goes into the file
    blocks: tuple[type[nn.Module], ...] = ()  # modules to shard the weights of; none if they are not sharded

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    @abstractmethod
    def batch(self, stage: int, numbers: Sequence[int], device: torch.device, turn: int = 0) -> Batch:
        """The training batch of these numbers, on `device`.

        turn: how many batches of the stage came before. What takes turns follows it, so that processes that
        train together do alike work.
        """

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints must agree on beside name and network."""
        return {}

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalars to log; the one called "loss" is what is minimised. `model` may be wrapped."""

    @abstractmethod
    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """Scores on clips that training does not show, by `self.model` as it is."""

    @abstractmethod
    def export(self, path: Path, device: torch.device) -> None:
        """Write `self.model` as an official-format file."""


class WorldTask(Task):
    """A task on clips of the procedural world."""

    config: WorldRun
    rate: int = 16_000  # Hz of the sounds

    def __init__(self, config: WorldRun) -> None:
        super().__init__(config)
        # A format that cannot be is refused now, not after the stages before it.
        for number, stage in enumerate(config.stages):
            for scale in stage.scales:
                self.world(number, "cpu", scale=scale)

    def world(self, stage: int, device: torch.device | str, split: str = "train", scale: int = 1) -> World:
        """The world in the format of a stage, `scale` times smaller; each stage sees clips of its own."""
        config, form = self.config, self.config.stages[stage]
        world = WorldConfig(
            height=form.height // scale,
            width=form.width // scale,
            frames=form.frames,
            fps=config.data.fps,
            style=config.data.style,
            shapes=config.data.shapes,
            motions=config.data.motions,
            sample_rate=self.rate,
            seed=config.seed + stage,
            split=split,
        )
        return World(world, device)

    @abstractmethod
    def clips(self, world: World, numbers: Sequence[int]) -> Batch:
        """What the task needs of these clips, in the smallest form: it may come from another process."""

    def batch(self, stage: int, numbers: Sequence[int], device: torch.device, turn: int = 0) -> Batch:
        scales = self.config.stages[stage].scales
        scale = scales[turn % len(scales)]
        larger = range(numbers[0] * scale**2, (numbers[-1] + 1) * scale**2)
        return self.clips(self.world(stage, device, scale=scale), larger)

    def some(
        self, stage: int, split: str, count: int, device: torch.device, scale: int = 1
    ) -> Iterator[Batch]:
        """The first `count` clips of a split, in batches of the stage's size."""
        world, size = self.world(stage, device, split, scale), self.config.stages[stage].batch_size
        for start in range(0, count, size):
            yield self.clips(world, range(start, min(start + size, count)))


def weighted(weights: Mapping[str, float], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts, and as "loss" their sum, each times its weight."""
    total = torch.stack([weights[name] * part.float() for name, part in parts.items()]).sum()
    return {"loss": total, **parts}
