"""Listens to a clip: the class of its sound, the moments at which something rings, and what rings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ltx_trainer.world.sound import ring
from ltx_trainer.world.vocabulary import TIMBRES, TREMOLO_RATE

RATE = 16_000  # Hz at which everything is analysed
HOP = 64  # samples between values of the envelope, 4 ms
WINDOW = 1024  # samples of a spectrum
STRIDE = 160  # samples between spectra, 10 ms
SILENT = -40.0  # dB of full scale below which nothing is heard
ATTACK = 8.5  # dB in 32 ms that make an onset
FAINT = 12.0  # dB below the loudest moment at which an onset no longer counts
STEADY = 7.5  # dB below the loudest moment at which the middle level of a sustained sound is at least
DECAY = 5.0  # dB lost after an onset that make it a ring
EARLY = 0.08  # seconds up to which an attack is the clip's beginning, not an onset
RECOVERY = 0.12  # seconds after an onset before the next
RANGE = 32.0  # dB below the loudest moment down to which pitch is followed
GLIDE = 0.25  # octaves that make a tone's pitch move
SWELL = 12.0  # dB over the clip that make a tone grow or fade
THROB = 0.25  # tremolo depth that makes a hum throb
ALIKE = 0.5  # spectral similarity below which a ring is none of the known
BINS = torch.logspace(math.log10(150), math.log10(7000), 67)  # edges of the bands that tell timbres apart, Hz


@dataclass(frozen=True)
class Hearing:
    """What is heard.

    sound: one of `SOUNDS`, or None if it fits no class. timbre: the ring's name for impacts. onsets: seconds
    at which something rings. level: dB of full scale at the loudest moment. pitch: Hz, the median over what
    is heard, or None.
    """

    sound: str | None
    timbre: str | None
    onsets: tuple[float, ...]
    level: float
    pitch: float | None


def resample(wave: Tensor, rate: int, target: int = RATE) -> Tensor:
    """(C, N) at `rate` Hz to (C, round(N * target / rate)), band-limited, by its spectrum."""
    if rate == target:
        return wave
    pad = rate // 10 - (wave.shape[1] % (rate // 10))  # a tenth of a second at both rates, against wrapping
    n = wave.shape[1] + pad
    m = round(n * target / rate)
    spectrum = torch.fft.rfft(wave, n=n)
    wanted = torch.zeros(len(wave), m // 2 + 1, dtype=spectrum.dtype)
    shared = min(wanted.shape[1], spectrum.shape[1])
    wanted[:, :shared] = spectrum[:, :shared]
    return torch.fft.irfft(wanted, n=m)[:, : round(wave.shape[1] * target / rate)] * (m / n)


def _envelope(wave: Tensor) -> np.ndarray:
    """Loudness in dB of full scale every HOP samples, over windows of 8 ms: value k is centred at k * HOP."""
    power = wave.square().sum(dim=0, keepdim=True)
    power = torch.nn.functional.pad(power, (HOP, HOP))
    smooth = torch.nn.functional.avg_pool1d(power, 2 * HOP, stride=HOP)[0]
    return (10 * torch.log10(smooth.clamp(min=1e-12))).double().numpy()


def _power_spectra(wave: Tensor) -> Tensor:
    """Power (T, WINDOW / 2 + 1), summed over channels; spectrum t is centred at sample t * STRIDE."""
    window = torch.hann_window(WINDOW)
    spectra = torch.stft(
        wave, WINDOW, STRIDE, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return spectra.abs().square().sum(dim=0).T


def _attacks(envelope: np.ndarray) -> list[int]:
    """Positions in the envelope at which loudness leaps up."""
    loud = np.maximum(envelope, envelope.max() - 35)
    back, ahead = 4, 4
    rise = np.zeros_like(loud)
    rise[back:-ahead] = loud[back + ahead :] - loud[: -back - ahead]
    gap = int(RECOVERY * RATE / HOP)
    found: list[int] = []
    for at in np.argsort(-rise):
        if rise[at] < ATTACK:
            break
        if loud[at : at + 8].max() > loud.max() - FAINT and all(abs(at - other) > gap for other in found):
            found.append(int(at))
    return sorted(found)


def _rings(envelope: np.ndarray, at: int) -> bool:
    """Whether loudness falls off for good after the attack at `at`, or the clip ends too soon to tell."""
    after = envelope[at + 35 : at + 60]  # 140 to 240 ms later
    return len(after) < 5 or float(envelope[at : at + 8].max() - after.mean()) > DECAY


def _steepest(envelope: np.ndarray, at: int) -> float:
    """Seconds of the attack near `at`: where loudness rises most, less what the window looks ahead."""
    span = envelope[max(at - 5, 0) : at + 6]
    step = int(np.argmax(np.diff(span)))
    return (max(at - 5, 0) + step + 1.5) * HOP / RATE


def find_onsets(envelope: np.ndarray) -> tuple[float, ...]:
    """Seconds at which something starts to ring; what sounds from the beginning, or all along, has none."""
    if np.median(envelope[25:]) > envelope.max() - STEADY:
        return ()
    found = (_steepest(envelope, at) for at in _attacks(envelope) if _rings(envelope, at))
    return tuple(onset for onset in found if onset > EARLY)


def _bands(spectra: Tensor) -> Tensor:
    """Amplitude in logarithmic bands, unit length: (BINS - 1,)."""
    frequencies = torch.arange(spectra.shape[1]) * RATE / WINDOW
    band = torch.bucketize(frequencies, BINS)
    total = torch.zeros(len(BINS) + 1).index_add_(0, band, spectra.mean(dim=0))[1:-1].sqrt()
    spread = torch.nn.functional.avg_pool1d(total[None, None], 3, stride=1, padding=1)[0, 0]
    return spread / spread.norm().clamp(min=1e-9)


@lru_cache(maxsize=1)
def _ring_bands() -> Tensor:
    """What the bands of each shape's ring are: (shapes, BINS - 1)."""
    heard = []
    for shape in TIMBRES:
        wave = torch.zeros(1, RATE // 2)
        sound = ring(shape, RATE)[: RATE // 2 - 1600]
        wave[0, 1600 : 1600 + len(sound)] = sound
        heard.append(_bands(_after(_power_spectra(wave), (0.1,))))
    return torch.stack(heard)


def _after(spectra: Tensor, onsets: tuple[float, ...]) -> Tensor:
    """The spectra from 20 to 100 ms after the onsets."""
    starts = [round((onset + 0.02) * RATE / STRIDE) for onset in onsets]
    return torch.cat([spectra[start : start + 9] for start in starts])


def _timbre(spectra: Tensor, onsets: tuple[float, ...]) -> str | None:
    heard = _after(spectra, onsets)
    if not len(heard):
        return None
    similarity = _ring_bands() @ _bands(heard)
    best = int(similarity.argmax())
    return list(TIMBRES.values())[best].name if similarity[best] > ALIKE else None


def _pitches(spectra: Tensor) -> np.ndarray:
    """Hz of the strongest partial in each audible spectrum, with the peak interpolated between bins."""
    power = spectra[:, : round(3000 * WINDOW / RATE)].double().numpy()
    total = power.sum(axis=1)
    power = power[total > total.max() * 10 ** (-RANGE / 10)]
    low = round(80 * WINDOW / RATE)
    peak = np.argmax(power[:, low:-1], axis=1) + low
    row = np.arange(len(peak))
    a, b, c = (np.log(power[row, peak + k] + 1e-20) for k in (-1, 0, 1))
    shift = np.clip(0.5 * (a - c) / np.minimum(a - 2 * b + c, -1e-9), -0.5, 0.5)
    return (peak + shift) * RATE / WINDOW


def _tremolo(envelope: np.ndarray) -> float:
    """Depth of the modulation of amplitude about TREMOLO_RATE."""
    amplitude = 10 ** (envelope / 20)
    time = np.arange(len(amplitude)) * HOP / RATE
    taper = np.hanning(len(amplitude))
    rates = np.arange(TREMOLO_RATE - 1.5, TREMOLO_RATE + 1.6, 0.5)
    waves = np.exp(-2j * np.pi * rates[:, None] * time)
    return float(2 * np.abs(waves @ (amplitude * taper)).max() / (amplitude @ taper))


def _tone(envelope: np.ndarray, pitches: np.ndarray) -> str:
    """The class of a sustained sound."""
    octaves = np.log2(pitches)
    size = max(1, len(octaves) // 20)
    steps = np.array([np.median(part) for part in np.array_split(octaves, len(octaves) // size)])
    low, high = np.quantile(steps, (0.05, 0.95))
    if high - low > GLIDE:
        net = steps[-1] - steps[0]
        if abs(net) < 0.7 * np.abs(np.diff(steps)).sum():
            return "warble"
        return "rising" if net > 0 else "falling"
    inner = envelope[25:-10]  # without the beginning, which a vocoder or a codec may blur
    time = np.linspace(-0.5, 0.5, len(inner))
    change = float((time @ inner) / (time @ time))
    if abs(change) > SWELL:
        return "swell" if change > 0 else "fade"
    return "pulse" if _tremolo(inner) > THROB else "hum"


def listen(waveform: Tensor, rate: int) -> Hearing:
    """Analyse float samples (C, N) or (N,) at `rate` Hz."""
    wave = waveform.detach().to("cpu", torch.float32)
    wave = resample(wave[None] if wave.ndim == 1 else wave, rate)
    if wave.shape[1] < 2 * WINDOW:
        return Hearing("silence", None, (), -120.0, None)
    envelope = _envelope(wave)
    level = float(np.quantile(envelope, 0.98))
    if level < SILENT:
        return Hearing("silence", None, (), level, None)
    spectra = _power_spectra(wave)
    pitches = _pitches(spectra)
    pitch = float(np.median(pitches))
    onsets = find_onsets(envelope)
    if onsets:
        return Hearing("impacts", _timbre(spectra, onsets), onsets, level, pitch)
    return Hearing(_tone(envelope, pitches), None, (), level, pitch)
