"""What happens to clips on their way to the oracle: blur, noise, resizing and lossy codecs."""

from __future__ import annotations

import io
import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad


def _planes(frames: Tensor) -> Tensor:
    return frames.movedim(-1, 1).float()


def _frames(planes: Tensor) -> Tensor:
    return planes.round().clamp(0, 255).to(torch.uint8).movedim(1, -1).contiguous()


def blur(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of uint8 (F, H, W, 3) by `sigma` pixels."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    planes = pad(_planes(frames), (reach,) * 4, mode="replicate")
    return _frames(conv2d(conv2d(planes, kernel, groups=3), kernel.transpose(2, 3), groups=3))


def add_noise(frames: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """Gaussian noise of `sigma` grey levels on uint8 frames."""
    generator = torch.Generator().manual_seed(seed)
    return _frames(_planes(frames) + sigma * torch.randn(_planes(frames).shape, generator=generator))


def resize(frames: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resizing of uint8 frames."""
    return _frames(interpolate(_planes(frames), (height, width), mode="bilinear", antialias=True))


def add_hiss(wave: Tensor, decibels: float, seed: int = 0) -> Tensor:
    """White noise at `decibels` of full scale on (C, N) samples."""
    generator = torch.Generator().manual_seed(seed)
    return (wave + 10 ** (decibels / 20) * torch.randn(wave.shape, generator=generator)).clamp(-1, 1)


def through_codecs(frames: Tensor, fps: float, wave: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Frames and (2, N) samples as they come back from an MP4 in memory with H.264 and AAC."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.options = {"crf": "20", "preset": "veryfast"}
        sound = out.add_stream("aac", rate=rate, layout="stereo")
        for frame in frames.numpy():
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        samples = av.AudioFrame.from_ndarray(wave.contiguous().numpy(), format="fltp", layout="stereo")
        samples.sample_rate = rate
        samples.pts = 0  # else the encoder's lead-in of 1024 samples stays in the file's timeline
        out.mux(sound.encode(samples))
        out.mux(video.encode())
        out.mux(sound.encode())
    file.seek(0)
    with av.open(file, "r") as back:
        pictures = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in back.decode(video=0)]
    file.seek(0)
    with av.open(file, "r") as back:
        heard = [torch.from_numpy(frame.to_ndarray()) for frame in back.decode(audio=0)]
    return torch.stack(pictures), torch.cat(heard, dim=1)[:, : wave.shape[1]]
