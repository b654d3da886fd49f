"""Frames and sound to a video file, streamed: memory does not grow with length, nothing half-written stays."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ltx_core.errors import InputError, MediaError
from ltx_core.types import Audio
from ltx_pipelines.media.container import open_media

CRF, PRESET = "19", "veryfast"
NTSC = 1001  # 23.976, 29.97, 59.94 ... are multiples of 1000 / 1001


def exact_rate(fps: float) -> Fraction:
    """The frame rate that a decimal number stands for: 23.976 is 24000/1001."""
    nearest = round(fps)
    if nearest and abs(fps - nearest * 1000 / NTSC) < 5e-3 * nearest / 24 and fps != nearest:
        return Fraction(nearest * 1000, NTSC)
    return Fraction(fps).limit_denominator(NTSC)


def to_int16(waveform: torch.Tensor) -> np.ndarray:
    """Float (channels, samples) to int16 (samples, channels): clipped to [-1, 1], times 32767, truncated."""
    return (waveform.detach().cpu().float().clamp(-1, 1) * 32767).to(torch.int16).T.contiguous().numpy()


def encode_video(
    video: torch.Tensor | Iterable[torch.Tensor],
    fps: float,
    audio: Audio | None,
    output_path: str | Path,
    video_chunks_number: int = 0,
    *,
    settings: str | None = None,
    on_chunk: Callable[[int], None] | None = None,
    crf: str = CRF,
) -> None:
    """Write H.264 (yuv420p, BT.709 limited, tagged) with AAC sound of the same length.

    video: uint8 (F, H, W, 3), or an iterable of such chunks, read one at a time. audio: (channels, samples)
    or (samples, 2), one or two channels; cut, or continued with silence, to the length of the video.
    settings: kept in the file's comment tag. on_chunk: called before each chunk; what it raises stops the
    work. The file appears under its name only when it is complete.
    Raises `InputError` for sound or frames that cannot be written, `MediaError` if the file cannot be.
    """
    waveform = None if audio is None else _two_channels(audio.waveform)
    rate = None if audio is None else audio.sampling_rate
    chunks = iter([video] if isinstance(video, torch.Tensor) else video)
    with _partial(Path(output_path)) as path:
        _write(path, chunks, exact_rate(fps), waveform, rate, video_chunks_number, settings, on_chunk, crf)


def _write(
    path: Path,
    chunks: Iterator[torch.Tensor],
    fps: Fraction,
    waveform: torch.Tensor | None,
    rate: int | None,
    expected: int,
    settings: str | None,
    on_chunk: Callable[[int], None] | None,
    crf: str,
) -> None:
    import av

    try:
        with av.open(str(path), "w", options={"movflags": "use_metadata_tags+faststart"}) as container:
            if settings is not None:
                container.metadata["comment"] = settings
            first = next((chunk for chunk in chunks if len(chunk)), None)
            if first is None:
                raise InputError("There are no frames to write.")
            picture = _video_stream(container, fps, first.shape[2], first.shape[1], crf)
            # Both streams before the first packet: the header lists them.
            sound = None if rate is None else container.add_stream("aac", rate=rate, layout="stereo")
            count = 0
            bar = tqdm(_chain(first, chunks), total=expected or None, desc="Writing", unit="chunk")
            for number, chunk in enumerate(bar):
                if on_chunk is not None:
                    on_chunk(number)
                count += _encode_frames(container, picture, chunk, count)
            container.mux(picture.encode())
            if sound is not None and waveform is not None and rate is not None:
                _encode_sound(container, sound, waveform, rate, round(count / fps * rate))
    except av.FFmpegError as error:
        raise MediaError(f"{path.name}: writing failed ({error.strerror or error}).") from None


def _chain(first: torch.Tensor, rest: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield first
    yield from rest


def _video_stream(container: Any, fps: Fraction, width: int, height: int, crf: str) -> Any:
    # Without cpu-independent x264's rate control differs from run to run, and so do the bytes.
    options = {"crf": crf, "preset": PRESET, "x264-params": "cpu-independent=1"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    # 4:2:0 halves both sides; an odd last row or column is repeated when frames are encoded.
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / fps
    context.color_range, context.colorspace = 1, 1  # limited, BT.709
    context.color_primaries = context.color_trc = 1
    return stream


def _encode_frames(container: Any, stream: Any, chunk: torch.Tensor, start: int) -> int:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    frames = chunk.cpu().numpy()
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    for offset, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        frame.pts, frame.time_base = start + offset, stream.codec_context.time_base
        container.mux(stream.encode(frame))
    return len(frames)


def _encode_sound(container: Any, stream: Any, waveform: torch.Tensor, rate: int, samples: int) -> None:
    """AAC of exactly `samples` samples."""
    import av

    fitted = torch.nn.functional.pad(waveform[:, :samples], (0, max(samples - waveform.shape[1], 0)))
    values = to_int16(fitted)
    for start in range(0, samples, rate):
        part = np.ascontiguousarray(values[start : start + rate]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _two_channels(waveform: torch.Tensor) -> torch.Tensor:
    """(2, samples) from mono or stereo in either order of axes. Raises `InputError` for anything else."""
    if waveform.dim() == 1:
        waveform = waveform[None]
    if waveform.dim() == 2 and waveform.shape[0] not in (1, 2) and waveform.shape[1] in (1, 2):
        waveform = waveform.T
    if waveform.dim() != 2 or waveform.shape[0] not in (1, 2) or not waveform.shape[1]:
        raise InputError(
            f"Sound of shape {tuple(waveform.shape)} cannot be written; give (1, samples) or (2, samples)."
        )
    return waveform.expand(2, -1)


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, moved there at the end, removed on any error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"Cannot make the folder {target.parent} ({error.strerror}).") from None
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix or '.mp4'}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings that `encode_video` put into a file, or None."""
    with open_media(path, "video") as (container, _):
        comment = container.metadata.get("comment")
    try:
        return json.loads(comment) if comment else None
    except ValueError:
        return None
