"""Makes a scene's sound: rings at impacts, tones that follow the object's height, hums, swells."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ltx_trainer.world.scene import Room, Scene, follow
from ltx_trainer.world.vocabulary import TIMBRES, TONES, TREMOLO_RATE, Tone

TONE_LEVEL = 0.25  # amplitude of a tone's fundamental
RING_LEVEL = 0.45
HARMONICS = (1.0, 0.35, 0.15)
CONTROL_RATE = 250.0  # Hz at which pitch and panning are computed before interpolation
FADE = 0.008  # seconds in and out, so that tones do not click
CLICK = 0.004  # seconds of noise at the attack of a ring
SILENT = Tone(100.0)


def ring(shape: str, rate: int) -> Tensor:
    """The ring of `shape` hitting the floor, (n,) float32, attack first, until it has decayed by 60 dB."""
    timbre = TIMBRES[shape]
    n = math.ceil(6.9 * timbre.decay * rate)
    time = torch.arange(n, dtype=torch.float64) / rate
    sound = torch.zeros(n, dtype=torch.float64)
    for frequency, gain in timbre.partials:
        if frequency < rate / 2:
            sound += gain * torch.sin(2 * math.pi * frequency * time)
    noise = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sound = sound * torch.exp(-time / timbre.decay) + 0.5 * noise * torch.exp(-time / CLICK * 3)
    return (RING_LEVEL * sound / sum(gain for _, gain in timbre.partials)).float()


def _interpolate(control: Tensor, positions: Tensor) -> Tensor:
    """Read (B, C) control curves at fractional `positions` (N,)."""
    left = positions.floor().long().clamp(max=control.shape[1] - 2)
    return torch.lerp(control[:, left], control[:, left + 1], (positions - left).to(control.dtype))


def _tone_parameters(scenes: Sequence[Scene], device: torch.device | str) -> dict[str, Tensor]:
    """Columns (B, 1) of the scenes' tones, with `level` 0 where a scene has none."""
    tones = [TONES.get(scene.sound, SILENT) for scene in scenes]
    columns = {
        name: [getattr(t, name) for t in tones]
        for name in ("pitch", "octaves", "start_db", "end_db", "tremolo")
    }
    columns["level"] = [TONE_LEVEL if scene.sound in TONES else 0.0 for scene in scenes]
    return {name: torch.tensor(values, device=device)[:, None] for name, values in columns.items()}


def _tones(scenes: Sequence[Scene], height: Tensor, rate: int) -> Tensor:
    """Sustained sounds (B, N); `height` (B, N) is the object's, 0 at the frame's bottom and 1 at its top."""
    n = height.shape[1]
    tone = _tone_parameters(scenes, height.device)
    time = torch.arange(n, device=height.device, dtype=torch.float32) / rate
    pitch = tone["pitch"] * torch.exp2(tone["octaves"] * height)
    cycles = (torch.cumsum(pitch.double(), dim=1) / rate).remainder(1.0).float()
    wave = sum(
        (gain * torch.sin(2 * math.pi * k * cycles) for k, gain in enumerate(HARMONICS, start=1)),
        start=torch.zeros_like(cycles),
    )
    level_db = torch.lerp(tone["start_db"], tone["end_db"], (time / (n / rate))[None])
    tremolo = 1 - tone["tremolo"] * torch.cos(2 * math.pi * TREMOLO_RATE * time)
    edges = (torch.minimum(time, (n - 1) / rate - time) / FADE).clamp(0, 1)
    return wave * (tone["level"] * torch.pow(10.0, level_db / 20) * edges) * tremolo


def _add_rings(wave: Tensor, scenes: Sequence[Scene], rate: int) -> None:
    """Add every impact's ring to `wave` (B, N) in place."""
    n = wave.shape[1]
    rings = {s.shape: ring(s.shape, rate).to(wave.device) for s in scenes if s.sound == "impacts"}
    for row, scene in enumerate(scenes):
        if scene.sound != "impacts":
            continue
        for impact in scene.path.impacts(scene.start, scene.start + n / rate):
            at = round((impact - scene.start) * rate)
            length = min(n - at, len(rings[scene.shape]))
            wave[row, at : at + length] += rings[scene.shape][:length]


def make_sound(
    scenes: Sequence[Scene], room: Room, seconds: float, rate: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The sound of B scenes, (B, 2, round(seconds * rate)) float32 in [-1, 1], on `device`."""
    n = round(seconds * rate)
    control = torch.arange(math.ceil(seconds * CONTROL_RATE) + 2, device=device) / CONTROL_RATE
    start = torch.tensor([scene.start for scene in scenes], device=device)[:, None]
    track = follow([scene.path for scene in scenes], start + control)
    positions = torch.arange(n, device=device) * (CONTROL_RATE / rate)
    height = _interpolate(0.5 - track.y / (2 * room.half_height), positions)
    wave = _tones(scenes, height, rate)
    _add_rings(wave, scenes, rate)
    side = (
        _interpolate(0.5 + track.x / (2 * room.half_width), positions).mul_(0.7).add_(0.15).mul_(math.pi / 2)
    )
    return torch.stack((wave * side.cos(), wave * side.sin()), dim=1).mul_(2**0.5).clamp_(-1, 1)
