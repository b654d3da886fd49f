"""The mel front end: resampling, magnitude spectrum, mel bands, logarithm."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import nn
from torch.nn import functional as F

from ltx_core.errors import InputError
from ltx_core.model.common.checks import check_floating, check_tensor
from ltx_core.types import Audio
from ltx_core.utils import linspace

MEL_FLOOR = 1e-5
ZERO_CROSSINGS, ROLLOFF = 6, 0.99
DENSE_KERNEL = 2**22  # weights of a kernel that is applied as it stands; all rates in use have smaller ones
SCALING = "; divide 16-bit samples by 32768"
FIRST_SURROUND = {3: 3, 5: 3, 6: 4, 8: 4}  # by the number of channels: 3.0, 5.0, 5.1, 7.1


def log_mel(mel: torch.Tensor) -> torch.Tensor:
    """Natural logarithm with a floor: silence is ln(1e-5)."""
    return mel.clamp(min=MEL_FLOOR).log()


def check_waveform(waveform: torch.Tensor) -> None:
    """Raise `ShapeError` unless `waveform` is (B, C, N), `DtypeError` unless it is floating-point."""
    sizes = ("batch", "channels", "samples")
    check_tensor(waveform, "The audio front end", "waveforms", sizes, scaling=SCALING)


def resample(waveform: torch.Tensor, source: float, target: float) -> torch.Tensor:
    """Windowed-sinc polyphase resampling of (..., N) from `source` to `target` Hz.

    Hann window, 6 zero crossings, rolloff 0.99, zeros beyond both ends. The kernel is evaluated in the
    waveform's dtype in a fixed order: the quiet mel bands show its rounding.
    Raises `DtypeError` (a TypeError) for integers, `InputError` for an impossible rate.
    """
    if source == target:
        return waveform
    check_floating(waveform, "The resampler", "waveforms", SCALING)
    if not all(isinstance(rate, Real) and rate > 0 and rate % 1 == 0 for rate in (source, target)):
        raise InputError(f"Cannot resample from {source} to {target} Hz; rates are positive whole numbers.")
    common = math.gcd(int(source), int(target))
    old, new = int(source) // common, int(target) // common
    base = ROLLOFF * min(old, new)
    reach = math.ceil(ZERO_CROSSINGS * old / base)
    flat = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1])
    padded = F.pad(flat, (reach, reach + old))
    if new * (2 * reach + old) <= DENSE_KERNEL:
        taps = torch.arange(-reach, reach + old, dtype=flat.dtype, device=flat.device)[None]
        kernel = _resampling_kernel(taps, old, new, base)
        phases = F.conv1d(padded[:, None], kernel[:, None], stride=old).transpose(1, 2)  # (rows, steps, new)
    else:
        # Of so large a kernel nearly all is zero. Other rates are not done so too: a loop over their many steps is
        # slow, and sums would be rounded otherwise than by the convolution, which gives the reference's bits.
        nearest = torch.arange(new, device=flat.device)[:, None] * old // new
        places = nearest + torch.arange(2 * reach + 1, device=flat.device)
        kernel = _resampling_kernel((places - reach).to(flat.dtype), old, new, base)
        steps = (padded[:, start:][:, places] for start in range(0, flat.shape[-1] + 1, old))
        phases = torch.stack([(step * kernel).sum(-1) for step in steps], dim=1)
    length = new * waveform.shape[-1] / old
    length = math.ceil(torch.tensor(length, dtype=torch.float32, device="cpu").item())
    # Of more than half an hour float32 may ask for a sample or two that there are not.
    samples = phases.reshape(flat.shape[0], -1)[:, :length]
    return samples.reshape(*waveform.shape[:-1], samples.shape[-1])


def _resampling_kernel(taps: torch.Tensor, old: int, new: int, base: float) -> torch.Tensor:
    """(new, n) weights of the samples at whole numbers `taps` (1 or new, n), for each phase of the new rate."""
    phases = torch.arange(0, -new, -1, dtype=taps.dtype, device=taps.device)[:, None]
    t = phases / new + taps / old
    t = (t * base).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(t * math.pi / ZERO_CROSSINGS / 2) ** 2
    t = t * math.pi
    sinc = torch.where(t == 0, torch.ones_like(t), t.sin() / t)
    return sinc * (window * (base / old))


def mel_filterbank(n_fft: int, mel_bins: int, sample_rate: int) -> torch.Tensor:
    """Triangles on the Slaney mel scale with Slaney (area) normalisation: (n_fft / 2 + 1, mel_bins) float32."""
    step, corner, log_step = 200.0 / 3, 1000.0, math.log(6.4) / 27.0
    start = corner / step

    def to_mel(f: float) -> float:
        return f / step if f < corner else start + math.log(f / corner) / log_step

    frequencies = linspace(0, sample_rate // 2, n_fft // 2 + 1)
    ends = to_mel(0.0), to_mel(sample_rate / 2)
    mels = linspace(*ends, mel_bins + 2)
    points = torch.where(mels >= start, corner * torch.exp(log_step * (mels - start)), step * mels)
    widths = points[1:] - points[:-1]
    slopes = points[None] - frequencies[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return triangles * (2.0 / (points[2:] - points[:-2]))


class AudioProcessor(nn.Module):
    """Waveforms (B, C, N), float in [-1, 1], to log-mel spectrograms (B, C, T, F) with T = N' // hop + 1.

    It has no weights in a checkpoint and stays float32.
    """

    window: torch.Tensor
    filterbank: torch.Tensor

    def __init__(self, target_sample_rate: int, mel_bins: int, mel_hop_length: int, n_fft: int) -> None:
        super().__init__()
        self.target_sample_rate, self.mel_bins = target_sample_rate, mel_bins
        self.mel_hop_length, self.n_fft = mel_hop_length, n_fft
        window = torch.hann_window(n_fft, dtype=torch.float32, device="cpu")
        self.register_buffer("window", window, persistent=False)
        self.register_buffer(
            "filterbank", mel_filterbank(n_fft, mel_bins, target_sample_rate), persistent=False
        )

    def resample_audio(self, audio: Audio) -> Audio:
        """The same sound at the processor's rate."""
        waveform = resample(audio.waveform, audio.sampling_rate, self.target_sample_rate)
        return Audio(waveform, self.target_sample_rate)

    def waveform_to_mel(self, audio: Audio) -> torch.Tensor:
        """Natural-log magnitudes in Slaney mel bands, frames centred on multiples of the hop.

        Raises `ShapeError` for a waveform that is not (B, C, N), `InputError` for one of integers, for one too
        short for one frame, and for a rate that is no positive whole number.
        """
        check_waveform(audio.waveform)
        waveform = self.resample_audio(audio).waveform
        batch, channels, samples = waveform.shape
        if samples <= self.n_fft // 2:
            least = math.ceil(1000 * (self.n_fft // 2 + 1) / self.target_sample_rate) / 1000
            raise InputError(
                f"The sound is too short ({samples / self.target_sample_rate:.3f} s); use {least:.3f} s or more."
            )
        spectrum = torch.stft(
            waveform.reshape(batch * channels, samples).float(),
            self.n_fft,
            self.mel_hop_length,
            window=self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        mel = log_mel(spectrum.abs().transpose(1, 2) @ self.filterbank)
        return mel.unflatten(0, (batch, channels)).to(waveform.dtype)


def match_channels(waveform: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, C, N) with C changed to `channels`: mono is copied, more are mixed down.

    3.0, 5.0, 5.1 and 7.1 (front left, front right, centre, low if any, then pairs of left and right surrounds)
    are mixed to stereo as in ITU-R BS.775: centre and surrounds at sqrt(1 / 2), the low channel left out, and
    the sum scaled so that it cannot clip. Of other layouts every `channels`-th is averaged.
    Raises `ShapeError`, or `InputError` for integers.
    """
    check_waveform(waveform)
    present = waveform.shape[1]
    if present == channels:
        return waveform
    if present == 1:
        return waveform.expand(-1, channels, -1)
    if present in FIRST_SURROUND and channels == 2:
        side, first = math.sqrt(0.5), FIRST_SURROUND[present]
        pairs = (present - first) // 2
        front, centre = waveform[:, 0:2], waveform[:, 2:3]
        surround = waveform[:, first:].unflatten(1, (pairs, 2)).sum(dim=1)
        return (front + side * centre + side * surround) / (1 + (1 + pairs) * side)
    return torch.stack([waveform[:, i::channels].mean(dim=1) for i in range(channels)], dim=1)
