"""Shapes, latent states, audio and modalities: plain frozen values that every other module speaks in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from ltx_core.errors import ShapeError


class VideoPixelShape(NamedTuple):
    """Size of a video: batch, frames, height, width in pixels, and frames per second."""

    batch: int
    frames: int
    height: int
    width: int
    fps: float


class SpatioTemporalScaleFactors(NamedTuple):
    """How many pixels (frames, rows, columns) one latent cell of the video VAE stands for."""

    time: int
    height: int
    width: int

    @classmethod
    def default(cls) -> SpatioTemporalScaleFactors:
        """8 frames by 32 x 32 pixels: every published LTX-2 video VAE."""
        return cls(time=8, height=32, width=32)

    @classmethod
    def from_blocks(cls, blocks: Sequence[Sequence[Any]], patch_size: int = 4) -> SpatioTemporalScaleFactors:
        """Factors of a VAE from its blocks ``[[name, parameters], ...]``; each compressing one halves."""
        names = [str(block[0]) for block in blocks]
        both = sum(name.startswith("compress_all") for name in names)
        space = patch_size * 2 ** (sum(name.startswith("compress_space") for name in names) + both)
        time = 2 ** (sum(name.startswith("compress_time") for name in names) + both)
        return cls(time=time, height=space, width=space)

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> SpatioTemporalScaleFactors:
        """Factors from a checkpoint's parsed ``config``; the default where it lists no VAE blocks."""
        vae = config.get("vae") or {}
        blocks = vae.get("encoder_blocks") or vae.get("decoder_blocks")
        return cls.from_blocks(blocks, vae.get("patch_size", 4)) if blocks else cls.default()


VIDEO_SCALE_FACTORS = SpatioTemporalScaleFactors.default()


class VideoLatentShape(NamedTuple):
    """Shape of a video latent (B, C, F, H, W)."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    def to_torch_shape(self) -> torch.Size:
        return torch.Size(self)

    @staticmethod
    def from_torch_shape(shape: Sequence[int]) -> VideoLatentShape:
        """Raises `ShapeError` for a shape that is not five numbers."""
        if len(shape) != 5:
            raise ShapeError(
                f"A video latent is (batch, channels, frames, height, width), not {tuple(shape)}."
            )
        return VideoLatentShape(*shape)

    def token_count(self) -> int:
        """Tokens after patchifying with patch size 1."""
        return self.frames * self.height * self.width

    def mask_shape(self) -> VideoLatentShape:
        """The same grid with one channel."""
        return self._replace(channels=1)

    @staticmethod
    def from_pixel_shape(
        shape: VideoPixelShape,
        latent_channels: int = 128,
        scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
    ) -> VideoLatentShape:
        """Latent grid of a pixel grid; frame 0 has a latent frame to itself. Sizes are floored."""
        time, height, width = scale_factors
        return VideoLatentShape(
            batch=shape.batch,
            channels=latent_channels,
            frames=(shape.frames - 1) // time + 1,
            height=shape.height // height,
            width=shape.width // width,
        )

    def upscale(self, scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS) -> VideoLatentShape:
        """Shape (B, 3, F, H, W) of the pixels that this latent decodes to."""
        return self._replace(
            channels=3,
            frames=(self.frames - 1) * scale_factors.time + 1,
            height=self.height * scale_factors.height,
            width=self.width * scale_factors.width,
        )


class AudioLatentShape(NamedTuple):
    """Shape of an audio latent (B, C, frames, mel bins)."""

    batch: int
    channels: int
    frames: int
    mel_bins: int

    def to_torch_shape(self) -> torch.Size:
        return torch.Size(self)

    @staticmethod
    def from_torch_shape(shape: Sequence[int]) -> AudioLatentShape:
        """Raises `ShapeError` for a shape that is not four numbers."""
        if len(shape) != 4:
            raise ShapeError(f"An audio latent is (batch, channels, frames, mel bins), not {tuple(shape)}.")
        return AudioLatentShape(*shape)

    def token_count(self) -> int:
        """One token per latent frame."""
        return self.frames

    def mask_shape(self) -> AudioLatentShape:
        """One value per latent frame."""
        return self._replace(channels=1, mel_bins=1)

    @staticmethod
    def from_duration(
        batch: int,
        duration: float,
        channels: int = 8,
        mel_bins: int = 16,
        sample_rate: int = 16000,
        hop_length: int = 160,
        audio_latent_downsample_factor: int = 4,
    ) -> AudioLatentShape:
        """Latent shape of `duration` seconds: 25 latent frames per second by default, rounded half to even."""
        per_second = float(sample_rate) / float(hop_length) / float(audio_latent_downsample_factor)
        return AudioLatentShape(batch, channels, round(duration * per_second), mel_bins)

    @staticmethod
    def from_video_pixel_shape(
        shape: VideoPixelShape,
        channels: int = 8,
        mel_bins: int = 16,
        sample_rate: int = 16000,
        hop_length: int = 160,
        audio_latent_downsample_factor: int = 4,
    ) -> AudioLatentShape:
        """Latent shape of the audio that lasts as long as the video `shape`."""
        return AudioLatentShape.from_duration(
            batch=shape.batch,
            duration=float(shape.frames) / float(shape.fps),
            channels=channels,
            mel_bins=mel_bins,
            sample_rate=sample_rate,
            hop_length=hop_length,
            audio_latent_downsample_factor=audio_latent_downsample_factor,
        )


@dataclass(frozen=True)
class Audio:
    """Sound: waveform (..., channels, samples) in [-1, 1], and its samples per second."""

    waveform: torch.Tensor
    sampling_rate: int

    def to(self, **kwargs: Any) -> Audio:
        """A copy whose waveform went through `Tensor.to` with the same keywords."""
        return replace(self, waveform=self.waveform.to(**kwargs))


@dataclass(frozen=True)
class GeneratedKeyframeLayout:
    """Where the slots of generated keyframes lie in a token sequence.

    pixel_frame_indices: the pixel frame of each slot, ascending.
    tokens_per_keyframe: tokens of one slot (latent height x width).
    first_token: index of the first slot's first token; the slots follow each other.
    """

    pixel_frame_indices: tuple[int, ...]
    tokens_per_keyframe: int
    first_token: int

    @property
    def num_keyframes(self) -> int:
        return len(self.pixel_frame_indices)

    @property
    def num_tokens(self) -> int:
        return self.num_keyframes * self.tokens_per_keyframe

    @property
    def token_slice(self) -> slice:
        return slice(self.first_token, self.first_token + self.num_tokens)


@dataclass(frozen=True)
class LatentState:
    """One stream between two denoising steps; patchified (tokens) unless said otherwise.

    latent: (B, T, D) noisy tokens, appended conditioning tokens last. Unpatchified: (B, C, F, H, W) or
        (B, C, frames, mel).
    denoise_mask: (B, T, 1) float32; 1 = denoise fully, 0 = keep the clean latent.
    positions: (B, 3, T, 2) seconds, pixel rows, pixel columns, or (B, 1, T, 2) seconds; [start, end) float32.
    clean_latent: like latent; what a token with mask 0 is.
    attention_mask: None or (B, T, T) self-attention weights in [0, 1].
    keyframes_mask: None or (B, T, 1); 1 = the token encodes a single pixel frame.
    generated_keyframe_layout: None, or where slots for generated keyframes were appended.
    generated_keyframes: None, or (B, C, K, H, W) the generated keyframes, taken out of the token sequence.
    frozen: the stream is given and not denoised: the transformer sees it at noise level 0.
    """

    latent: torch.Tensor
    denoise_mask: torch.Tensor
    positions: torch.Tensor
    clean_latent: torch.Tensor
    attention_mask: torch.Tensor | None = None
    keyframes_mask: torch.Tensor | None = None
    generated_keyframe_layout: GeneratedKeyframeLayout | None = None
    generated_keyframes: torch.Tensor | None = None
    frozen: bool = False

    def clone(self) -> LatentState:
        """A copy that shares no memory with this state."""
        tensors: dict[str, Any] = {
            name: value.clone() for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class Modality:
    """One stream (video or audio) as the transformer sees it.

    latent: (B, T, C) patchified noisy tokens, appended conditioning tokens last; model dtype.
    sigma: 0-dim or (B,) float32, the noise level of this stream.
    timesteps: (B, T, 1) float32 per-token noise level (denoise mask x sigma); (B, T) and (B, 1) also serve.
    positions: (B, 3, T, 2) seconds, pixel row, pixel column, or (B, 1, T, 2) seconds; [start, end).
    context: (B, S, D) text features.
    enabled: False keeps the stream as it is; it still serves the other one as keys and values.
    context_mask: None, integer (B, S), or a float bias.
    attention_mask: None or (B, T, T) weights in [0, 1] for self-attention.
    keyframes_mask: None or (B, T, 1), marks tokens that encode a single pixel frame (LTX-2.5).
    """

    latent: torch.Tensor
    sigma: torch.Tensor
    timesteps: torch.Tensor
    positions: torch.Tensor
    context: torch.Tensor
    enabled: bool = True
    context_mask: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    keyframes_mask: torch.Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list[Modality]:
        """The batch in parts of these sizes; what holds for all of it, such as a 0-dim sigma, goes with each."""
        batch = self.latent.shape[0]
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        split = {
            name: value.split(list(sizes))
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == batch
        }
        return [replace(self, **{name: parts[i] for name, parts in split.items()}) for i in range(len(sizes))]
