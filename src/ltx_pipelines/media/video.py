"""Video files to frames: what a clip is, and its pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import InputError, MediaError
from ltx_pipelines.media.container import open_media
from ltx_pipelines.media.images import normalize_pixels, resize_and_center_crop


@dataclass(frozen=True)
class VideoInfo:
    """Frames a second (exact), number of frames, and upright size of a clip.

    stored: frames that the file says it holds, where `frames` was fitted.
    """

    rate: Fraction
    frames: int
    width: int
    height: int
    stored: int | None = None

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def duration(self) -> float:
        return self.frames / self.fps


def probe_video(path: str | Path) -> VideoInfo:
    """What a clip is. Counts frames by decoding where the container does not say, or leaves some unplayed.

    Raises `MediaError` for a file without video frames.
    """
    with open_media(path, "video") as (container, stream):
        turned = _rotation(container, stream) % 180 == 90
        width, height = stream.width, stream.height
        rate = stream.average_rate or stream.guessed_rate or Fraction(24)
        frames = stream.frames
        # What a cut without re-encoding left before its beginning is stored, but not played.
        played = frames if stream.duration is None else round(stream.duration * stream.time_base * rate)
    if not frames or played < frames:
        frames = sum(1 for _ in decode_video_from_file(path))
    if not frames:
        raise MediaError(f"{path} has no video frames; is it complete?")
    return VideoInfo(Fraction(rate), frames, *((height, width) if turned else (width, height)))


FITS = ("trim", "crop", "pad")


def fitted_clip(path: str | Path, fit: str | None = None) -> VideoInfo:
    """`probe_video` of a clip that is 8k + 1 frames long, with sides that are multiples of 32, or made so.

    fit: "trim" drops frames at the end; "crop" does so too and cuts the edges evenly; "pad" repeats the last
    frame, and the pixels at the right and bottom. Raises `InputError` for a clip that does not fit, saying
    what would.
    """
    if fit not in (None, *FITS):
        raise InputError(f"fit is {fit!r}; choose trim, crop or pad.")
    clip = probe_video(path)
    up = fit == "pad"
    frames = (clip.frames - 1 + 7 * up) // 8 * 8 + 1
    width, height = ((side + 31 * up) // 32 * 32 for side in (clip.width, clip.height))
    wanted = replace(clip, frames=frames, width=width, height=height, stored=clip.frames)
    if not width or not height:
        raise InputError(
            f"{path} has {clip.width}x{clip.height} pixels, a clip to work on at least 32x32; use fit (--fit) pad."
        )
    sides_fit = (width, height) == (clip.width, clip.height)
    fits = sides_fit and frames == clip.frames
    if fits or fit in ("crop", "pad") or (fit == "trim" and sides_fit):
        return wanted
    raise InputError(
        f"{path} has {clip.frames} frames of {clip.width}x{clip.height}; a clip to work on needs a multiple of "
        f"8 plus 1 frames and sides that are multiples of 32, e.g. {frames} of {width}x{height}. Convert it, or "
        f"use fit (--fit) {'trim, ' if sides_fit else ''}crop or pad."
    )


def load_fitted_clip(
    path: str | Path, clip: VideoInfo, fit: str | None, dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """The pixels (1, 3, F, H, W) in [-1, 1] of `fitted_frames`."""
    frames = torch.cat(list(fitted_frames(path, clip, fit)))
    return normalize_pixels(frames.permute(3, 0, 1, 2)[None].float(), dtype, device)


def fitted_frames(path: str | Path, clip: VideoInfo, fit: str | None) -> Iterator[torch.Tensor]:
    """The frames (1, H, W, 3), uint8, of a clip, as `fitted_clip` says they are.

    Raises `MediaError` if the file holds fewer frames than it says.
    """
    found, last = 0, torch.empty(0)
    for frame in decode_video_from_file(path, clip.frames):
        found, last = found + 1, _fitted(frame, clip, fit)
        yield last
    stored = clip.frames if clip.stored is None else clip.stored
    if found < min(stored, clip.frames):
        raise MediaError(f"{path} holds only {found} of {stored} frames; is it complete?")
    yield from [last] * (clip.frames - found)


def _fitted(frame: torch.Tensor, clip: VideoInfo, fit: str | None) -> torch.Tensor:
    """A frame (1, H, W, 3) at the size of `clip`, cropped or padded without scaling."""
    height, width = frame.shape[1:3]
    if fit == "pad":
        pixels = frame.permute(0, 3, 1, 2).float()
        margins = (0, clip.width - width, 0, clip.height - height)
        return torch.nn.functional.pad(pixels, margins, mode="replicate").permute(0, 2, 3, 1).to(frame.dtype)
    top, left = (height - clip.height) // 2, (width - clip.width) // 2
    return frame[:, top : top + clip.height, left : left + clip.width]


def get_videostream_metadata(path: str | Path) -> tuple[float, int, int, int]:
    """(frames a second, frames, width, height)."""
    info = probe_video(path)
    return info.fps, info.frames, info.width, info.height


def picture_start(path: str | Path) -> float:
    """Seconds from where a clip begins to play to its first frame: its sound may begin before it, as after a cut."""
    with open_media(path, "video") as (container, stream):
        frame = next(container.decode(stream), None)
        origin = (container.start_time or 0) / 1_000_000
    return 0.0 if frame is None or frame.time is None else max(float(frame.time) - origin, 0.0)


def decode_video_from_file(
    path: str | Path,
    frame_cap: int = 0,
    device: torch.device | str = "cpu",
    *,
    fps: float | None = None,
) -> Iterator[torch.Tensor]:
    """Frames (1, H, W, 3), uint8, upright, at most `frame_cap` of them (0 or less: all).

    fps: give frames at this rate instead of the file's, each the nearest one in time (also evens out variable
    frame rates). Raises `InputError` for a rate that is none.
    """
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise InputError(f"fps is {fps}; give a positive number of frames a second.")
    frames = _timed_frames(path)
    chosen = (frame for _, frame in frames) if fps is None else _resample(frames, fps)
    for count, frame in enumerate(chosen, start=1):
        yield frame[None].to(device)
        if count == frame_cap:
            return


def _timed_frames(path: str | Path) -> Iterator[tuple[float, torch.Tensor]]:
    """(seconds since the first frame, frame (H, W, 3))."""
    with open_media(path, "video") as (container, stream):
        quarter_turns: int | None = None
        first: float | None = None
        for frame in container.decode(stream):
            if quarter_turns is None:
                quarter_turns = round((getattr(frame, "rotation", 0) or 0) / 90)
            time = float(frame.time) if frame.time is not None else 0.0
            first = time if first is None else first
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            yield time - first, torch.rot90(pixels, quarter_turns) if quarter_turns % 4 else pixels


def _resample(frames: Iterator[tuple[float, torch.Tensor]], fps: float) -> Iterator[torch.Tensor]:
    """The nearest frame at each tick of a steady rate; the last one lasts as long as the one before."""
    tick, previous, last = 0, None, 0.0
    for time, frame in frames:
        if previous is not None:
            last = time - previous[0]
            while tick / fps < previous[0] + last / 2:
                yield previous[1]
                tick += 1
        previous = (time, frame)
    if previous is not None:
        while tick == 0 or tick / fps < previous[0] + last - 1e-6:
            yield previous[1]
            tick += 1


def _rotation(container: Any, stream: Any) -> int:
    """Degrees by which the frames are to be turned, from the first frame's display matrix."""
    try:
        frame = next(container.decode(stream))
    except StopIteration:
        return 0
    return int(getattr(frame, "rotation", 0) or 0)


def load_video_conditioning(
    video_path: str | Path,
    height: int,
    width: int,
    frame_cap: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """A clip as pixels (1, 3, F, height, width) in [-1, 1], scaled to cover and cropped.

    Raises `MediaError` if it has no frames.
    """
    frames = [
        normalize_pixels(resize_and_center_crop(frame.float(), height, width), dtype, device)
        for frame in decode_video_from_file(video_path, frame_cap)
    ]
    if not frames:
        raise MediaError(f"{video_path} has no video frames.")
    return torch.cat(frames, dim=2)
