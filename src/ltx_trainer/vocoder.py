"""Trains the vocoder: log-mel spectrograms to waveforms, by their spectra at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, build_model, save_checkpoint
from ltx_core.model.audio_vae import VOCODER_COMFY_KEYS_FILTER, VocoderConfigurator
from ltx_core.model.audio_vae.bandwidth_extension import MelSTFT
from ltx_core.model.audio_vae.processor import mel_filterbank
from ltx_core.types import Audio
from ltx_trainer.audio_vae import AudioVAETask, check_seconds, front_end, whole_latents
from ltx_trainer.config import WorldRun
from ltx_trainer.start import make_part, read_network, version_of
from ltx_trainer.task import WorldTask, weighted
from ltx_trainer.world import World

SIZES = (0.016, 0.032, 0.064, 0.128)  # seconds of the windows
FLOOR = 1e-4  # of magnitudes, where a full-scale tone's is 1


@dataclass(frozen=True)
class VocoderLossConfig:
    """Weights of the terms. wave: mean absolute error of samples, which ties phases to the original's."""

    spectral: float = 1.0
    wave: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VocoderRun(WorldRun):
    """A run of ``vocoder``; of a stage's format only frames / fps counts.

    audio_vae: an official-format file with an audio VAE. With it, the vocoder learns to sound right from what
    that VAE makes of a spectrogram; without it, from true spectrograms.
    """

    loss: VocoderLossConfig = field(default_factory=VocoderLossConfig)
    audio_vae: str | None = None
    evaluation_clips: int = 16


class VocoderTask(WorldTask):
    """The network of the ``vocoder`` section, fed with spectrograms as the ``audio_vae`` section has them."""

    name = "vocoder"
    config: VocoderRun
    model: Any  # a `Vocoder` or a `VocoderWithBWE`

    def __init__(self, config: VocoderRun) -> None:
        super().__init__(config)
        check_seconds(config)
        self.network = read_network(config, "vocoder", "audio_vae")
        self.model = make_part(VocoderConfigurator, VOCODER_COMFY_KEYS_FILTER, config, self.network)
        if config.start is None and hasattr(self.model, "mel_stft"):
            fill_bases(self.model.mel_stft, self.model.input_sampling_rate)
        self.rate = self.model.output_sampling_rate
        self.processor = front_end(self.network)
        self.autoencoder = _frozen_autoencoder(config.audio_vae)

    def clips(self, world: World, numbers: Sequence[int]) -> Tensor:
        """Waveforms (B, 2, N) at the vocoder's output rate."""
        return world.sounds([world.truth(number) for number in numbers])

    def losses(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        output, target = same_length(model(self.to_mel(batch)).float(), batch)
        sizes = tuple(round(seconds * self.rate) for seconds in SIZES)
        parts = {"spectral": spectral_loss(output, target, sizes)}
        if self.config.loss.wave:
            parts["wave"] = F.l1_loss(output, target)
        return weighted(vars(self.config.loss), parts)

    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """ "mel_error": mean absolute error of the natural-log mel of what is heard."""
        errors = []
        for waves in self.some(stage, "test", self.config.evaluation_clips, device):
            output, target = same_length(self.model(self.to_mel(waves)).float(), waves)
            errors.append(F.l1_loss(self._mel(output), self._mel(target)))
        return {"mel_error": float(torch.stack(errors).mean())}

    def export(self, path: Path, device: torch.device) -> None:
        save_checkpoint(path, {"vocoder": self.model}, self.network, version_of(self.config))

    @torch.no_grad()
    def to_mel(self, waves: Tensor) -> Tensor:
        """Log-mel of waveforms at the output rate, through the audio VAE if there is one."""
        mel = self._mel(waves)
        if self.autoencoder is None:
            return mel
        encoder, decoder = (half.to(waves.device) for half in self.autoencoder)
        return decoder(encoder(whole_latents(mel)))

    def _mel(self, waves: Tensor) -> Tensor:
        return self.processor.to(waves.device).waveform_to_mel(Audio(waves, self.rate))


def _frozen_autoencoder(path: str | None) -> tuple[nn.Module, ...] | None:
    """The audio VAE of a file, encoder first."""
    if path is None:
        return None
    checkpoint = Checkpoint(path)
    if "audio_vae" not in checkpoint.config:
        raise ConfigError(f"audio_vae: {path} holds no audio VAE; give the file that audio-vae wrote.")
    parts = AudioVAETask.parts.values()
    return tuple(build_model(kind, checkpoint, keys, "cpu", torch.float32) for kind, keys in parts)


def same_length(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both cut to the shorter one's samples: a spectrogram's last frame may stand half outside the sound."""
    length = min(first.shape[-1], second.shape[-1])
    return first[..., :length], second[..., :length]


def spectral_loss(output: Tensor, target: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Multi-resolution STFT loss of waveforms (B, C, N) (Yamamoto et al. 2019, arXiv:1910.11480).

    Spectral convergence plus the mean absolute error of log magnitudes, averaged over windows of `sizes`
    samples that overlap by three quarters. Magnitudes have a floor 80 dB below a full-scale tone: there silence is
    silence. The convergence sees 60 dB deeper, or what is not made yet would have no slope to grow along.
    """
    total = output.new_zeros(())
    for size in sizes:
        ours, theirs = _power(output, size), _power(target, size)
        difference = _magnitude(theirs, 1e-3 * FLOOR) - _magnitude(ours, 1e-3 * FLOOR)
        ours, theirs = _magnitude(ours, FLOOR), _magnitude(theirs, FLOOR)
        total = total + difference.norm() / theirs.norm() + F.l1_loss(ours.log(), theirs.log())
    return total / len(sizes)


def _magnitude(power: Tensor, floor: float) -> Tensor:
    return (power + floor**2).sqrt()


def _power(wave: Tensor, size: int) -> Tensor:
    """Of the bins of each window; that of a full-scale tone is 1."""
    window = torch.hann_window(size, device=wave.device) * (4 / size)
    flat = F.pad(wave.flatten(0, -2).float(), (size // 2, size // 2))
    spectrum = torch.stft(flat, size, size // 4, window=window, center=False, return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()


@torch.no_grad()
def fill_bases(front_end: MelSTFT, rate: int) -> None:
    """Give the bandwidth extension's spectrum its constants, which official files carry as tensors.

    The forward basis is the discrete Fourier transform under a Hann window, real parts before imaginary ones.
    The inverse is not used by any network; it gets the transform's transpose.
    """
    size = front_end.n_fft
    turns = torch.arange(size // 2 + 1)[:, None] * torch.arange(size)[None] % size
    angle = turns * (2 * math.pi / size)
    basis = torch.cat((angle.cos(), -angle.sin())) * torch.hann_window(size)
    front_end.stft_fn.get_buffer("forward_basis").copy_(basis[:, None])
    front_end.stft_fn.get_buffer("inverse_basis").copy_(basis[:, None] / size)
    front_end.mel_basis.copy_(mel_filterbank(size, front_end.mel_basis.shape[0], rate).T)
