"""Trains the audio VAE: log-mel spectrograms in and out, through a latent of 25 steps per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.model.audio_vae import (
    AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
    AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    AudioDecoderConfigurator,
    AudioEncoderConfigurator,
    AudioProcessor,
)
from ltx_core.model.audio_vae.config import parse_audio_vae
from ltx_core.model.audio_vae.processor import match_channels
from ltx_core.types import Audio
from ltx_trainer.autoencoder import AutoencoderRun, AutoencoderTask
from ltx_trainer.config import WorldRun
from ltx_trainer.world import World

SHORTEST = 0.2  # seconds of a clip


class AudioVAETask(AutoencoderTask):
    """Encoder and decoder of the configuration's ``audio_vae`` section."""

    name, section = "audio_vae", "audio_vae"
    parts = {
        "audio_encoder": (AudioEncoderConfigurator, AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER),
        "audio_decoder": (AudioDecoderConfigurator, AUDIO_VAE_DECODER_COMFY_KEYS_FILTER),
    }

    def __init__(self, config: AutoencoderRun) -> None:
        super().__init__(config)
        check_seconds(config)
        self.processor = front_end(self.network)
        self.rate = self.processor.target_sample_rate

    def clips(self, world: World, numbers: Sequence[int]) -> Tensor:
        """Waveforms (B, 2, N) at the encoder's rate."""
        return world.sounds([world.truth(number) for number in numbers])

    def prepare(self, clips: Tensor) -> Tensor:
        """Log-mel (B, channels, T, bins)."""
        waves = match_channels(clips, self.model.encoder.in_channels)
        return whole_latents(self.processor.to(clips.device).waveform_to_mel(Audio(waves, self.rate)))

    def tokens(self, latent: Tensor) -> Tensor:
        """(B, C, L, bins) to (B L, C bins)."""
        return latent.movedim(2, 1).flatten(0, 1).flatten(1)

    def score(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """ "mel_error": mean absolute error of the natural logarithm of mel magnitudes."""
        return {"mel_error": float(F.l1_loss(output, target))}


def front_end(network: Mapping[str, Any]) -> AudioProcessor:
    """What makes the spectrograms that the ``audio_vae`` section of a configuration describes."""
    _, mel = parse_audio_vae(network)
    return AudioProcessor(mel.sample_rate, mel.mel_bins or 64, mel.mel_hop_length, mel.n_fft)


def whole_latents(mel: Tensor) -> Tensor:
    """(B, C, T, bins) cropped to 4k + 1 frames: what k + 1 latent frames decode to."""
    return mel[:, :, : (mel.shape[2] - 1) // 4 * 4 + 1]


def check_seconds(config: WorldRun) -> None:
    """Raise `ConfigError` for stages whose clips are too short to be heard."""
    for stage in config.stages:
        seconds = stage.frames / config.data.fps
        if seconds < SHORTEST:
            raise ConfigError(
                f"stages: {stage.frames} frames are {seconds:.2f} s of sound; use {SHORTEST} s or more."
            )
