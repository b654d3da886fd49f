"""Checks of what a user asks for: each says what was wrong, with the value, and what would fit."""

from __future__ import annotations

import logging
import math
import operator
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.errors import InputError, MissingFileError
from ltx_core.types import AudioLatentShape, VideoPixelShape
from ltx_core.utils import replaceable
from ltx_pipelines.media.images import decode_image
from ltx_pipelines.utils.args import ImageConditioningInput, as_image

log = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1
LARGEST = 2**20  # of sizes and counts: tensors of such sides are too large, but their bytes can be counted


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Raise `InputError` for an argument of another kind than `kinds`; what: words for what to give."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} is of type {type(value).__name__}; give {what}.")


def check_path(name: str, value: Any) -> None:
    """Raise `InputError` for what is no path of a file or folder, as a text or a `Path`."""
    check_kind(name, value, (str, os.PathLike), "its path, as a text or a Path")


def items_of(name: str, value: Any, what: str) -> Iterator[Any]:
    """The items of a list, or of None. Raises `InputError` for what is no list; what: words for its items."""
    try:
        return iter(value or ())
    except TypeError:
        raise InputError(f"{name} is {value!r}; give a list of {what}.") from None


def assert_resolution(height: int, width: int, is_two_stage: bool) -> None:
    """Raise `InputError` unless both sides are positive multiples of 64 (two stages) or 32."""
    unit = 64 if is_two_stage else 32
    for name, value in (("height", height), ("width", width)):
        if value <= 0 or value % unit:
            fits = " or ".join(map(str, _nearest(value, unit, 0)))
            stages = "two-stage" if is_two_stage else "one-stage"
            raise InputError(f"{name} is {value}; a {stages} video needs a multiple of {unit}, e.g. {fits}.")


def check_num_frames(frames: int) -> None:
    """Raise `InputError` unless the number of frames is 8k + 1."""
    if frames < 1 or frames % 8 != 1:
        fits = " or ".join(map(str, _nearest(frames, 8, 1)))
        raise InputError(f"num_frames is {frames}; it must be a multiple of 8 plus 1, e.g. {fits}.")


def _nearest(value: int, unit: int, offset: int) -> list[int]:
    """The values unit * k + offset on either side of `value`."""
    below = max((value - offset) // unit, 0) * unit + offset
    return [v for v in (below, below + unit) if v > 0]


def number(name: str, value: Any) -> float:
    """A float from any kind of number. Raises `InputError` for other things, texts among them."""
    try:
        return float(value + 0)
    except TypeError:
        raise InputError(f"{name} is {value!r}; give a number.") from None


def finite(name: str, value: Any) -> float:
    """A float that is neither infinite nor NaN. Raises `InputError` for other things."""
    given = number(name, value)
    if not math.isfinite(given):
        raise InputError(f"{name} is {given}; give a finite number.")
    return given


def check_frame_rate(fps: float) -> None:
    if not 0.001 <= fps <= 1000:
        raise InputError(f"frame_rate is {fps:g}; give frames a second, 0.001 to 1000, e.g. 24.")


def check_length(frames: int, fps: float) -> None:
    """Raise `InputError` for a video too short for a single latent frame of sound."""
    shape = VideoPixelShape(1, frames, height=0, width=0, fps=fps)
    if AudioLatentShape.from_video_pixel_shape(shape).frames < 1:
        raise InputError(
            f"num_frames is {frames} at {fps:g} frames a second, too short for any sound; give more, or a lower "
            "frame_rate."
        )


def check_guider(params: MultiModalGuiderParams) -> None:
    """Raise `InputError` for guidance that is no number, or skips less than no step."""
    if not isinstance(params, MultiModalGuiderParams):
        raise InputError(
            f"Guidance is {params!r}; give MultiModalGuiderParams, or a MultiModalGuiderFactory of them."
        )
    for name in ("cfg_scale", "stg_scale", "rescale_scale", "modality_scale"):
        finite(name, getattr(params, name))
    if finite("skip_step", params.skip_step) < 0:
        raise InputError(
            f"skip_step is {params.skip_step}; give 0 (none) or how many steps to skip after each."
        )


def whole_number(name: str, value: Any) -> int:
    """An int from any kind of whole number, NumPy's above all. Raises `InputError` for other things."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; give a whole number.") from None


def sized(name: str, value: Any) -> int:
    """A whole number that PyTorch can count with. Raises `InputError` for other things."""
    given = whole_number(name, value)
    if given > LARGEST:
        raise InputError(f"{name} is {given}; give {LARGEST} at most.")
    return given


def check_seed(seed: int) -> None:
    if not -MAX_SEED - 1 <= seed <= 2 * MAX_SEED + 1:
        raise InputError(f"seed is {seed}; give a whole number between 0 and {MAX_SEED}.")


def random_seed() -> int:
    """A seed in [0, 2^31) from the system, leaving every generator's state alone."""
    return secrets.randbelow(2**31)


def check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"num_inference_steps is {steps}; use at least 1.")


def check_strength(name: str, strength: Any) -> float:
    """A float in [0, 1] from any kind of number. Raises `InputError` for other things."""
    given = number(name, strength)
    if not 0 <= given <= 1:
        raise InputError(f"{name} is {given:g}; it must lie between 0 and 1.")
    return given


def check_mask(mask: torch.Tensor, frames: int) -> None:
    """Raise `InputError` unless a mask (1, 1, F, H, W) can be laid over the latents of a clip of `frames` frames."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 5 or mask.shape[:2] != (1, 1):
        found = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InputError(
            f"The attention mask is {found}; give a tensor of shape (1, 1, frames, height, width)."
        )
    groups = (frames - 1) // 8
    given = mask.shape[2]
    if groups and (given == 1 or (given - 1) % groups):
        raise InputError(
            f"An attention mask of length {given} cannot be laid over a control clip of {frames} frames; give it "
            f"1 + n * {groups} frames, e.g. {1 + 8 * groups}."
        )


def check_window(start: float, end: float, duration: float) -> None:
    """Raise `InputError` for a time window that is empty or before a clip of `duration` seconds; after it, warn."""
    if not start < end:
        raise InputError(
            f"The window from {start:g} s to {end:g} s is empty; start_time must be before end_time."
        )
    if end <= 0:
        raise InputError(f"The window ends at {end:g} s, before the clip begins; times count from 0.")
    if start >= duration:
        log.warning(
            "The window starts at %g s, after the end of the clip (%.3f s): all of the clip is kept.",
            start,
            duration,
        )


def check_images(
    images: Iterable[Any] | None, num_frames: int, crf: int
) -> tuple[ImageConditioningInput, ...]:
    """Images as `ImageConditioningInput` (3- and 4-tuples serve), each checked against the clip.

    crf: of images that say None.
    """
    given = items_of("images", images, "(path, frame_idx, strength)")
    return tuple(_check_image(as_image(image), num_frames, crf) for image in given)


def _check_image(image: ImageConditioningInput, num_frames: int, crf: int) -> ImageConditioningInput:
    path = image.path
    frame = whole_number(f"The frame of {path}", image.frame_idx)
    if not 0 <= frame < num_frames:
        raise InputError(
            f"The image {path} is for frame {frame}; the video has frames 0 to {num_frames - 1}."
        )
    strength = check_strength(f"The strength of {path}", image.strength)
    crf = whole_number(f"The crf of {path}", crf if image.crf is None else image.crf)
    if not 0 <= crf <= 51:
        raise InputError(f"The crf of {path} is {crf}; it must lie between 0 and 51.")
    check_file(path)
    decode_image(path)
    return ImageConditioningInput(path, frame, strength, crf)


def check_file(path: str | Path) -> None:
    """Raise `MissingFileError` unless `path` is a file, `InputError` for what is no path at all."""
    check_path("A file", path)
    if not str(path):
        raise InputError("The path of a file is empty; name a file.")
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise MissingFileError(f"{path} {what}; check the path.")


def check_output_path(path: str | Path, *, overwrite: bool = True) -> None:
    """Raise `InputError` if the file cannot be written there."""
    check_kind("output_path", path, (str, Path), "a text or a Path")
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder; give the name of a file, e.g. {target / 'video.mp4'}.")
    if target.suffix.lower() not in (".mp4", ".mov", ".mkv"):
        raise InputError(f"{target} has no ending of a video file; use .mp4, .mov or .mkv.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; give another name, or leave --no-overwrite out.")
    existing = next((p for p in replaceable(target).parents if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"Cannot write to {existing} ({error.strerror}); choose another folder for {target.name}."
        ) from None
