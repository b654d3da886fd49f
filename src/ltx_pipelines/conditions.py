"""What may condition a stage, as data: images, reference clips, a time window. Turned into items at its size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ltx_core.conditioning import (
    ConditioningItem,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByReferenceLatent,
)
from ltx_core.conditioning.pixel_mask import downsample_mask
from ltx_core.errors import InputError
from ltx_core.types import VideoLatentShape, VideoPixelShape
from ltx_pipelines.media.video import load_video_conditioning, probe_video
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.conditionings import (
    Encoder,
    combined_image_conditionings,
    image_conditionings_by_adding_guiding_latent,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """How conditions become latents: the video encoder with its device and dtype."""

    encode: Encoder
    device: torch.device
    dtype: torch.dtype


class Condition(Protocol):
    """One wish about the result. `encodes`: whether it needs the video encoder; `tokens` predicts how many tokens
    it appends (for `ltx plan`)."""

    @property
    def encodes(self) -> bool: ...

    def items(self, shape: VideoPixelShape, encoding: Encoding) -> list[ConditioningItem]: ...

    def tokens(self, shape: VideoPixelShape) -> int: ...


@dataclass(frozen=True)
class Images:
    """Pictures at given pixel frames. As `guides` all are appended as keyframe tokens; otherwise one at
    frame 0 replaces the first latent frame."""

    images: Sequence[ImageConditioningInput] = ()
    guides: bool = False

    @property
    def encodes(self) -> bool:
        return bool(self.images)

    def items(self, shape: VideoPixelShape, encoding: Encoding) -> list[ConditioningItem]:
        make = image_conditionings_by_adding_guiding_latent if self.guides else combined_image_conditionings
        return make(self.images, shape.height, shape.width, encoding.encode, encoding.dtype, encoding.device)

    def tokens(self, shape: VideoPixelShape) -> int:
        appended = sum(self.guides or image.frame_idx != 0 for image in self.images)
        return appended * VideoLatentShape.from_pixel_shape(shape._replace(frames=1)).token_count()


@dataclass(frozen=True)
class ReferenceVideo:
    """A control clip for an IC-LoRA, at 1/`downscale` of the stage's size, appended as tokens.

    attention: how strongly noisy and reference tokens attend to each other, in [0, 1]; `mask` (1, 1, F, H, W)
    varies it over the clip.
    """

    path: str
    strength: float = 1.0
    downscale: int = 1
    attention: float = 1.0
    mask: torch.Tensor | None = field(default=None, compare=False)
    encodes = True

    def size(self, shape: VideoPixelShape) -> tuple[int, int]:
        """(height, width) of the reference in pixels. Raises `InputError` where it does not fit."""
        unit = 32 * self.downscale
        if shape.height % unit or shape.width % unit:
            raise InputError(
                f"A reference at 1/{self.downscale} of {shape.width}x{shape.height} needs sides that are "
                f"multiples of {unit}; choose a width and height whose halves are."
            )
        return shape.height // self.downscale, shape.width // self.downscale

    def items(self, shape: VideoPixelShape, encoding: Encoding) -> list[ConditioningItem]:
        height, width = self.size(shape)
        pixels = load_video_conditioning(
            self.path, height, width, shape.frames, encoding.dtype, encoding.device
        )
        rate = probe_video(self.path).fps
        if abs(rate - shape.fps) > 0.01 * shape.fps:
            log.warning(
                "%s has %g frames a second, the video %g; they go one for one.", self.path, rate, shape.fps
            )
        if pixels.shape[2] < shape.frames:
            log.warning(
                "%s has %d frames, fewer than the video's %d.", self.path, pixels.shape[2], shape.frames
            )
        latent = encoding.encode(pixels)
        item: ConditioningItem = VideoConditionByReferenceLatent(
            latent=latent, downscale_factor=self.downscale, strength=self.strength
        )
        if self.mask is not None:
            frames, rows, columns = latent.shape[2:]
            mask = downsample_mask(self.mask.to(encoding.device).float(), (frames, rows, columns))
            return [ConditioningItemAttentionStrengthWrapper(item, mask * self.attention)]
        if self.attention < 1.0:
            return [ConditioningItemAttentionStrengthWrapper(item, self.attention)]
        return [item]

    def tokens(self, shape: VideoPixelShape) -> int:
        height, width = self.size(shape)
        frames = min(shape.frames, probe_video(self.path).frames)
        shape = shape._replace(frames=frames, height=height, width=width)
        return VideoLatentShape.from_pixel_shape(shape).token_count()


@dataclass(frozen=True)
class Window:
    """Regenerate only tokens that touch the time window [start, end) in seconds; (0, 0) keeps everything."""

    start: float
    end: float
    encodes = False

    def items(self, shape: VideoPixelShape, encoding: Encoding) -> list[ConditioningItem]:
        return [TemporalRegionMask(start_time=self.start, end_time=self.end, fps=shape.fps)]

    def tokens(self, shape: VideoPixelShape) -> int:
        return 0
