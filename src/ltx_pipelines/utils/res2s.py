"""The res_2s sampler: an exponential integrator of second order with noise re-injection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from ltx_core.components.diffusion_steps import Res2sDiffusionStep
from ltx_core.errors import InputError
from ltx_core.types import LatentState
from ltx_pipelines.utils.loop import Evaluate
from ltx_pipelines.utils.states import blended
from ltx_pipelines.utils.types import DenoisedLatentResult, States, per_stream

NewNoise = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""(latent, generator) -> noise of the latent's shape on its device."""

SMALLEST_SIGMA = 0.0011  # where the last integration step ends, as log(0) does not exist
SUBSTEP_SEED_OFFSET = 10_000
MIDPOINT = 0.5


def phi(j: int, neg_h: float) -> float:
    """phi_j(z) = (e^z - sum_{k<j} z^k / k!) / z^j, the functions of exponential integrators; 1/j! at 0.

    neg_h: z, which samplers have from a step h as -h.
    """
    if abs(neg_h) < 1e-10:
        return 1 / math.factorial(j)
    return (math.exp(neg_h) - sum(neg_h**k / math.factorial(k) for k in range(j))) / neg_h**j


def get_res2s_coefficients(
    h: float, phi_cache: dict[tuple[int, float], float] | None = None, c2: float = MIDPOINT
) -> tuple[float, float, float]:
    """(a21, b1, b2) of a step h in -log(sigma), the midpoint at c2. phi_cache: values of phi to reuse."""
    cache = {} if phi_cache is None else phi_cache

    def phi_of(j: int, z: float) -> float:
        if (j, z) not in cache:
            cache[j, z] = phi(j, z)
        return cache[j, z]

    b2 = phi_of(2, -h) / c2
    return c2 * phi_of(1, -h * c2), phi_of(1, -h) - b2, b2


def normalized_noise(latent: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise in float64 (float32 on MPS) whose every batch item has mean 0 and standard deviation 1."""
    noise = torch.randn(
        latent.shape, dtype=_calculation_dtype(latent), device=generator.device, generator=generator
    )
    std, mean = torch.std_mean(noise, dim=(-2, -1), keepdim=True)
    return ((noise - mean) / std).to(latent.device)


def extended(sigmas: torch.Tensor) -> torch.Tensor:
    """A schedule that ends in 0 with `SMALLEST_SIGMA` before it; any other as it is. float32.

    Raises `InputError` for levels between which there is no step in -log(sigma).
    """
    sigmas = sigmas.float()
    if len(sigmas) and sigmas[-1] == 0:
        sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([SMALLEST_SIGMA, 0.0])])
    levels = sigmas.tolist()
    inner = levels[:-1] if levels[-1:] == [0] else levels
    if not inner or not all(0 < n < math.inf for n in inner) or any(n == m for n, m in pairwise(inner)):
        raise InputError(
            f"res_2s cannot step along the noise levels {levels}: each must be above 0 (but for one at the end), "
            "finite, and other than the one before."
        )
    return sigmas


@dataclass(frozen=True)
class Res2sSampler:
    """One step of res_2s; a `SamplerStep` for a schedule that is `extended`.

    step_noise, substep_noise: where each draw comes from, given a latent.
    fixpoint_iterations: how often the start of the step is pulled towards where its midpoint came from
    ("bong math"); 0 leaves it. model_dtype: of the latents between evaluations.
    blend: re-inject noise alike in all tokens and restore the clean ones after, instead of per token.
    eta: share of noise at full steps; half steps have `MIDPOINT`.
    """

    stepper: Res2sDiffusionStep
    step_noise: Callable[[torch.Tensor], torch.Tensor]
    substep_noise: Callable[[torch.Tensor], torch.Tensor]
    fixpoint_iterations: int
    model_dtype: torch.dtype
    blend: bool
    eta: float

    def __call__(
        self, evaluate: Evaluate, states: States, memory: Any, sigmas: torch.Tensor, i: int
    ) -> tuple[States, Any]:
        """Two evaluations, at sigma_i and at the midpoint; the step to 0 takes the estimate itself."""
        estimates = per_stream(_estimate, states, evaluate(states, sigmas, i))
        if sigmas[i + 1] == 0:
            return per_stream(self._with_latent, states, estimates), None
        sigma, sigma_next = sigmas[i].item(), sigmas[i + 1].item()
        h = -math.log(sigma_next / sigma)
        a21, b1, b2 = get_res2s_coefficients(h)
        levels = torch.tensor(
            [sigma, math.sqrt(sigma * sigma_next)],
            dtype=_calculation_dtype(next(s.latent for s in states if s is not None)),
            device=sigmas.device,
        )
        iterations = self.fixpoint_iterations if h < 0.5 and sigma > 0.03 else 0

        def midpoint(state: LatentState, estimate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            start = state.latent.to(levels.dtype)
            middle = start + h * a21 * (estimate - start)
            middle = self._renoise(state, start, middle, levels, 0, self.substep_noise, eta=0.5)
            return _fixpoint(start, middle, estimate, h * a21, iterations), middle

        points = per_stream(midpoint, states, estimates)
        middles = per_stream(lambda state, point: self._with_latent(state, point[1]), states, points)
        second = per_stream(_estimate, states, evaluate(middles, levels[1:], 0))

        def advance(
            state: LatentState, point: tuple, estimate: torch.Tensor, mid_estimate: torch.Tensor
        ) -> LatentState:
            start, _ = point
            end = start + h * (b1 * (estimate - start) + b2 * (mid_estimate - start))
            end = self._renoise(state, start, end, sigmas, i, self.step_noise, eta=self.eta)
            return self._with_latent(state, end)

        return per_stream(advance, states, points, estimates, second), None

    def _with_latent(self, state: LatentState, latent: torch.Tensor) -> LatentState:
        return replace(state, latent=latent.to(self.model_dtype))

    def _renoise(
        self,
        state: LatentState,
        sample: torch.Tensor,
        denoised: torch.Tensor,
        sigmas: torch.Tensor,
        index: int,
        draw: Callable[[torch.Tensor], torch.Tensor],
        eta: float,
    ) -> torch.Tensor:
        """`denoised`, reached from `sample` between two noise levels, with part of its noise replaced."""
        noise = draw(state.latent)
        if self.blend:
            result = self.stepper.step(sample, denoised, sigmas, index, noise, eta=eta)
            return blended(state, result)
        mask = state.denoise_mask.to(sample.dtype)
        levels = torch.stack([mask * level for level in sigmas[index : index + 2]])
        return self.stepper.step(sample, denoised, levels, 0, noise, eta=eta)


def _fixpoint(
    start: torch.Tensor, middle: torch.Tensor, estimate: torch.Tensor, factor: float, iterations: int
) -> torch.Tensor:
    """`start` after `iterations` of x <- middle - factor * (estimate - x), in closed form."""
    if iterations <= 0:
        return start
    # The estimate may be bfloat16: times a number it would be rounded to that again.
    limit = (middle - factor * estimate.to(middle.dtype)) / (1 - factor)
    return limit + factor**iterations * (start - limit)


def _estimate(state: LatentState, result: DenoisedLatentResult) -> torch.Tensor:
    return blended(state, result.denoised)


def _calculation_dtype(latent: torch.Tensor) -> torch.dtype:
    return torch.float32 if latent.device.type == "mps" else torch.float64
