"""Video files to frames: what a clip is, and its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import MediaError
from ltx_pipelines.media.container import open_media
from ltx_pipelines.media.images import normalize_pixels, resize_and_center_crop


@dataclass(frozen=True)
class VideoInfo:
    """Frames a second (exact), number of frames, and upright size of a clip."""

    rate: Fraction
    frames: int
    width: int
    height: int

    @property
    def fps(self) -> float:
        return float(self.rate)

    @property
    def duration(self) -> float:
        return self.frames / self.fps


def probe_video(path: str | Path) -> VideoInfo:
    """What a clip is. Counts frames by decoding where the container does not say.

    Raises `MediaError` for a file without video.
    """
    with open_media(path, "video") as (container, stream):
        turned = _rotation(container, stream) % 180 == 90
        width, height = stream.width, stream.height
        rate = stream.average_rate or stream.guessed_rate or Fraction(24)
        frames = stream.frames
    if not frames:
        frames = sum(1 for _ in decode_video_from_file(path))
    return VideoInfo(Fraction(rate), frames, *((height, width) if turned else (width, height)))


def get_videostream_metadata(path: str | Path) -> tuple[float, int, int, int]:
    """(frames a second, frames, width, height)."""
    info = probe_video(path)
    return info.fps, info.frames, info.width, info.height


def decode_video_from_file(
    path: str | Path,
    frame_cap: int = 0,
    device: torch.device | str = "cpu",
    *,
    until: float | None = None,
    fps: float | None = None,
) -> Iterator[torch.Tensor]:
    """Frames (1, H, W, 3), uint8, upright, at most `frame_cap` of them (0 or less: all).

    until: stop before this time in seconds. fps: answer frames at this rate instead of the file's, each the
    nearest one in time (also evens out variable frame rates).
    """
    frames = _timed_frames(path, until)
    chosen = (frame for _, frame in frames) if fps is None else _resample(frames, fps)
    for count, frame in enumerate(chosen, start=1):
        yield frame[None].to(device)
        if count == frame_cap:
            return


def _timed_frames(path: str | Path, until: float | None) -> Iterator[tuple[float, torch.Tensor]]:
    """(seconds since the first frame, frame (H, W, 3))."""
    with open_media(path, "video") as (container, stream):
        quarter_turns: int | None = None
        first: float | None = None
        for frame in container.decode(stream):
            if quarter_turns is None:
                quarter_turns = round((getattr(frame, "rotation", 0) or 0) / 90)
            time = float(frame.time) if frame.time is not None else 0.0
            first = time if first is None else first
            if until is not None and time - first >= until - 1e-6:
                return
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            yield time - first, torch.rot90(pixels, quarter_turns) if quarter_turns % 4 else pixels


def _resample(frames: Iterator[tuple[float, torch.Tensor]], fps: float) -> Iterator[torch.Tensor]:
    """The nearest frame at each tick of a steady rate."""
    tick, previous = 0, None
    for time, frame in frames:
        if previous is not None:
            middle = (previous[0] + time) / 2
            while tick / fps < middle:
                yield previous[1]
                tick += 1
        previous = (time, frame)
    if previous is not None:
        while tick / fps <= previous[0] + 0.5 / fps:
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
    *,
    until: float | None = None,
) -> torch.Tensor:
    """A clip as pixels (1, 3, F, height, width) in [-1, 1], scaled to cover and cropped.

    Raises `MediaError` if it has no frames.
    """
    frames = [
        normalize_pixels(resize_and_center_crop(frame, height, width), dtype, device)
        for frame in decode_video_from_file(video_path, frame_cap, until=until)
    ]
    if not frames:
        raise MediaError(f"{video_path} has no video frames.")
    return torch.cat(frames, dim=2)
