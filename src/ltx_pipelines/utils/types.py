"""What samplers, denoising functions and pipelines hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.components.protocols import DiffusionStepProtocol
from ltx_core.types import LatentState
from ltx_pipelines.utils.constants import VIDEO_LATENT_CHANNELS, VIDEO_SCALE_FACTORS

States = tuple[LatentState | None, LatentState | None]
"""Of video and audio; None for a stream that is absent."""


def per_stream(function: Callable[..., Any], *pairs: tuple[Any, Any]) -> tuple[Any, Any]:
    """`function` of the video's entries, then of the audio's; None for a stream whose first entry is None."""
    video, audio = (None if column[0] is None else function(*column) for column in zip(*pairs))
    return video, audio


@dataclass(frozen=True)
class DenoisedLatentResult:
    """The estimate of one stream, x0 tokens (B, T, D), with those of the passes it was made from.

    denoised: the guided estimate. uncond, cond, ptb, mod: unconditional, conditional, perturbed and
    modality-isolated pass; None where a pass was not run.
    """

    denoised: torch.Tensor
    uncond: torch.Tensor | None = None
    cond: torch.Tensor | None = None
    ptb: torch.Tensor | None = None
    mod: torch.Tensor | None = None


Results = tuple[DenoisedLatentResult | None, DenoisedLatentResult | None]
Estimate = torch.Tensor | DenoisedLatentResult | None


class DenoisingFunc(Protocol):
    """Estimates x0 of both streams at noise level ``sigmas[step_index]``, from and as tokens."""

    def __call__(
        self,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> tuple[Estimate, Estimate]: ...


class Denoiser(Protocol):
    """A denoising function that gets its transformer in the call, and tells the passes it used."""

    def __call__(
        self,
        transformer: Any,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> Results: ...


class DenoisingLoopFunc(Protocol):
    """Walks both states down a schedule."""

    def __call__(
        self,
        sigmas: torch.Tensor,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        stepper: DiffusionStepProtocol,
    ) -> States: ...


class PipelineComponents:
    """The layout of LTX-2's latents: scale factors, channels and patchifiers."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.video_scale_factors = VIDEO_SCALE_FACTORS
        self.video_latent_channels = VIDEO_LATENT_CHANNELS
        self.video_patchifier = VideoLatentPatchifier(patch_size=1)
        self.audio_patchifier = AudioPatchifier(patch_size=1)
