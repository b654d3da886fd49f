"""Audio files to waveforms."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltx_core.errors import InputError
from ltx_core.types import Audio
from ltx_pipelines.media.container import open_media

# Integer sample formats: (what silence is, full scale).
SCALES = {"u8": (128.0, 128.0), "s16": (0.0, 32768.0), "s32": (0.0, 2147483648.0), "s64": (0.0, 2.0**63)}


# Lossy decoders need some sound before the first sample that is wanted (Opus: 80 ms; MP3: several frames).
RUN_UP = 0.5


def decode_audio_from_file(
    path: str | Path,
    device: torch.device | str = "cpu",
    start_time: float = 0.0,
    max_duration: float | None = None,
) -> Audio | None:
    """The sound of a file from `start_time` on, at most `max_duration` seconds: Audio (1, channels, samples),
    float32 in [-1, 1], at the file's own rate. None if it has no sound there.

    Times count from where the file begins to play; sound that begins later than that follows silence.
    Raises `InputError` for a negative time, `MediaError` for a file that cannot be decoded.
    """
    for name, value in (("start_time", start_time), ("max_duration", max_duration or 0)):
        if not (isinstance(value, Real) and value >= 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value!r}; give a number of seconds from 0 on.")
    with open_media(path, "audio") as (container, stream):
        if stream is None:
            return None
        rate = stream.rate
        origin = (container.start_time or 0) / 1_000_000
        _seek(container, stream, origin, start_time)
        end = None if not max_duration else start_time + max_duration
        pieces, first = _decode(container, stream, origin, start_time, end)
    if not pieces:
        return None
    samples = np.concatenate(pieces, axis=1)
    surplus = round((start_time - first) * rate)
    samples = samples[:, surplus:] if surplus > 0 else np.pad(samples, ((0, 0), (-surplus, 0)))
    if max_duration is not None:
        samples = samples[:, : round(max_duration * rate)]
    if not samples.shape[1]:
        return None
    return Audio(torch.from_numpy(np.ascontiguousarray(samples))[None].to(device), rate)


def _seek(container: Any, stream: Any, origin: float, start: float) -> None:
    """To `start`, or a little before; stays at the beginning where the file cannot be searched."""
    import av

    # What is not compressed needs none; read from there, half samples are rounded as in the reference.
    run_up = 0.0 if stream.codec_context.name.startswith("pcm_") else RUN_UP
    target = max(start - run_up, 0.0)
    # In MP4 also to 0: AAC decoders prime themselves differently after a seek, and the reference seeks. From FFmpeg 9
    # on (libavcodec 63) they drop a frame for that. In other files a seek to 0 may lose the first packet.
    is_new = av.library_versions["libavcodec"][0] >= 63
    if not target and (is_new or "mp4" not in container.format.name):
        return
    try:
        container.seek(int((origin + target) / stream.time_base), stream=stream)
    except (av.FFmpegError, OverflowError):  # the latter for a time that no file reaches
        container.seek(0)


def _decode(
    container: Any, stream: Any, origin: float, start: float, end: float | None
) -> tuple[list[np.ndarray], float]:
    """(pieces (channels, samples) that touch [start, end], time of the first one)."""
    pieces: list[np.ndarray] = []
    first = position = 0.0
    for frame in container.decode(stream):
        time = float(frame.time) - origin if frame.time is not None else position
        position = time + frame.samples / frame.sample_rate
        if position < start:
            continue
        if end is not None and time > end:
            break
        if not pieces:
            first = time
        pieces.append(_samples(frame))
    return pieces, first


def _samples(frame: Any) -> np.ndarray:
    """float32 (channels, samples)."""
    values = frame.to_ndarray()
    name = frame.format.name.removesuffix("p")
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if name in SCALES:
        silence, scale = SCALES[name]
        return ((values.astype(np.float32) - np.float32(silence)) / np.float32(scale)).astype(np.float32)
    return values.astype(np.float32)
