"""Frames and sound to a video file, streamed: memory does not grow with length, nothing half-written stays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltx_core.errors import InputError, MediaError
from ltx_core.model.audio_vae.processor import match_channels
from ltx_core.types import Audio
from ltx_core.utils import whole_file
from ltx_pipelines.media.container import open_media
from ltx_pipelines.progress import progress

CRF, PRESET = "19", "veryfast"
NTSC = 1001  # 23.976, 29.97, 59.94 ... are multiples of 1000 / 1001
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
MOST_CHANNELS = 8  # of a waveform that is mixed down
QUICKTIME = (".mp4", ".m4v", ".mov")


def exact_rate(fps: float) -> Fraction:
    """The frame rate that a decimal number stands for: 23.976 is 24000/1001.

    Raises `InputError` for a rate below 0.001 or above 1000, or none at all.
    """
    if not (isinstance(fps, Real) and 0.001 <= fps <= 1000):
        raise InputError(f"The frame rate is {fps!r}; give frames a second, 0.001 to 1000.")
    nearest = round(fps)
    if nearest and abs(fps - nearest * 1000 / NTSC) < 5e-3 * nearest / 24 and fps != nearest:
        return Fraction(nearest * 1000, NTSC)
    return Fraction(fps).limit_denominator(NTSC)


def to_int16(waveform: torch.Tensor) -> np.ndarray:
    """Float (channels, samples) to int16 (samples, channels): clipped to [-1, 1], times 32767, truncated.

    Samples that are no number become silence.
    """
    clipped = waveform.detach().cpu().float().nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1)
    return (clipped * 32767).to(torch.int16).T.contiguous().numpy()


def encode_video(
    video: torch.Tensor | Iterable[torch.Tensor],
    fps: float,
    audio: Audio | None,
    output_path: str | Path,
    video_chunks_number: int = 0,
    *,
    settings: str | None = None,
    on_chunk: Callable[[int], None] | None = None,
    crf: str | int = CRF,
) -> None:
    """Write H.264 (yuv420p, BT.709 limited, tagged) with AAC sound of the same length.

    video: uint8 (F, H, W, 3), or an iterable of such chunks, read one at a time. audio: (channels, samples)
    or (samples, 2), one or two channels, also with a batch axis of 1; cut, or continued with silence, to the
    length of the video. settings: kept in the file's comment tag. on_chunk: called before each chunk is
    written; what it raises stops the work. The file appears under its name only when it is complete.
    Raises `InputError` for sound or frames that cannot be written, `MediaError` if the file cannot be.
    """
    rate = exact_rate(fps)
    sound = None if audio is None else _Sound(audio)
    chunks = _checked([video] if isinstance(video, torch.Tensor) else video)
    with _written(Path(output_path)) as path, _container(path, rate, sound) as container:
        if settings is not None:
            container.metadata["comment"] = settings
        # Both streams before the first chunk: what a file cannot hold is found before any work.
        picture = _add_stream(container, "libx264", rate=rate)
        if sound is not None:
            sound.open(container)
        first = next(chunks, None)
        if first is None:
            raise InputError("There are no frames to write.")
        _set_up(picture, rate, first.shape[2], first.shape[1], crf)
        count = 0
        total = video_chunks_number or None
        bar = progress(itertools.chain([first], chunks), total=total, desc="Writing", unit="chunk")
        for number, chunk in enumerate(bar):
            if on_chunk is not None:
                on_chunk(number)
            for second in chunk.split(max(round(rate), 1)):
                count += _encode_frames(container, picture, second, count)
                if sound is not None:
                    sound.write(count / rate)
        container.mux(picture.encode())
        if sound is not None:
            sound.finish()


def _checked(chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The chunks that hold frames. Raises `InputError` for one that is no frames, or of another size."""
    size = None
    for chunk in chunks:
        shape = tuple(chunk.shape)
        if chunk.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise InputError(
                f"Frames of shape {shape}, {chunk.dtype}, cannot be written; give uint8 (frames, height, width, 3)."
            )
        if size not in (None, shape[1:3]):
            raise InputError(
                f"Frames of {shape[2]}x{shape[1]} pixels follow frames of {size[1]}x{size[0]}; give all one size."
            )
        size = shape[1:3]
        if len(chunk):
            yield chunk


@contextmanager
def _container(path: Path, rate: Fraction, sound: _Sound | None) -> Iterator[Any]:
    """A file to write into. Raises `MediaError` for an ending that says nothing."""
    import av

    options = {"fflags": "bitexact"}  # else Matroska names its parts by chance
    if path.suffix.lower() in QUICKTIME:
        # The header counts durations in these units, by default milliseconds: too coarse for samples.
        units = rate.numerator * 1000 if sound is None else sound.encoded_rate
        options = {"movflags": "use_metadata_tags+faststart", "movie_timescale": str(units)}
    try:
        container = av.open(str(path), "w", options=options)
    except av.FFmpegError:
        raise
    except ValueError:  # an ending that PyAV does not know
        raise MediaError(f"No video can be written to a file ending in {path.suffix}; use .mp4.") from None
    with container:
        yield container


def _add_stream(container: Any, codec: str, **facts: Any) -> Any:
    try:
        return container.add_stream(codec, **facts)
    except ValueError as error:  # what PyAV raises for a codec that a kind of file cannot hold
        raise MediaError(f"{error}; use a name ending in .mp4.") from None


def _set_up(stream: Any, fps: Fraction, width: int, height: int, crf: str | int) -> None:
    # Without cpu-independent x264's rate control differs from run to run, and so do the bytes.
    stream.codec_context.options = {"crf": str(crf), "preset": PRESET, "x264-params": "cpu-independent=1"}
    # 4:2:0 halves both sides; an odd last row or column is repeated when frames are encoded.
    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / fps
    context.color_range, context.colorspace = 1, 1  # limited, BT.709
    context.color_primaries = context.color_trc = 1


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


class _Sound:
    """AAC sound that is written as far as the picture has come, so that the two lie side by side in the file.

    Raises `InputError` for sound that is neither mono nor stereo, or has no sampling rate.
    """

    def __init__(self, audio: Audio) -> None:
        self.waveform = _two_channels(audio.waveform)
        self.rate = int(audio.sampling_rate)
        if self.rate <= 0:
            raise InputError(f"The sampling rate is {audio.sampling_rate}; give samples a second.")
        # AAC knows a few rates only; PyAV resamples to the stream's.
        self.encoded_rate = next((rate for rate in AAC_RATES if rate >= self.rate), AAC_RATES[-1])
        self._container: Any = None
        self._stream: Any = None
        self._written = 0

    def open(self, container: Any) -> None:
        """Add the stream. Raises `MediaError` for a file that cannot hold it."""
        self._container = container
        self._stream = _add_stream(container, "aac", rate=self.encoded_rate, layout="stereo")

    def write(self, seconds: Fraction) -> None:
        """The samples up to this time; silence follows the last one."""
        import av

        end = round(seconds * self.rate)
        for start in range(self._written, end, self.rate):
            stop = min(start + self.rate, end)
            values = to_int16(self.waveform[:, start:stop])
            values = np.pad(values, ((0, stop - start - len(values)), (0, 0)))
            frame = av.AudioFrame.from_ndarray(values.reshape(1, -1), format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = self.rate, start, Fraction(1, self.rate)
            self._container.mux(self._stream.encode(frame))
        self._written = end

    def finish(self) -> None:
        self._container.mux(self._stream.encode())


def _two_channels(waveform: torch.Tensor) -> torch.Tensor:
    """(2, samples) from mono, stereo (in either order of axes) or up to eight channels, mixed down.

    Raises `InputError` for anything else.
    """
    if waveform.dim() == 3 and waveform.shape[0] == 1:
        waveform = waveform[0]
    if waveform.dim() == 1:
        waveform = waveform[None]
    if waveform.dim() == 2 and waveform.shape[0] not in (1, 2) and waveform.shape[1] in (1, 2):
        waveform = waveform.T
    if waveform.dim() != 2 or not 1 <= waveform.shape[0] <= MOST_CHANNELS or not waveform.shape[1]:
        raise InputError(
            f"Sound of shape {tuple(waveform.shape)} cannot be written; give (1, samples) or (2, samples)."
        )
    return match_channels(waveform[None].float(), 2)[0]


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """`whole_file` for a video: whatever keeps it from being there is a `MediaError`."""
    import av

    with ExitStack() as file:
        try:
            partial = file.enter_context(whole_file(target, ending=".mp4"))
        except InputError as error:
            raise MediaError(str(error)) from None
        except OSError as error:
            raise MediaError(f"Cannot make the folder {target.parent} ({error.strerror}).") from None
        try:
            yield partial
        except av.FFmpegError as error:
            raise MediaError(f"Cannot write {target} ({error.strerror or error}).") from None
        try:
            file.close()  # moves it into place
        except OSError as error:
            raise MediaError(f"Cannot write {target} ({error.strerror}).") from None


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings that `encode_video` put into a file, or None."""
    with open_media(path, "video") as (container, _):
        comment = container.metadata.get("comment") or container.metadata.get("COMMENT")
    try:
        settings = json.loads(comment) if comment else None
    except ValueError:
        return None
    return settings if isinstance(settings, dict) else None
