"""Batches by position, so that a run can go on exactly where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from ltx_trainer.task import Batch, Task

AHEAD = 4  # batches that each worker renders in advance


class _Batches(Dataset):
    """Batch k is that of position `start` + k in the run, of which every step has `accumulate`."""

    def __init__(self, task: Task, start: int, rank: int, ranks: int, device: torch.device) -> None:
        self.task, self.start, self.rank, self.ranks, self.device = task, start, rank, ranks, device

    def __len__(self) -> int:
        return self.task.config.steps * self.task.config.optimizer.accumulate - self.start

    def __getitem__(self, k: int) -> Batch:
        config = self.task.config
        step, part = divmod(self.start + k, config.optimizer.accumulate)
        stage, within = config.stage_of(step)
        size = config.stages[stage].batch_size
        turn = within * config.optimizer.accumulate + part
        first = (turn * self.ranks + self.rank) * size
        return self.task.batch(stage, range(first, first + size), self.device, turn)


def batches(task: Task, step: int, rank: int, ranks: int, device: torch.device) -> Iterator[Batch]:
    """The batches of process `rank` of `ranks` from `step` on to the run's end, on `device`.

    Without workers they are rendered on `device` itself, with them on CPUs, a few ahead.
    """
    workers = task.config.data.workers
    start = step * task.config.optimizer.accumulate
    loader = DataLoader(
        _Batches(task, start, rank, ranks, torch.device("cpu") if workers else device),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=bool(workers) and device.type == "cuda",
        worker_init_fn=_apart,
    )
    for batch in loader:
        yield to_device(batch, device)


def _apart(worker: int) -> None:
    """Leave the group of processes that a signal may be sent to as a whole: the first process ends its workers."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    return batch.to(device, non_blocking=True) if isinstance(batch, torch.Tensor) else batch
