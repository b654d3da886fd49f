"""Tells what an object does from its track: the class of its motion and when it hits the floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ltx_trainer.oracle.form import Blob, Form
from ltx_trainer.world.vocabulary import GRAVITY

STILL = 0.08  # shorter sides that a thing may wander and still stay in place
RESIZED = 0.3  # change of the radius' logarithm that counts as growing or shrinking
TURNED = np.radians(35)  # total turn that counts as spinning
SWEPT = np.radians(200)  # angle around a common centre that counts as orbiting
PROMINENCE = 0.04  # shorter sides that an object must fall and rise about an impact
ENOUGH = 0.7  # fraction of the frames in which the object must be there


@dataclass(frozen=True)
class Movement:
    """The class of a motion, or None, and the seconds at which impacts are seen."""

    motion: str | None
    impacts: tuple[float, ...]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running median of three, ends kept."""
    if len(values) < 3:
        return values
    inner = np.median(np.stack((values[:-2], values[1:-1], values[2:])), axis=0)
    return np.concatenate((values[:1], inner, values[-1:]))


def _slope(time: np.ndarray, values: np.ndarray) -> float:
    """Least-squares change of `values` from the first to the last moment."""
    centred = time - time.mean()
    return float((centred @ values) / (centred @ centred) * (time[-1] - time[0]))


def _swept_angle(x: np.ndarray, y: np.ndarray) -> float:
    """Angle that (x, y) sweeps around the centre of the circle that fits it best; 0 if none fits."""
    system = np.stack((x, y, np.ones_like(x)), axis=1)
    (a, b, c), *_ = np.linalg.lstsq(system, x**2 + y**2, rcond=None)
    cx, cy = a / 2, b / 2
    radius = np.sqrt(max(c + cx**2 + cy**2, 1e-12))
    off = np.abs(np.hypot(x - cx, y - cy) - radius)
    if radius > 1 or off.mean() > 0.2 * radius:
        return 0.0
    angle = np.unwrap(np.arctan2(y - cy, x - cx))
    return float(abs(angle[-1] - angle[0]))


def _lowest_frames(y: np.ndarray) -> list[int]:
    """Frames at which the object is lowest (y greatest) between a fall and a rise of `PROMINENCE`."""
    lows: list[int] = []
    rising, turn, low, high = False, 0, 0, 0
    for frame, value in enumerate(y):
        if rising:
            high = frame if value <= y[high] else high
            if value - y[high] > PROMINENCE:
                rising, turn, low = False, high, frame
        else:
            low = frame if value >= y[low] else low
            if y[low] - value > PROMINENCE:
                if y[low] - y[turn : low + 1].min() > PROMINENCE / 2:
                    lows.append(low)
                rising, turn, high = True, low, frame
    return lows


def _fall(time: np.ndarray, y: np.ndarray, lows: list[int]) -> float:
    """The acceleration of free flight, from the frames away from impacts; 0 if there are too few."""
    if len(y) < 3:
        return 0.0
    bend = np.diff(y, 2) / (time[1] - time[0]) ** 2
    free = np.ones(len(bend), dtype=bool)
    for low in lows:
        free[max(0, low - 2) : low + 1] = False
    return float(np.clip(np.median(bend[free]), 0, 3 * GRAVITY)) if free.sum() >= 2 else 0.0


def _line(time: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares line (slope, offset) and its mean squared residual."""
    line = np.polyfit(time, values, 1)
    return line, float(np.mean((np.polyval(line, time) - values) ** 2))


def _impact(time: np.ndarray, y: np.ndarray, first: int, low: int, last: int, fall: float) -> float:
    """When the flight before `low` meets the flight after it; frames first..last belong to these two flights.

    With the known acceleration taken off, a flight is a line; two lines meet at the impact, between frames.
    """
    straight = y - 0.5 * fall * time**2
    best, moment = np.inf, float(time[low])
    for split in (low, low + 1):  # the lowest frame may be before or after the impact
        before, after = slice(max(first, split - 4), split), slice(split, min(last + 1, split + 4))
        if before.stop - before.start < 2 or after.stop - after.start < 2:
            continue
        left, left_error = _line(time[before], straight[before])
        right, right_error = _line(time[after], straight[after])
        if left[0] - right[0] > 0.1 and left_error + right_error < best:
            best, moment = left_error + right_error, float((right[1] - left[1]) / (left[0] - right[0]))
    return float(np.clip(moment, time[max(low - 1, 0)], time[min(low + 1, len(time) - 1)]))


def find_impacts(time: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Seconds at which an object of height `y` (F,), down, in shorter sides, rebounds from below."""
    lows = _lowest_frames(y)
    fall = _fall(time, y, lows)
    firsts = [0] + [low + 1 for low in lows[:-1]]
    lasts = [low - 1 for low in lows[1:]] + [len(y) - 1]
    return tuple(_impact(time, y, a, low, b, fall) for a, low, b in zip(firsts, lows, lasts))


def _classify(x: np.ndarray, y: np.ndarray, resized: float, turned: float, impacts: tuple[float, ...]) -> str:
    wide, high = np.ptp(x), np.ptp(y)
    if abs(resized) > RESIZED and max(wide, high) < 2 * STILL:
        return "grow" if resized > 0 else "shrink"
    if max(wide, high) < STILL:
        return "spin" if abs(turned) > TURNED else "stay"
    if impacts and wide < 0.35 * high:
        return "bounce"
    if min(wide, high) > STILL and _swept_angle(x, y) > SWEPT:
        return "orbit"
    if wide > high:
        return "right" if x[-1] > x[0] else "left"
    return "down" if y[-1] > y[0] else "up"


def watch(blob: Blob, form: Form, fps: float) -> Movement:
    """Name the motion of an object from its places in the frames and its form."""
    seen = blob.present.numpy()
    if seen.mean() < ENOUGH or len(seen) < 3:
        return Movement(None, ())
    time = np.arange(len(seen)) / fps
    x, y, radius, angle = (
        np.interp(time, time[seen], values[seen])
        for values in (blob.x.double().numpy(), blob.y.double().numpy(), form.radius, form.angle)
    )
    impacts = find_impacts(time, y)
    resized = _slope(time, np.log(np.maximum(radius, 1e-3)))
    motion = _classify(_smooth(x), _smooth(y), resized, _slope(time, angle), impacts)
    return Movement(motion, impacts if motion == "bounce" else ())
