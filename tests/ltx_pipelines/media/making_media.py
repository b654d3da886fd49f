"""Tiny pictures, clips and sounds, and what a written file says of itself."""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from ltx_core.types import Audio

HEIGHT, WIDTH = 48, 64


def moving(count: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """uint8 frames (count, height, width, 3) of a gradient that moves."""
    time, y, x = torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(3 * x + 11 * time) % 256, (4 * y + 5 * time) % 256, (x + y) % 256], dim=-1).byte()


def numbered(count: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Frames of one grey level each, by which `numbers` tells them apart."""
    levels = (torch.arange(count) * 6 + 20).byte()
    return levels[:, None, None, None].expand(count, height, width, 3)


def numbers(frames) -> list[int]:
    """Which of the `numbered` frames these are, compressed or not."""
    return [round((frame.float().mean().item() - 20) / 6) for frame in frames]


def sine(seconds: float, rate: int = 48000, channels: int = 2) -> torch.Tensor:
    """float32 (channels, samples): 220 Hz, 440 Hz, ... at half scale."""
    times = torch.arange(round(seconds * rate)) / rate
    return torch.stack([0.5 * torch.sin(2 * torch.pi * 220 * (i + 1) * times) for i in range(channels)])


def sound(seconds: float, rate: int = 48000, channels: int = 2) -> Audio:
    return Audio(sine(seconds, rate, channels), rate)


@dataclass(frozen=True)
class Streams:
    """What the streams of a file are: times in seconds as the file states them, and what can be decoded."""

    rate: Fraction
    seconds: Fraction
    sound_seconds: Fraction | None
    sound_rate: int | None
    frames: list[np.ndarray]
    kinds: str
    times: list[Fraction]


def streams(path: Path) -> Streams:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        rate, seconds = video.average_rate, video.duration * video.time_base
        sounds = container.streams.audio
        sound_seconds = sounds[0].duration * sounds[0].time_base if sounds else None
        sound_rate = sounds[0].rate if sounds else None
        frames = list(container.decode(video))
        times = [frame.pts * frame.time_base for frame in frames]
    kinds = "".join(" IPB"[int(frame.pict_type)] for frame in frames)
    pixels = [frame.to_ndarray(format="rgb24") for frame in frames]
    return Streams(rate, seconds, sound_seconds, sound_rate, pixels, kinds, times)


def write_clip(path: Path, frames: torch.Tensor, milliseconds: list[int], rate: int = 24) -> Path:
    """A clip whose frames begin at these times, whatever they are."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, pixels in zip(milliseconds, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_steady(path: Path, frames: torch.Tensor, rate: int = 24) -> Path:
    return write_clip(path, frames, [round(1000 * i / rate) for i in range(len(frames))], rate)


def cut_without_encoding(source: Path, path: Path, frames: int) -> Path:
    """The packets of an MP4 again, the first ones before time 0: an edit list says that they do not play."""
    with av.open(str(source)) as given, av.open(str(path), "w") as container:
        stream = given.streams.video[0]
        copy = container.add_stream_from_template(stream)
        earlier = round(frames / stream.average_rate / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, copy
                container.mux(packet)
    return path


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write_sound(path: Path, codec: str, sample_format: str, samples: np.ndarray, rate: int = 16000) -> Path:
    """A sound file of samples (channels, n), already in the values of the sample format."""
    layout = LAYOUTS[len(samples)]
    planes = samples if sample_format.endswith("p") else samples.T.reshape(1, -1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format=sample_format, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def clip_with_late_sound(path: Path, late: float) -> Path:
    """A clip of 9 frames in 0.9 s, whose sound, 0.25 s of a loud constant tone, begins `late` seconds after it, or
    before it."""
    rate = 16000
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=10)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for pixels in moving(9, 32, 32).numpy():
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.full((1, 4000), 16384, np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(late * rate), Fraction(1, rate)
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return path


MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


def turn(path: Path, clockwise: int) -> None:
    """Put a turn into the header of an MP4's only track, as phones do; the pixels stay as they are."""
    content = bytearray(path.read_bytes())
    header = content.find(b"tkhd")
    version = content[header + 4]
    a, b, c, d = (value << 16 for value in MATRICES[clockwise])
    # After the version: two times, a number and a duration (4 or 8 bytes each), and 16 bytes of other things.
    offset = header + 8 + (32 if version else 20) + 16
    struct.pack_into(">9i", content, offset, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
