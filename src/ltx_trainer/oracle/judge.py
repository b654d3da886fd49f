"""Judges a clip: measures it by eye and by ear and compares that with what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltx_core.errors import InputError, MediaError
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.video import decode_video_from_file, probe_video
from ltx_trainer.oracle.form import locate, recognise
from ltx_trainer.oracle.hearing import EARLY, Hearing, listen
from ltx_trainer.oracle.motion import watch
from ltx_trainer.oracle.sight import look
from ltx_trainer.world.caption import read_caption
from ltx_trainer.world.vocabulary import RADII, RESIZING, SOUND_OF, TIMBRES
from ltx_trainer.world.world import Truth

SYNC = 0.060  # seconds between heard and seen that count as together
SIZE_LIMIT = (RADII["small"][1] + RADII["big"][0]) / 2
ATTRIBUTES = ("shape", "colour", "size", "background", "motion", "sound", "timbre", "style")


@dataclass(frozen=True)
class Wanted:
    """What a clip should show; None where anything will do. onsets: seconds at which impacts are to be."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    background: str | None = None
    motion: str | None = None
    sound: str | None = None
    timbre: str | None = None
    style: str | None = None
    onsets: tuple[float, ...] | None = None

    @classmethod
    def of(cls, truth: Truth, stated_only: bool = True, onsets: bool = False) -> Wanted:
        """What `truth`'s caption asks for, or all of the truth; with `onsets`, also when to hit the floor.

        Night is a plain clip before a wall that is always the same.
        """
        scene = truth.scene
        names = (
            truth.stated
            if stated_only
            else set(ATTRIBUTES) - ({"size"} if scene.motion in RESIZING else set())
        )
        values: dict[str, Any] = {name: getattr(scene, name) for name in names}
        if scene.style == "night":
            values |= {"background": scene.wall} | ({"style": "plain"} if "style" in names else {})
        wanted = cls(**values)
        sound = scene.sound if "motion" in names else wanted.sound
        return replace(wanted, sound=sound, onsets=truth.onsets if onsets else None)

    @classmethod
    def read(cls, caption: str) -> Wanted:
        """What a caption in the words of the world asks for."""
        found: dict[str, Any] = dict(read_caption(caption))
        if "motion" in found:
            found["sound"] = SOUND_OF[found["motion"]]
        return cls(**found)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was seen and heard in a clip; None where nothing in the world fits.

    likeness: correlation with the shape. position: (F, 2) centre as fractions of width and height, NaN where
    nothing is seen. radius: (F,) of the shorter side. cover: (F, H, W) the object's coverage. impacts:
    seconds, seen.
    """

    shape: str | None
    colour: str | None
    size: str | None
    background: str | None
    motion: str | None
    style: str
    likeness: float
    position: np.ndarray
    radius: np.ndarray
    cover: Tensor
    impacts: tuple[float, ...]
    heard: Hearing

    @property
    def sound(self) -> str | None:
        return self.heard.sound

    @property
    def timbre(self) -> str | None:
        return self.heard.timbre

    @property
    def onsets(self) -> tuple[float, ...]:
        return self.heard.onsets


@dataclass(frozen=True, eq=False)
class Verdict:
    """right: by attribute, whether what was measured is what was wanted; what was left open is absent.

    Besides `ATTRIBUTES` there are "synchrony" (of clips with impacts: heard and seen within 60 ms), and if
    onsets were wanted, "onsets" and "impacts": heard, and seen, within 60 ms of them. offsets: heard minus
    seen, seconds, of every pair within reach of each other.
    """

    right: dict[str, bool]
    measured: Measured
    offsets: tuple[float, ...] = ()


def measure(frames: Tensor, fps: float, waveform: Tensor | None, rate: int) -> Measured:
    """Measure frames uint8 (F, H, W, 3) at `fps` and float samples (C, N) or (N,) at `rate` Hz, or None."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not len(frames):
        raise InputError(
            f"Frames are {frames.dtype} {tuple(frames.shape)}, but must be uint8 (F, H, W, 3), F > 0."
        )
    sight = look(frames.cpu())
    blob = locate(sight.cover)
    form = recognise(sight.cover, blob)
    movement = watch(blob, form, fps)
    height, width = frames.shape[1:3]
    side = min(height, width)
    position = torch.stack((blob.x * side / width + 0.5, blob.y * side / height + 0.5), dim=-1)
    position[~blob.present] = torch.nan
    seen = blob.present.numpy()
    size = None
    if seen.any():
        size = "small" if np.median(form.radius[seen]) < SIZE_LIMIT else "big"
    return Measured(
        shape=form.shape,
        colour=sight.colour,
        size=size,
        background=sight.background,
        motion=movement.motion,
        style=sight.style,
        likeness=form.likeness,
        position=position.numpy(),
        radius=form.radius,
        cover=sight.cover,
        impacts=movement.impacts,
        heard=listen(torch.zeros(1, 0) if waveform is None else waveform, rate),
    )


def pair(first: Sequence[float], second: Sequence[float]) -> list[tuple[int, int]]:
    """Match times one to one, the closest first: indices into both."""
    order = sorted((abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second))
    pairs: list[tuple[int, int]] = []
    for _, i, j in order:
        if all(i != other and j != another for other, another in pairs):
            pairs.append((i, j))
    return sorted(pairs)


def together(first: Sequence[float], second: Sequence[float], span: tuple[float, float]) -> bool:
    """Whether every time in `span` has its partner within `SYNC`, and there is one at all."""
    pairs = [(i, j) for i, j in pair(first, second) if abs(first[i] - second[j]) <= SYNC]
    alone = [t for i, t in enumerate(first) if i not in {p[0] for p in pairs}]
    alone += [t for j, t in enumerate(second) if j not in {p[1] for p in pairs}]
    return bool(pairs) and not any(span[0] < t < span[1] for t in alone)


def _expected(measured: Measured, wanted: Wanted) -> dict[str, str | None]:
    """What each attribute should be; sound and timbre follow from what is seen where they are not wanted."""
    expected = {name: getattr(wanted, name) for name in ATTRIBUTES if getattr(wanted, name) is not None}
    motion = wanted.motion or measured.motion
    if "sound" not in expected and motion is not None:
        expected["sound"] = SOUND_OF[motion]
    shape = wanted.shape or measured.shape
    if expected.get("sound") == "impacts" and "timbre" not in expected and shape is not None:
        expected["timbre"] = TIMBRES[shape].name
    return expected


def compare(measured: Measured, wanted: Wanted, fps: float) -> Verdict:
    """Judge what was measured in a clip of `fps` frames a second.

    Impacts in the last two and a half frames or the first one and a half cannot be told by eye, nor by ear in
    the first tenth of a second; they are not asked for.
    """
    expected = _expected(measured, wanted)
    right = {name: getattr(measured, name) == value for name, value in expected.items()}
    span = (max(1.5 / fps, EARLY + 0.02), (len(measured.radius) - 2.5) / fps)
    heard, seen = measured.onsets, measured.impacts
    offsets: tuple[float, ...] = ()
    if expected.get("sound") == "impacts":
        offsets = tuple(heard[i] - seen[j] for i, j in pair(heard, seen))
        right["synchrony"] = together(heard, seen, span)
    if wanted.onsets is not None:
        right["onsets"] = together(heard, wanted.onsets, span) if wanted.onsets else not heard
        right["impacts"] = together(seen, wanted.onsets, span) if wanted.onsets else not seen
    return Verdict(right, measured, offsets)


def judge(
    frames: Tensor, fps: float, waveform: Tensor | None, rate: int, wanted: Wanted | Truth | str
) -> Verdict:
    """Measure a clip and compare it with a `Wanted`, a truth (what its caption states), or a caption.

    frames: uint8 (F, H, W, 3); waveform: float (C, N) or (N,) in [-1, 1] at `rate` Hz, or None if there is no
    sound.
    """
    if isinstance(wanted, Truth):
        wanted = Wanted.of(wanted)
    elif isinstance(wanted, str):
        wanted = Wanted.read(wanted)
    return compare(measure(frames, fps, waveform, rate), wanted, fps)


def judge_file(path: str | Path, wanted: Wanted | Truth | str) -> Verdict:
    """Judge a media file from its pixels and samples. Raises MediaError if it holds no frames."""
    frames = [frame[0] for frame in decode_video_from_file(path)]
    if not frames:
        raise MediaError(
            f"{path} holds no video frames: give a file with video and, if it should be heard, sound."
        )
    fps = probe_video(path).fps
    audio = decode_audio_from_file(path)
    if audio is None:
        return judge(torch.stack(frames), fps, None, 16_000, wanted)
    samples = round(len(frames) / fps * audio.sampling_rate)  # encoders pad sound to whole packets
    return judge(torch.stack(frames), fps, audio.waveform[0, :, :samples], audio.sampling_rate, wanted)


def overlap(cover: Tensor, mask: Tensor) -> float:
    """Intersection over union of two coverages (F, H, W), mean over frames: does output follow control?"""
    shared = torch.minimum(cover, mask).sum(dim=(1, 2))
    return float((shared / torch.maximum(cover, mask).sum(dim=(1, 2)).clamp(min=1e-6)).mean())


def sensible_path(measured: Measured, truth: Truth, keyframes: Sequence[int]) -> bool:
    """Whether the object goes from keyframe to keyframe sensibly.

    It is there in every frame, meets the truth's place at each keyframe within 0.06, leaps in no frame more
    than 0.15 beyond the truth's largest step, and its way between two keyframes is at most 1.5 times the
    truth's and 0.1 longer; all as fractions of the frame.
    """
    if np.isnan(measured.position).any():
        return False
    indices = sorted(range(len(truth.position))[index] for index in keyframes)
    steps = np.linalg.norm(np.diff(measured.position, axis=0), axis=1)
    true_steps = np.linalg.norm(np.diff(truth.position, axis=0), axis=1)
    met = np.linalg.norm(measured.position[indices] - truth.position[indices], axis=1).max() <= 0.06
    leaps = steps.max() > true_steps.max() + 0.15
    ways = ((steps[a:b].sum(), true_steps[a:b].sum()) for a, b in pairwise(indices))
    return bool(met and not leaps and all(way <= 1.5 * true_way + 0.1 for way, true_way in ways))
