"""A training run as one TOML file, read into dataclasses that refuse what they do not know."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from ltx_core.config import parse_config
from ltx_core.errors import ConfigError, MissingFileError
from ltx_pipelines.cli.config_file import read_toml
from ltx_trainer.world.vocabulary import MOTIONS, SHAPES

T = TypeVar("T")


class Precision(Enum):
    """Arithmetic of the forward pass; weights and optimiser states are float32 in either case."""

    BF16 = "bf16"
    FP32 = "fp32"


class Method(Enum):
    """How gradients become updates."""

    ADAMW = "adamw"
    MUON = "muon"


class Decay(Enum):
    """What the learning rate does in each stage after its warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"  # down to a hundredth at the stage's last step


@dataclass(frozen=True)
class StageConfig:
    """A stretch of the run. learning_rate: its peak, if not the run's."""

    steps: int
    batch_size: int = 16
    learning_rate: float | None = None


@dataclass(frozen=True)
class ClipStage(StageConfig):
    """A stretch of the run with clips of one format.

    scales: what height and width are divided by, in turn from batch to batch; batches of small frames hold more
    clips, by the square.
    """

    height: int = 128
    width: int = 128
    frames: int = 1
    scales: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ConfigError(
                f"stages.scales is {self.scales}; give at least one divisor of height and width."
            )


@dataclass(frozen=True)
class DataConfig:
    """workers: processes that read or render ahead; 0 does it in turn."""

    workers: int = 0


@dataclass(frozen=True)
class WorldDataConfig(DataConfig):
    """Which clips of the procedural world.

    shapes, motions: those to draw from; one that is listed twice comes twice as often.
    """

    fps: float = 24.0
    style: str = "plain"
    shapes: tuple[str, ...] = SHAPES
    motions: tuple[str, ...] = MOTIONS


@dataclass(frozen=True)
class OptimizerConfig:
    """accumulate: batches per step. average: decay of the moving average of weights, 0 for none."""

    method: Method = Method.ADAMW
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    decay: Decay = Decay.COSINE
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.0
    max_norm: float = 1.0
    accumulate: int = 1
    average: float = 0.0


@dataclass(frozen=True)
class SavingConfig:
    """All in steps. every: between checkpoints, of which the last `keep` are kept."""

    every: int = 500
    keep: int = 2
    log_every: int = 10
    evaluate_every: int = 500


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all runs have. One of `network` and `start` says what is trained.

    network: the model's configuration as it stands in an official file, to begin with random weights.
    start: an official-format file to begin with, relative to the working directory. model_version: what the file that
    is written says; None for that of `start`, or 2.3.0. evaluation_clips: how many are scored at each evaluation.
    """

    stages: tuple[StageConfig, ...]
    network: dict | None = None
    start: str | None = None
    seed: int = 0
    precision: Precision = Precision.BF16
    model_version: str | None = None
    evaluation_clips: int = 64
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    saving: SavingConfig = field(default_factory=SavingConfig)

    def __post_init__(self) -> None:
        if (self.network is None) == (self.start is None):
            raise ConfigError("Give either a [network] to train from nothing or a file to start from.")
        if not self.stages:
            raise ConfigError("There are no [[stages]]; give at least one, with its number of steps.")
        require_positive("", self, names=("evaluation_clips",))
        require_positive("stages.", *self.stages, names=("steps", "batch_size"))
        own = [stage for stage in self.stages if stage.learning_rate is not None]
        require_positive("stages.", *own, names=("learning_rate",))
        require_positive("saving.", self.saving, names=("every", "keep", "log_every", "evaluate_every"))
        require_positive("optimizer.", self.optimizer, names=("learning_rate", "max_norm", "accumulate"))
        require_positive("optimizer.", self.optimizer, names=("warmup_steps", "weight_decay"), or_zero=True)
        require_positive("data.", self.data, names=("workers",), or_zero=True)
        if len(self.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in self.optimizer.betas):
            raise ConfigError(
                f"optimizer.betas is {self.optimizer.betas}; give two numbers from 0 to below 1."
            )
        if not 0 <= self.optimizer.average < 1:
            raise ConfigError(f"optimizer.average is {self.optimizer.average}; give a decay in [0, 1).")

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> tuple[int, int]:
        """(number of the stage, step within it) of the run's step number `step`, counted from 0."""
        for number, stage in enumerate(self.stages):
            if step < stage.steps:
                return number, step
            step -= stage.steps
        raise IndexError("step lies beyond the last stage")


@dataclass(frozen=True, kw_only=True)
class WorldRun(RunConfig):
    """A run on the world's clips themselves."""

    stages: tuple[ClipStage, ...]
    data: WorldDataConfig = field(default_factory=WorldDataConfig)


def require_positive(where: str, *sections: Any, names: tuple[str, ...], or_zero: bool = False) -> None:
    """Raise `ConfigError` for a field of `sections` that is not, or is infinite; `where` is put before its name."""
    for section in sections:
        for name in names:
            value = getattr(section, name)
            if not (0 < value < math.inf or (or_zero and value == 0)):
                must = "not be negative or infinite" if or_zero else "be positive and finite"
                raise ConfigError(f"{where}{name} is {value}; it must {must}.")


def read_config(path: Path, kind: type[T], changes: Sequence[str] = ()) -> T:
    """Read a TOML file into the dataclass `kind`, with `changes` such as "optimizer.learning_rate = 1e-3".

    Raises `MissingFileError`, or `ConfigError` naming file and key for what is unknown, missing or wrong.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; --config takes a TOML file that describes the run.")
    try:
        table = read_toml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for change in changes:
        try:
            _merge(table, read_toml(change))
        except ValueError:
            raise ConfigError(
                f'--set {change!r} is not TOML; write key=value, and texts as key="value".'
            ) from None
    try:
        return parse_table(kind, table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('config.')}") from None


def _merge(table: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put the values of `changes` into `table`, section by section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge(table[key], value)
        else:
            table[key] = value


def parse_table(kind: type[T], table: dict[str, Any], where: str = "") -> T:
    """Like `ltx_core.config.parse_config`, with nested dataclasses, and refusing keys without a field."""
    hints = typing.get_type_hints(kind)
    values = dict(table)
    for key, value in table.items():
        name = f"{where}{key}"
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(hints)}."
            raise ConfigError(f"{name} is not a setting; {hint}")
        inner, nested = hints[key], isinstance(value, dict)
        if dataclasses.is_dataclass(inner) and nested:
            values[key] = parse_table(inner, value, f"{name}.")  # type: ignore[arg-type]
        elif typing.get_origin(inner) is tuple and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                raise ConfigError(f"{name} is {value!r}; expected a list of tables, each under [[{name}]].")
            element = typing.get_args(inner)[0]
            values[key] = [parse_table(element, item, f"{name}[{i}].") for i, item in enumerate(value)]
    return parse_config(kind, values, where.rstrip(".") or "config")
