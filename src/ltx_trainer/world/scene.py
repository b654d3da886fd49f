"""A scene: what one clip shows, as attributes and a few numbers, and how scenes are drawn by lot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import InputError
from ltx_trainer.world.shapes import FOOT
from ltx_trainer.world.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    FLOOR_LEVEL,
    GRAVITY,
    MOTIONS,
    NIGHT,
    RADII,
    REACH,
    RESIZING,
    SHAPES,
    SIZES,
    SOUND_OF,
    STYLES,
    TIMBRES,
    exists,
    held_out,
)

MARGIN = 0.03  # of the shorter side, always left between object and frame
GROWN = ((0.12, 0.13), (0.225, 0.24))  # radii between which things grow and shrink
TRAVELS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}  # axis and sign
SHORTEST = 0.16  # shorter sides, of a way that is seen to go somewhere
TRIES = 64  # paths of which the one that begins nearest is taken

Point = tuple[float, float]  # x and y in the units of `MotionPath`


@dataclass(frozen=True)
class MotionPath:
    """Every motion of the world is one formula with these numbers.

    Lengths are in units of the frame's shorter side, from the frame's centre, y down; times in seconds,
    angles in radians, positive clockwise as seen.
    """

    x: float = 0.0
    y: float = 0.0
    velocity_x: float = 0.0
    velocity_y: float = 0.0
    orbit_radius: float = 0.0
    orbit_rate: float = 0.0
    orbit_phase: float = 0.0
    hop_height: float = 0.0
    hop_period: float = 1.0
    first_impact: float = 0.0
    radius: float = 0.1
    growth: float = 0.0
    spin: float = 0.0

    @property
    def begin(self) -> Point:
        """Where the object is at time 0."""
        track = follow([self], torch.zeros(1))
        return float(track.x), float(track.y)

    def impacts(self, start: float, end: float) -> tuple[float, ...]:
        """Times in [start, end) at which the object hits the floor."""
        if self.hop_height == 0:
            return ()
        first = math.ceil((start - self.first_impact) / self.hop_period)
        last = math.ceil((end - self.first_impact) / self.hop_period)
        return tuple(self.first_impact + k * self.hop_period for k in range(first, last))


@dataclass(frozen=True, eq=False)
class Track:
    """Where objects are: x, y, radius, angle, each (B, T), in the units of `MotionPath`."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor


def follow(paths: Sequence[MotionPath], times: Tensor) -> Track:
    """Evaluate B paths at `times` (B, T) or (T,), seconds, on the device of `times`, in float32."""
    table = torch.tensor([astuple(p) for p in paths], dtype=torch.float32, device=times.device)
    p = {field.name: table[:, i, None] for i, field in enumerate(fields(MotionPath))}
    phase = p["orbit_phase"] + p["orbit_rate"] * times
    hop = torch.remainder((times - p["first_impact"]) / p["hop_period"], 1.0)
    return Track(
        x=p["x"] + p["velocity_x"] * times + p["orbit_radius"] * phase.cos(),
        y=p["y"]
        + p["velocity_y"] * times
        + p["orbit_radius"] * phase.sin()
        - 4 * p["hop_height"] * hop * (1 - hop),
        radius=p["radius"] + p["growth"] * times,
        angle=p["spin"] * times,
    )


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `start` is the time of its first frame: 0 but for stills out of a motion."""

    shape: str
    colour: str
    size: str
    background: str
    motion: str
    path: MotionPath
    style: str = "plain"
    start: float = 0.0

    def __post_init__(self) -> None:
        known = {
            "shape": SHAPES,
            "colour": tuple(COLOURS),
            "size": SIZES,
            "background": tuple(BACKGROUNDS),
            "motion": MOTIONS,
            "style": STYLES,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise InputError(
                    f"Unknown {name} {getattr(self, name)!r}; the world has {', '.join(values)}."
                )
        if not exists(self.shape, self.colour, self.background, self.motion):
            raise InputError(
                f"A {self.colour} {self.shape} doing {self.motion!r} on {self.background} cannot be seen: "
                "choose another background than the object's colour, and let only shapes with corners spin."
            )

    @property
    def sound(self) -> str:
        """The sound that belongs to the motion, one of `SOUNDS`."""
        return SOUND_OF[self.motion]

    @property
    def wall(self) -> str:
        """The background that is drawn."""
        return NIGHT if self.style == "night" else self.background

    @property
    def timbre(self) -> str | None:
        """The name of the ring when this shape hits the floor; None where nothing is hit."""
        return TIMBRES[self.shape].name if self.motion == "bounce" else None

    @property
    def unseen(self) -> bool:
        """Whether training never shows this combination of shape, colour and motion."""
        return held_out(self.shape, self.colour, self.motion)


@dataclass(frozen=True)
class Room:
    """The room a scene has: half extents in shorter sides, seconds from first to last frame, frame rate."""

    half_width: float
    half_height: float
    duration: float
    fps: float

    @property
    def floor(self) -> float:
        """Height of the floor's edge, measured down from the frame's centre."""
        return (2 * FLOOR_LEVEL - 1) * self.half_height


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Uniform in [low, high], or their mean where the room is too narrow."""
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def _spot(rng: np.random.Generator, room: Room, reach: float) -> tuple[float, float]:
    """A centre from which `reach` fits into the frame."""
    x = room.half_width - reach - MARGIN
    y = room.half_height - reach - MARGIN
    return _between(rng, -x, x), _between(rng, -y, y)


def _travel(
    rng: np.random.Generator, room: Room, motion: str, radius: float, begin: Point | None
) -> MotionPath:
    x, y = begin or _spot(rng, room, radius * REACH)
    axis, sign = TRAVELS[motion]
    end = (room.half_width, room.half_height)[axis] - radius * REACH - MARGIN
    start = min(sign * begin[axis], end - SHORTEST) if begin else -end
    length = _between(rng, min(0.38, end - start), min(0.6, end - start))
    at = sign * (start if begin else _between(rng, -end, end - length))
    velocity = sign * length / room.duration
    if axis == 0:
        return MotionPath(x=at, y=y, velocity_x=velocity, radius=radius)
    return MotionPath(x=x, y=at, velocity_y=velocity, radius=radius)


def _bounce(rng: np.random.Generator, room: Room, shape: str, radius: float) -> MotionPath:
    """Hops under gravity, the impacts kept clear of the clip's ends so that they can be seen and heard."""
    x, _ = _spot(rng, room, radius * REACH)
    rest = room.floor - FOOT[shape] * radius
    space = rest + room.half_height - REACH * radius - MARGIN
    height = _between(rng, min(0.22, space), min(0.5, space))
    period = math.sqrt(8 * height / GRAVITY)
    lead, tail = max(0.12, 2.2 / room.fps), max(0.10, 2.0 / room.fps)
    first = lead
    for _ in range(16):
        first = _between(rng, lead, min(lead + period, room.duration - tail))
        if (room.duration - tail - first) % period < period - tail - 1 / room.fps:  # none in the clip's tail
            break
    return MotionPath(x=x, y=rest, hop_height=height, hop_period=period, first_impact=first, radius=radius)


def _orbit(rng: np.random.Generator, room: Room, radius: float) -> MotionPath:
    space = min(room.half_width, room.half_height) - radius * REACH - MARGIN
    orbit = _between(rng, min(0.15, space), min(0.26, space))
    x, y = _spot(rng, room, radius * REACH + orbit)
    turns = rng.uniform(0.8, 1.2) * max(1.0, room.duration / 1.6) * rng.choice((-1, 1))
    return MotionPath(
        x=x,
        y=y,
        orbit_radius=orbit,
        orbit_rate=2 * math.pi * turns / room.duration,
        orbit_phase=rng.uniform(0, 2 * math.pi),
        radius=radius,
    )


def _resize(rng: np.random.Generator, room: Room, motion: str) -> MotionPath:
    small, big = (_between(rng, *span) for span in GROWN)
    first, last = (small, big) if motion == "grow" else (big, small)
    x, y = _spot(rng, room, big * REACH)
    return MotionPath(x=x, y=y, radius=first, growth=(last - first) / room.duration)


def sample_path(
    rng: np.random.Generator, room: Room, shape: str, size: str, motion: str, begin: Point | None = None
) -> MotionPath:
    """Draw where and how fast an object of `shape` and `size` does `motion` in `room`.

    begin: where travels begin, if they have room; other motions begin anywhere.
    """
    radius = _between(rng, *RADII[size])
    if motion in TRAVELS:
        return _travel(rng, room, motion, radius, begin)
    if motion == "bounce":
        return _bounce(rng, room, shape, radius)
    if motion == "orbit":
        return _orbit(rng, room, radius)
    if motion in RESIZING:
        return _resize(rng, room, motion)
    x, y = _spot(rng, room, radius * REACH)
    if motion == "stay":
        return MotionPath(x=x, y=y, radius=radius)
    turns = max(rng.uniform(0.5, 0.75), 0.4 / room.duration) * rng.choice((-1, 1))
    return MotionPath(x=x, y=y, radius=radius, spin=2 * math.pi * turns)


def continue_path(
    rng: np.random.Generator, room: Room, shape: str, size: str, motion: str, begin: Point
) -> MotionPath:
    """Draw a path that begins at `begin`, or as near to it as the best of `TRIES`."""
    paths = [sample_path(rng, room, shape, size, motion, begin) for _ in range(TRIES)]
    track = follow(paths, torch.zeros(1))
    return paths[int(torch.hypot(track.x - begin[0], track.y - begin[1]).argmin())]


def has_room(room: Room, size: str, motion: str, begin: Point) -> bool:
    """Whether an object of `size` at `begin` can do `motion` so that it is seen."""
    if motion not in TRAVELS:
        return True
    axis, sign = TRAVELS[motion]
    end = (room.half_width, room.half_height)[axis] - RADII[size][1] * REACH - MARGIN
    return end - sign * begin[axis] >= SHORTEST


def sample_scene(
    rng: np.random.Generator,
    room: Room,
    unseen: bool,
    shapes: Sequence[str],
    motions: Sequence[str],
    style: str,
    still: bool = False,
) -> Scene:
    """Draw a scene whose combination is held out (`unseen`) or not; a `still` starts amid its motion."""
    while True:
        motion = str(rng.choice(motions))
        shape = str(rng.choice(shapes))
        colour = str(rng.choice(tuple(COLOURS)))
        background = str(rng.choice(tuple(BACKGROUNDS)))
        if exists(shape, colour, background, motion) and held_out(shape, colour, motion) == unseen:
            break
    size = str(rng.choice(SIZES))
    path = sample_path(rng, room, shape, size, motion)
    start = float(rng.uniform(0, room.duration)) if still else 0.0
    return Scene(shape, colour, size, background, motion, path, style, start)
