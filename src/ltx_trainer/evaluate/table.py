"""The table: what is measured in which row's scores, what is required, and what is aimed at."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ltx_trainer.evaluate.case import Scores
from ltx_trainer.evaluate.measure import SEEN

Results = Mapping[str, Mapping[int, Scores]]  # row -> number of the prompt -> scores
Z = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Value:
    """A measured value with its 95 % interval, if it has one, over `of` clips."""

    value: float
    low: float | None
    high: float | None
    of: int


@dataclass(frozen=True)
class Line:
    """One line of the table. required, aim: what the value must reach; None: it is only shown. reaches: how a
    value is compared with them."""

    measure: str
    rows: tuple[str, ...]
    value: Callable[[Results], Value | None]
    required: float | None
    aim: float | None
    unit: str = "%"
    reaches: Callable[[float, float], bool] = operator.ge

    def meets(self, value: float, limit: float | None) -> bool | None:
        """Whether `value` reaches `limit`; None where there is none."""
        return None if limit is None else self.reaches(value, limit)


def wilson(right: float, of: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate of `right` in `of` > 0."""
    rate, spread = right / of, Z**2 / of
    centre, half = rate + spread / 2, Z * math.sqrt(rate * (1 - rate) / of + spread / (4 * of))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return max(0.0, low), min(1.0, high)


def summary(values: Sequence[bool | float]) -> Value | None:
    """Truths as a rate in [0, 1] with its Wilson interval; numbers as their mean with that of the normal
    distribution."""
    if not values:
        return None
    n, mean = len(values), sum(values) / len(values)
    if all(isinstance(value, bool) for value in values):
        return Value(mean, *wilson(sum(values), n), n)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / max(n - 1, 1))
    half = Z * deviation / math.sqrt(n)
    return Value(mean, mean - half, mean + half, n)


def _column(results: Results, row: str, score: str) -> dict[int, bool | float]:
    return {at: scores[score] for at, scores in results.get(row, {}).items() if score in scores}


def _scaled(value: Value | None, by: float) -> Value | None:
    if value is None or value.low is None or value.high is None:
        return value
    return Value(value.value * by, value.low * by, value.high * by, value.of)


def share(measure: str, row: str, score: str, required: float | None, aim: float | None) -> Line:
    """In how many of 100 clips `score` is right."""
    return Line(
        measure,
        (row,),
        lambda results: _scaled(summary([*_column(results, row, score).values()]), 100),
        required,
        aim,
    )


def mean(
    measure: str, row: str, score: str, required: float | None, aim: float | None, unit: str = "dB"
) -> Line:
    """The mean of `score`."""
    return Line(
        measure,
        (row,),
        lambda results: summary([*_column(results, row, score).values()]),
        required,
        aim,
        unit,
    )


def _points_ahead(results: Results, row: str, other: str, score: str) -> Value | None:
    """By how many of 100 clips `row` has `score` right more often than `other`, over prompts that both made."""
    one, two = _column(results, row, score), _column(results, other, score)
    ahead = [100.0 * (one[at] - two[at]) for at in sorted(one.keys() & two.keys())]
    return summary(ahead)


def shortfall(measure: str, row: str, other: str, scores: Sequence[str], required: float, aim: float) -> Line:
    """By how many points `row` falls behind `other` in the score in which it falls furthest behind."""

    def value(results: Results) -> Value | None:
        found = [_points_ahead(results, other, row, score) for score in scores]
        return max((v for v in found if v is not None), key=lambda v: v.value, default=None)

    return Line(measure, (row, other), value, required, aim, "points", operator.le)


def gain(measure: str, row: str, other: str, score: str) -> Line:
    """By how many points `row` is ahead of `other`; more than nothing is aimed at."""
    return Line(
        measure,
        (row, other),
        lambda results: _points_ahead(results, row, other, score),
        None,
        0.0,
        "points",
        operator.gt,
    )


TEXT, MODALITY = "text-to-video", ("guidance: CFG + modality", "guidance: CFG")
LINES = (
    share("two-stage text-to-video: shape right", TEXT, "shape", 85, 97),
    share("two-stage text-to-video: colour right", TEXT, "colour", 90, 98),
    share("two-stage text-to-video: background right", TEXT, "background", 90, 98),
    share("two-stage text-to-video: motion right", TEXT, "motion", 80, 95),
    share("sound class right", TEXT, "sound", 85, 97),
    share("impact heard within 60 ms of impact seen", "impacts", "synchrony", 80, 95),
    share("unseen attribute combinations: all attributes right", "unseen", "all", 50, 85),
    mean("image-to-video: first frame PSNR", "image-to-video", "psnr", 24, 30),
    mean("keyframes: PSNR at the keyframes", "keyframes", "psnr", 22, 28),
    share("keyframes: object on a sensible path between", "keyframes", "path", 80, 95),
    share("audio-to-video: seen impacts within 60 ms of given", "audio-to-video", "impacts", 75, 95),
    share("retake: identical latents outside the window", "retake", "outside", 100, 100),
    share("retake: follows the new prompt inside", "retake", "inside", 75, 95),
    mean("IC-LoRA: follows the control (IoU)", "ic-lora", "overlap", 0.6, 0.85, unit=""),
    share("IC-LoRA: the prompt's colour", "ic-lora", "colour", 85, 97),
    shortfall("distilled, behind guided two-stage", "distilled", TEXT, (*SEEN, "sound"), 10, 3),
    mean("video VAE: reconstruction", "reconstruction", "psnr", 28, 34),
    share("audio VAE + vocoder: onset and pitch kept", "reconstruction", "kept", 90, 98),
    gain("guidance: synchrony gained by modality guidance", *MODALITY, "synchrony"),
    share("style LoRA: drawn in its style", "style-lora", "style", None, None),
)
