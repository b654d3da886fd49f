"""The runs that `test_sharded_runs...` compares, for two processes: torchrun -m tests.ltx_trainer.sharded_runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tests.ltx_trainer.test_transformer import make_task

from ltx_trainer.config import parse_table
from ltx_trainer.loop import train
from ltx_trainer.transformer import TransformerRun, TransformerTask


def main(room: Path, folder: Path) -> None:
    """All weights and a LoRA, each with and without sharding, and a sharded run that dies and goes on."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "stages": [{"steps": 3, "batch_size": 1, "caches": [str(room / "cache")]}],
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "accumulate": 2},
        "saving": {"every": 2, "log_every": 1, "evaluate_every": 2},
        "evaluation_clips": 1,
        "tasks": {"isolated": 0.5},  # in some steps one process uses weights that the other does not
        "seed": 3,
    }
    for shard in (False, True):
        task = make_task(room, **settings, shard=shard)
        train(task, folder / ("sharded" if shard else "plain"))
    tell_share(task.model, folder / "share.json")
    dies_and_goes_on(room, settings | {"shard": True}, folder / "resumed")
    lora = settings | {
        "start": str(folder / "plain" / "transformer.safetensors"),
        "gemma": str(room / "gemma"),
        "text_length": 128,
        "lora": {"rank": 2},
        "gradient_checkpointing": True,
        "stages": [{"steps": 1, "batch_size": 1, "caches": [str(room / "cache")]}],
    }
    for shard in (False, True):
        task = TransformerTask(parse_table(TransformerRun, lora | {"shard": shard}))
        train(task, folder / ("sharded-lora" if shard else "plain-lora"))


def tell_share(model: torch.nn.Module, path: Path) -> None:
    """Write how much of the weights the second process holds (the first one has gathered all to write them)."""
    if torch.distributed.get_rank() == 1:
        held = sum(p.to_local().numel() for p in model.parameters())  # type: ignore[operator]
        path.write_text(json.dumps(held / sum(p.numel() for p in model.parameters())))


def dies_and_goes_on(room: Path, settings: dict[str, Any], folder: Path) -> None:
    """The run dies in its third step, after the checkpoint of the second."""
    task, seen = make_task(room, **settings), []
    real = task.losses

    def losses(*arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 6:  # two a step, and one for the evaluation after the second step
            raise KeyboardInterrupt
        return real(*arguments)

    task.losses = losses  # type: ignore[method-assign]
    try:
        train(task, folder)
    except KeyboardInterrupt:
        train(make_task(room, **settings), folder)
    else:
        raise AssertionError("the run did not die")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
