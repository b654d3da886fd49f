"""Fills a latent cache: reads clips and encodes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, build_model
from ltx_core.model.audio_vae import (
    AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER,
    AudioEncoderConfigurator,
    encode_audio,
)
from ltx_core.model.video_vae import VAE_ENCODER_COMFY_KEYS_FILTER, VideoEncoderConfigurator
from ltx_core.types import Audio, AudioLatentShape, VideoPixelShape
from ltx_pipelines.progress import progress
from ltx_trainer.cache import CacheConfig, fingerprint, open_folder, write_shard
from ltx_trainer.config import Precision
from ltx_trainer.folder import own_folder
from ltx_trainer.sources import Clips, open_source
from ltx_trainer.video_vae import to_pixels


def make_cache(config: CacheConfig, folder: Path) -> Path:
    """Encode the clips that `folder` still lacks; a cache that was interrupted goes on where it stopped."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoders = _Encoders(config, device)
    source = open_source(config, encoders.audio.sample_rate, device)
    config = replace(config, clips=config.clips or source.count())
    if config.clips > source.count():
        raise ConfigError(
            f"clips is {config.clips}, but {config.folder} has {source.count()}; leave it out for all."
        )
    with own_folder(folder):
        missing = open_folder(folder, config, encoders.fingerprints, source.identity)
        for shard in progress(missing, desc="cache", unit="file"):
            numbers = config.numbers(shard)
            parts, captions = [], []
            for start in range(0, len(numbers), config.batch_size):
                clips = source.read(numbers[start : start + config.batch_size])
                parts.append(encoders.encode(clips))
                captions += clips.captions
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            write_shard(config.path(folder, shard), tensors, captions)
    return folder


class _Encoders:
    """The two encoders of a cache."""

    def __init__(self, config: CacheConfig, device: torch.device) -> None:
        self.config = config
        video, audio = Checkpoint(config.video_vae), Checkpoint(config.audio_vae)
        for name, checkpoint, section in (("video_vae", video, "vae"), ("audio_vae", audio, "audio_vae")):
            if section not in checkpoint.config:
                raise ConfigError(f"{name}: {checkpoint.path} has no {section!r} in its configuration.")
        dtype = torch.bfloat16 if config.precision is Precision.BF16 else torch.float32
        self.video = build_model(
            VideoEncoderConfigurator, video, VAE_ENCODER_COMFY_KEYS_FILTER, device, dtype
        )
        self.audio: Any = build_model(
            AudioEncoderConfigurator, audio, AUDIO_VAE_ENCODER_COMFY_KEYS_FILTER, device, torch.float32
        )
        self.device, self.dtype = device, dtype
        self.fingerprints = {"video": fingerprint(self.video), "audio": fingerprint(self.audio)}

    @torch.no_grad()
    def encode(self, clips: Clips) -> dict[str, Tensor]:
        """Latents in bfloat16 on the CPU."""
        latents = {"video": self._video(clips.frames), "audio": self._audio(clips.sounds)}
        if self.config.keyframes:
            stills = clips.frames[:, list(self.config.keyframes)]
            encoded = self._video(stills.flatten(0, 1)[:, None])
            latents["keyframes"] = encoded[:, :, 0].unflatten(0, stills.shape[:2])
        if clips.references is not None:
            latents["reference"] = self._video(clips.references)
        if clips.originals is not None:
            frames, sounds = clips.originals
            latents |= {"original_video": self._video(frames), "original_audio": self._audio(sounds)}
        return {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in latents.items()}

    def _video(self, frames: Tensor) -> Tensor:
        return self.video(to_pixels(frames.to(self.device)).to(self.dtype))

    def _audio(self, waves: Tensor) -> Tensor:
        """Cut to the length that the pipelines give to the sound of a video as long as this."""
        config, rate = self.config, self.audio.sample_rate
        latent = encode_audio(Audio(waves, rate), self.audio)
        shape = VideoPixelShape(len(waves), config.frames, config.height, config.width, config.fps)
        rates = {"sample_rate": rate, "hop_length": self.audio.mel_hop_length}
        return latent[:, :, : AudioLatentShape.from_video_pixel_shape(shape, **rates).frames]
