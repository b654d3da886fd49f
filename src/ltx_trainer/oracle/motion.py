"""Tells what an object does from its track: the class of its motion and the moments at which it hits the floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ltx_trainer.oracle.form import Blob, Form

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


def _turning_points(y: np.ndarray) -> list[int]:
    """Frames at which the object is lowest (y greatest) between a fall and a rise of `PROMINENCE`."""
    lows, top, low, falling = [], y[0], 0, True
    for frame, value in enumerate(y):
        if falling:
            if value >= y[low]:
                low = frame
            top = min(top, value)
            if y[low] - value > PROMINENCE:
                if y[low] - top_before(y, low) > PROMINENCE / 2:
                    lows.append(low)
                falling, top = False, value
        else:
            top = min(top, value)
            if value - top > PROMINENCE:
                falling, low = True, frame
    return lows


def top_before(y: np.ndarray, frame: int) -> float:
    """The highest place (least y) before `frame`."""
    return float(y[:frame].min()) if frame else float(y[0])
