"""Source media to latents: the clip a retake starts from, the sound a video is filmed to."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

import torch

from ltx_core.errors import InputError, MediaError
from ltx_core.model.audio_vae.processor import match_channels
from ltx_core.model.video_vae import SOURCE_TILING
from ltx_core.types import Audio, AudioLatentShape, VideoPixelShape
from ltx_pipelines.engine import Engine
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.video import fitted_clip, load_fitted_clip, picture_start
from ltx_pipelines.media.writer import MOST_CHANNELS
from ltx_pipelines.recipe import Recipe, Source

log = logging.getLogger(__name__)

SHORTEST = 0.1  # seconds, longer than the window of any spectrogram


@dataclass(frozen=True)
class SourceLatents:
    """Encoded source media: video (1, C, F, H, W), audio (1, C, T, M), and the waveform (channels, samples) as it
    was read.

    Sound of more channels than a file can be written from is mixed down to stereo.
    """

    video: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    waveform: Audio | None = None


def encode_source(engine: Engine, recipe: Recipe) -> SourceLatents:
    """The latents of `recipe.source`, fitted to the shape of its first stage. Empty without a source."""
    source, shape = recipe.source, recipe.stages[0].shape
    if source is None:
        return SourceLatents()
    if source.video_path is not None:
        return _clip(engine, source, source.video_path, shape)
    return _sound(engine, source, shape)


def _clip(engine: Engine, source: Source, path: str, shape: VideoPixelShape) -> SourceLatents:
    """A whole clip: its picture, and its sound (if it has any) while there is a picture."""
    duration = shape.frames / shape.fps
    clip = source.clip or fitted_clip(path, source.fit)
    pixels = load_fitted_clip(path, clip, source.fit, engine.dtype, engine.device)
    video = engine.encode_video(pixels, SOURCE_TILING)
    sound = decode_audio_from_file(path, engine.device, picture_start(path), duration)
    if sound is None:
        return SourceLatents(video)
    try:
        audio = engine.encode_audio(sound)
    except InputError:  # too short for a single latent frame
        audio = engine.encode_audio(_continued(sound, duration))
    return SourceLatents(
        video, _fit(audio, AudioLatentShape.from_video_pixel_shape(shape).frames), _writable(sound)
    )


def _sound(engine: Engine, source: Source, shape: VideoPixelShape) -> SourceLatents:
    """A given sound, cut to the length of the video; one that is too short is continued with silence."""
    assert source.audio_path is not None
    sound = decode_audio_from_file(
        source.audio_path, engine.device, source.audio_start_time, source.audio_max_duration
    )
    if sound is None:
        raise MediaError(
            f"{source.audio_path} has no sound at {source.audio_start_time:g} s; choose another file."
        )
    frames = AudioLatentShape.from_video_pixel_shape(shape).frames
    audio = None
    with suppress(InputError):  # too short for a single latent frame
        audio = engine.encode_audio(sound)
    if audio is None or audio.shape[2] < frames:  # a sound that is a little short may suffice as it is
        duration = shape.frames / shape.fps
        missing = max(duration - sound.waveform.shape[-1] / sound.sampling_rate, 0.0)
        if round(missing, 2):
            log.warning("%s ends %.2f s before the video does; silence follows.", source.audio_path, missing)
        audio = engine.encode_audio(_continued(sound, duration))
    return SourceLatents(audio=_fit(audio, frames), waveform=_writable(sound))


def _writable(sound: Audio) -> Audio:
    """The sound of a batch of one, of no more channels than a file takes."""
    waveform = sound.waveform
    if waveform.shape[1] > MOST_CHANNELS:
        waveform = match_channels(waveform, 2)
    return Audio(waveform[0], sound.sampling_rate)


def _continued(sound: Audio, seconds: float) -> Audio:
    """The sound with silence after it up to this time, or longer: up to what can be encoded."""
    missing = round(max(seconds, SHORTEST) * sound.sampling_rate) - sound.waveform.shape[-1]
    return Audio(torch.nn.functional.pad(sound.waveform, (0, max(missing, 0))), sound.sampling_rate)


def _fit(latent: torch.Tensor, frames: int) -> torch.Tensor:
    """Cut or zero-padded to `frames` on the time axis (dim 2)."""
    missing = frames - latent.shape[2]
    if missing <= 0:
        return latent[:, :, :frames]
    filler = latent.new_zeros((*latent.shape[:2], missing, *latent.shape[3:]))
    return torch.cat([latent, filler], dim=2)
