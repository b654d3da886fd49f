"""Images to conditioning items: the official helper functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from ltx_core.conditioning import (
    ConditioningItem,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
)
from ltx_pipelines.media.images import load_image_conditioning
from ltx_pipelines.utils.args import ImageConditioningInput, as_image

Encoder = Callable[[torch.Tensor], torch.Tensor]
"""Pixels (1, 3, F, H, W) in [-1, 1] -> latent."""


def combined_image_conditionings(
    images: Iterable[ImageConditioningInput],
    height: int,
    width: int,
    video_encoder: Encoder,
    dtype: torch.dtype,
    device: torch.device,
) -> list[ConditioningItem]:
    """An image at frame 0 replaces the first latent frame; any other is appended as a keyframe."""
    return [
        _replace(image.strength, 0, latent) if image.frame_idx == 0 else _guide(image, latent)
        for image, latent in _encoded(images, height, width, video_encoder, dtype, device)
    ]


def image_conditionings_by_replacing_latent(
    images: Iterable[ImageConditioningInput],
    height: int,
    width: int,
    video_encoder: Encoder,
    dtype: torch.dtype,
    device: torch.device,
) -> list[ConditioningItem]:
    """Each image replaces the latent frame number `frame_idx` (counted in latent frames)."""
    return [
        _replace(image.strength, image.frame_idx, latent)
        for image, latent in _encoded(images, height, width, video_encoder, dtype, device)
    ]


def image_conditionings_by_adding_guiding_latent(
    images: Iterable[ImageConditioningInput],
    height: int,
    width: int,
    video_encoder: Encoder,
    dtype: torch.dtype,
    device: torch.device,
) -> list[ConditioningItem]:
    """Each image is appended as a keyframe at pixel frame `frame_idx`, frame 0 included."""
    return [_guide(i, latent) for i, latent in _encoded(images, height, width, video_encoder, dtype, device)]


def _encoded(
    images: Iterable[ImageConditioningInput],
    height: int,
    width: int,
    video_encoder: Encoder,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[tuple[ImageConditioningInput, torch.Tensor]]:
    """Each image with its latent, at this size."""
    for image in map(as_image, images):
        pixels = load_image_conditioning(image.path, height, width, dtype, device, crf=image.crf)
        yield image, video_encoder(pixels)


def _replace(strength: float, latent_idx: int, latent: torch.Tensor) -> ConditioningItem:
    return VideoConditionByLatentIndex(latent=latent, strength=strength, latent_idx=latent_idx)


def _guide(image: ImageConditioningInput, latent: torch.Tensor) -> ConditioningItem:
    return VideoConditionByKeyframeIndex(keyframes=latent, frame_idx=image.frame_idx, strength=image.strength)
