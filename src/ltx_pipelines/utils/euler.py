"""The samplers of first order: Euler, gradient estimation, and Euler steps with fresh noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ltx_core.components.diffusion_steps import EulerAncestralDiffusionStep, EulerCfgPpDiffusionStep
from ltx_core.components.protocols import DiffusionStepProtocol
from ltx_core.errors import InputError
from ltx_core.types import LatentState
from ltx_core.utils import to_denoised, to_velocity
from ltx_pipelines.utils.loop import Evaluate
from ltx_pipelines.utils.states import blended
from ltx_pipelines.utils.types import DenoisedLatentResult, States, per_stream


def gaussian_noise(latent: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise in the shape, dtype and device of `latent`."""
    return torch.randn(latent.shape, dtype=latent.dtype, device=latent.device, generator=generator)


@dataclass(frozen=True)
class EulerSampler:
    """One evaluation, one step towards it."""

    stepper: DiffusionStepProtocol

    def __call__(
        self, evaluate: Evaluate, states: States, memory: None, sigmas: torch.Tensor, i: int
    ) -> tuple[States, None]:
        def advance(state: LatentState, result: DenoisedLatentResult) -> LatentState:
            estimate = blended(state, result.denoised)
            return replace(state, latent=self.stepper.step(state.latent, estimate, sigmas, i))

        return per_stream(advance, states, evaluate(states, sigmas, i)), None


@dataclass(frozen=True)
class GradientEstimationSampler:
    """Euler along velocities extrapolated by `gamma` from the step before, which it remembers.

    Once level 0 is reached nothing is left to do, be it before the schedule's end.
    """

    stepper: DiffusionStepProtocol
    gamma: float

    def __call__(
        self, evaluate: Evaluate, states: States, memory: Any, sigmas: torch.Tensor, i: int
    ) -> tuple[States, Any]:
        if i > 0 and sigmas[i] == 0:
            return states, None
        results = evaluate(states, sigmas, i)
        estimates = per_stream(lambda state, result: blended(state, result.denoised), states, results)
        if sigmas[i + 1] == 0:
            return per_stream(lambda state, x0: replace(state, latent=x0), states, estimates), None
        velocities = per_stream(lambda s, x0: to_velocity(s.latent, sigmas[i], x0), states, estimates)

        def advance(
            state: LatentState, x0: torch.Tensor, velocity: torch.Tensor, previous: torch.Tensor | None
        ) -> LatentState:
            if previous is not None:
                extrapolated = self.gamma * (velocity - previous) + previous
                x0 = to_denoised(state.latent, extrapolated, sigmas[i])
            return replace(state, latent=self.stepper.step(state.latent, x0, sigmas, i))

        return per_stream(advance, states, estimates, velocities, memory or (None, None)), velocities


@dataclass(frozen=True)
class StochasticEulerSampler:
    """Ancestral Euler or CFG++: a step in float32 that may take noise, after which clean tokens are restored.

    draw: noise for a latent. model_dtype: of the latents between evaluations.
    Once level 0 is reached nothing is left to do.
    """

    stepper: EulerAncestralDiffusionStep | EulerCfgPpDiffusionStep
    draw: Callable[[torch.Tensor], torch.Tensor]
    model_dtype: torch.dtype

    def __call__(
        self, evaluate: Evaluate, states: States, memory: None, sigmas: torch.Tensor, i: int
    ) -> tuple[States, None]:
        if i > 0 and sigmas[i] == 0:
            return states, None
        last = bool(sigmas[i + 1] == 0)

        def advance(state: LatentState, result: DenoisedLatentResult) -> LatentState:
            options = self._options(result)
            latent = blended(state, result.denoised.float())
            if not last:
                noise = self.draw(state.latent) if self.stepper.stochastic else None
                latent = self.stepper.step(state.latent.float(), latent, sigmas, i, noise=noise, **options)
                latent = latent if noise is None else blended(state, latent)
            return replace(state, latent=latent.to(self.model_dtype))

        return per_stream(advance, states, evaluate(states, sigmas, i)), None

    def _options(self, result: DenoisedLatentResult) -> dict[str, Any]:
        if not isinstance(self.stepper, EulerCfgPpDiffusionStep):
            return {}
        if not isinstance(result.uncond, torch.Tensor):
            raise InputError(
                "CFG++ needs the unconditional estimate; use a GuidedDenoiser with cfg_scale other than 1 "
                "or with force_uncond_pass=True."
            )
        return {"uncond_denoised": result.uncond}
