"""Noise for the start of a denoising stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from ltx_core.types import LatentState


class Noiser(Protocol):
    """Mixes noise into a patchified state."""

    def __call__(self, latent_state: LatentState, noise_scale: float = 1.0) -> LatentState: ...


class GaussianNoiser:
    """Gaussian noise from `generator`, which must live on the device of the states.

    Each call draws once, in the shape (appended tokens included) and dtype of the latent, whatever the scale
    and the mask are: the draws of a generation depend on its shapes only.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def __call__(self, latent_state: LatentState, noise_scale: float | torch.Tensor = 1.0) -> LatentState:
        """The latent at noise level `noise_scale`, blended with the clean latent where the mask says so.

        lerp(clean, lerp(latent, noise, noise_scale), mask), in float32, in the latent's dtype.
        """
        latent = latent_state.latent
        noise = torch.randn(latent.shape, dtype=latent.dtype, device=latent.device, generator=self.generator)
        noised = torch.lerp(latent.float(), noise.float(), float(noise_scale))
        noised = torch.lerp(latent_state.clean_latent.float(), noised, latent_state.denoise_mask.float())
        return replace(latent_state, latent=noised.to(latent.dtype))
