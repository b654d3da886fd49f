"""What the world is made of: shapes, colours, sizes, motions, their sounds, and what is held out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHAPES = ("ball", "square", "triangle", "star", "ring", "diamond")
ROUND = ("ball", "ring")  # turning them changes nothing, so they never spin

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 38, 40),
    "orange": (248, 138, 16),
    "yellow": (250, 222, 40),
    "green": (36, 182, 66),
    "cyan": (44, 206, 220),
    "blue": (40, 78, 232),
    "purple": (138, 48, 188),
    "pink": (252, 128, 192),
}

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (38, 38, 42),
    "grey": (128, 128, 130),
    "white": (236, 236, 232),
    "blue": (34, 58, 128),
    "green": (40, 96, 58),
}
FLOOR_SHADE = 0.62  # the floor is the wall's colour times this, so it is always darker
FLOOR_LEVEL = 0.86  # fraction of the frame's height at which the floor begins

SIZES = ("small", "big")
RADII: dict[str, tuple[float, float]] = {"small": (0.16, 0.175), "big": (0.225, 0.24)}  # of the shorter side
REACH = 1.3  # no shape extends further than this times its radius from its centre

MOTIONS = ("left", "right", "up", "down", "bounce", "orbit", "grow", "shrink", "spin", "stay")
RESIZING = ("grow", "shrink")  # motions in which "small" and "big" mean nothing
GRAVITY = 11.0  # shorter sides per second squared

SOUND_OF: dict[str, str] = {
    "left": "hum",
    "right": "hum",
    "up": "rising",
    "down": "falling",
    "bounce": "impacts",
    "orbit": "warble",
    "grow": "swell",
    "shrink": "fade",
    "spin": "pulse",
    "stay": "silence",
}
SOUNDS = tuple(dict.fromkeys(SOUND_OF.values()))

STRIPES: dict[str, tuple[int, int, int]] = {  # the stripes' colour before each wall
    name: (240, 240, 240) if name == "black" else (16, 16, 18) for name in BACKGROUNDS
}
STYLES = ("plain", "striped", "inverted", "night")
NIGHT = "black"  # the wall at night, whatever the caption says
SPLITS = ("train", "test", "unseen")


@dataclass(frozen=True)
class Tone:
    """A sustained sound: Hz at the frame's bottom, octaves up to its top, dB at both ends, tremolo depth."""

    pitch: float
    octaves: float = 0.0
    start_db: float = 0.0
    end_db: float = 0.0
    tremolo: float = 0.0


TONES: dict[str, Tone] = {
    "rising": Tone(300.0, octaves=2.0),
    "falling": Tone(300.0, octaves=2.0),
    "warble": Tone(300.0, octaves=2.0),
    "hum": Tone(220.0),
    "swell": Tone(392.0, start_db=-30.0),
    "fade": Tone(392.0, end_db=-30.0),
    "pulse": Tone(165.0, tremolo=0.6),
}
TREMOLO_RATE = 8.0  # Hz


@dataclass(frozen=True)
class Timbre:
    """How a shape rings when it hits the floor: (Hz, gain) of partials, strongest first; decay in seconds."""

    name: str
    partials: tuple[tuple[float, float], ...]
    decay: float


TIMBRES: dict[str, Timbre] = {
    "ball": Timbre("thump", ((250.0, 1.0), (375.0, 0.4)), 0.10),
    "square": Timbre("knock", ((430.0, 1.0), (1118.0, 0.3)), 0.06),
    "triangle": Timbre("ting", ((1850.0, 1.0), (3050.0, 0.4)), 0.15),
    "star": Timbre("chime", ((1180.0, 1.0), (2360.0, 0.4), (3540.0, 0.2)), 0.13),
    "ring": Timbre("bell", ((720.0, 1.0), (1470.0, 0.35), (2060.0, 0.2)), 0.16),
    "diamond": Timbre("clink", ((2900.0, 1.0), (4400.0, 0.4)), 0.08),
}


def exists(shape: str, colour: str, background: str, motion: str) -> bool:
    """Whether a clip makes sense: an object must show against its background, a turn must be seen."""
    return colour != background and not (motion == "spin" and shape in ROUND)


def held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether this combination is never shown in training.

    (s + 3c + 5m) mod 11 = 4 over the positions in `SHAPES`, `COLOURS` and `MOTIONS`. A linear rule keeps it
    fair: each pair of attributes lacks at most one value of the third, so every pair is seen in training.
    """
    s, c, m = SHAPES.index(shape), list(COLOURS).index(colour), MOTIONS.index(motion)
    return (s + 3 * c + 5 * m) % 11 == 4


def combinations(
    shapes: Sequence[str] = SHAPES, motions: Sequence[str] = MOTIONS, *, unseen: bool
) -> Iterator[tuple[str, str, str]]:
    """All (shape, colour, motion) of these that can exist and that training never shows (`unseen`) or may show."""
    for shape, colour, motion in itertools.product(shapes, COLOURS, motions):
        if held_out(shape, colour, motion) == unseen and exists(shape, colour, "", motion):
            yield shape, colour, motion
