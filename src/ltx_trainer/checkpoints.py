"""Resumable checkpoints on disk: each complete under its name or not there, whenever the process dies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError
from ltx_core.utils import whole_folder

STATE = "state.json"  # what marks a folder as a checkpoint of ours
FORMAT = 1


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: folders named ``step-00000500`` under `folder`, the last `keep` of them."""

    folder: Path
    keep: int = 2

    def all(self) -> list[Path]:
        """Complete checkpoints, the oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        return next(reversed(self.all()), None)

    def save(
        self,
        step: int,
        identity: Mapping[str, Any],
        write: Callable[[Path], None],
        losses: Mapping[str, float] | None = None,
    ) -> Path:
        """Let `write` fill an empty folder, then give it its name; older checkpoints go only after that.

        identity: what a run must have in common with this one to go on from here, in JSON's types. losses: of the
        step, for a log that may not have been written yet.
        Raises `CheckpointError` where the folder cannot be written; what was there before stays.
        """
        target = self.folder / f"step-{step:08d}"
        if (target / STATE).is_file():
            return target
        try:
            with whole_folder(target) as partial:
                write(partial)
                state = {"format": FORMAT, "step": step, "identity": identity, "losses": losses or {}}
                (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
                _flush(partial)
        except Exception as error:
            last = self.latest()
            good = f"{last} is still good" if last else "there is no earlier one"
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(
                f"The checkpoint of step {step} could not be written ({reason}); {good}. Make room in "
                f"{self.folder} and start the run again, it goes on from there."
            ) from error
        self._prune()
        return target

    def read(self, path: Path, identity: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
        """The step at which `path` was saved, and its losses. Raises `CheckpointError` if it is of another run."""
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            saved, step, losses = state["identity"], int(state["step"]), dict(state["losses"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); remove it, and the run goes on from the one before."
            ) from None
        wanted = json.loads(json.dumps(identity))
        if saved != wanted:
            key, was, now = difference(saved, wanted)
            raise CheckpointError(
                f"{path} is of another run: its {key} is {was}, here it is {now}. Give another --output-path, "
                "or the configuration that it was made with."
            )
        return step, losses

    def _prune(self) -> None:
        for path in self.all()[: -self.keep]:
            (path / STATE).unlink()  # first, so that a kill leaves no half of a checkpoint that looks whole
        for path in (*self.folder.glob("step-*"), *self.folder.glob(".*-*")):
            if not (path / STATE).is_file() or path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Make the files' contents durable before the rename that declares them complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())


def difference(first: Any, second: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first place at which two JSON values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in (*first, *(key for key in second if key not in first)):
            if first.get(key) != second.get(key):
                return difference(first.get(key), second.get(key), f"{name}.{key}" if name else key)
    return name, first, second
