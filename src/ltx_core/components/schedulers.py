"""Schedules: the noise levels that a sampler walks down, as float32 tensors on the CPU that end in 0."""

from __future__ import annotations

import math
from typing import Any

import torch

from ltx_core.errors import InputError
from ltx_core.utils import linspace

BASE_SHIFT_ANCHOR = 1024
MAX_SHIFT_ANCHOR = 4096


def flux_time_shift(mu: float, sigma: float, t: torch.Tensor) -> torch.Tensor:
    """Shift times t in (0, 1] towards 1: e^mu / (e^mu + (1/t - 1)^sigma)."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1) ** sigma)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise InputError(f"A schedule of {steps} steps is impossible; ask for at least 1.")


class LTX2Scheduler:
    """The LTX-2 schedule: uniform times, shifted by the number of tokens, stretched to end at `terminal`."""

    def execute(
        self,
        steps: int,
        latent: torch.Tensor | None = None,
        max_shift: float = 2.05,
        base_shift: float = 0.95,
        stretch: bool = True,
        terminal: float = 0.1,
        default_number_of_tokens: int = MAX_SHIFT_ANCHOR,
        **_kwargs: Any,
    ) -> torch.Tensor:
        """(steps + 1,) noise levels from about 1 to `terminal`, then 0.

        latent: its grid (B, C, F, H, W) gives the number of tokens, `default_number_of_tokens` without one.
        base_shift, max_shift: the shift at 1024 and 4096 tokens; linear in between and beyond.
        stretch: scale the levels so that the last one above 0 is `terminal` (not for a single step).
        Raises `InputError` for fewer than 1 step.
        """
        _check_steps(steps)
        tokens = default_number_of_tokens if latent is None else math.prod(latent.shape[2:])
        slope = (max_shift - base_shift) / (MAX_SHIFT_ANCHOR - BASE_SHIFT_ANCHOR)
        shift = math.exp(tokens * slope + (base_shift - slope * BASE_SHIFT_ANCHOR))
        # With many tokens 1 - sigma nears float32's resolution: schedules agree with published ones only in
        # this very order of float32 operations, the reciprocal first, then the product.
        times = linspace(1.0, 0.0, steps + 1)
        sigmas = (times.reciprocal() - 1 + shift).reciprocal() * shift
        if stretch and steps > 1:
            distance = 1 - sigmas[:-1]
            sigmas[:-1] = 1 - distance / (distance[-1] / (1 - terminal))
            if not (sigmas[:-1].diff() < 0).all():
                # From some 33,000 tokens on float32 cannot tell the first levels apart, and later none of them.
                noise = times[:-1].double().reciprocal() - 1
                distance = noise / (noise + shift)
                sigmas[:-1] = 1 - distance * ((1 - terminal) / distance[-1])
        return sigmas


class LinearQuadraticScheduler:
    """Small equal steps while the noise is high, then steps that grow quadratically."""

    def execute(
        self, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None, **_kwargs: Any
    ) -> torch.Tensor:
        """(steps + 1,) noise levels from 1 to 0.

        threshold_noise: how far the `linear_steps` (default: half of the steps) go down in all.
        Raises `InputError` for fewer than 1 step, ZeroDivisionError for 0 linear steps.
        """
        _check_steps(steps)
        if steps == 1:
            return torch.tensor([1.0, 0.0], dtype=torch.float32, device="cpu")
        linear = steps // 2 if linear_steps is None else linear_steps
        quadratic = steps - linear
        times = [i * threshold_noise / linear for i in range(linear)]
        if quadratic > 0:
            excess = linear - threshold_noise * steps
            square = excess / (linear * quadratic**2)
            slope = threshold_noise / linear - 2 * excess / quadratic**2
            times += [square * i**2 + slope * i + square * linear**2 for i in range(linear, steps)]
        return torch.tensor([1 - t for t in [*times, 1.0]], dtype=torch.float32, device="cpu")


class BetaScheduler:
    """Steps at quantiles of a Beta distribution over a shifted table of times. Needs SciPy."""

    shift = 2.37
    timesteps_length = 10000

    def execute(self, steps: int, alpha: float = 0.6, beta: float = 0.6) -> torch.Tensor:
        """Noise levels from 1 to 0; where quantiles meet in the table there are fewer than `steps` + 1.

        alpha, beta: parameters of the distribution; below 1 they put more steps at both ends.
        Raises `InputError` for fewer than 1 step, ImportError without SciPy.
        """
        _check_steps(steps)
        try:
            from scipy.stats import beta as beta_distribution
        except ImportError as error:
            raise ImportError("BetaScheduler needs SciPy: pip install scipy.") from error
        length = self.timesteps_length
        times = torch.arange(1, length + 1, dtype=torch.float32, device="cpu") / length
        table = flux_time_shift(self.shift, 1.0, times)
        quantiles = (beta_distribution.ppf(1 - i / steps, alpha, beta) for i in range(steps))
        indices = dict.fromkeys(round(float(quantile) * (length - 1)) for quantile in quantiles)
        return torch.cat([table[list(indices)], table.new_zeros(1)])
