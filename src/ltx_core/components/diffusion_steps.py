"""Diffusion steps: from a noisy sample and its denoised estimate to the sample at the next noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ltx_core.errors import InputError
from ltx_core.utils import to_velocity

SMALLEST_ALPHA = 2.0**-23  # keeps sigma / (1 - sigma) finite at sigma = 1


class EulerDiffusionStep:
    """Along the straight line to the denoised estimate."""

    def step(
        self,
        sample: torch.Tensor,
        denoised_sample: torch.Tensor,
        sigmas: torch.Tensor,
        step_index: int,
        **_kwargs: Any,
    ) -> torch.Tensor:
        """The sample at ``sigmas[step_index + 1]``, computed in float32, in its own dtype.

        The velocity is rounded to that dtype first, as the model's own. Raises ValueError at sigma 0.
        """
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        velocity = to_velocity(sample, sigma, denoised_sample)
        return (sample.float() + velocity.float() * (sigma_next - sigma)).to(sample.dtype)


class Res2sDiffusionStep:
    """The step of the res_2s sampler: towards the estimate, with part of the next level as fresh noise."""

    @staticmethod
    def get_sde_coeff(
        sigma_next: torch.Tensor,
        sigma_up: torch.Tensor | None = None,
        sigma_down: torch.Tensor | None = None,
        sigma_max: torch.Tensor | float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(alpha_ratio, sigma_down, sigma_up): step down to sigma_down, scale, add noise at level sigma_up.

        Given `sigma_down` (which has priority) or `sigma_up`, the others follow so that signal and noise
        arrive at the levels of `sigma_next`; given neither, no noise is added. All shapes as `sigma_next`.
        """
        if sigma_down is not None:
            alpha = (1 - sigma_next) / (1 - sigma_down)
            sigma_up = (sigma_next**2 - sigma_down**2 * alpha**2).clamp(min=0).sqrt()
        elif sigma_up is not None:
            sigma_up = torch.minimum(sigma_up, sigma_next * 0.9999)
            kept = (sigma_next**2 - sigma_up**2).clamp(min=0).sqrt()
            alpha = (1 if sigma_max is None else sigma_max) - sigma_next + kept
            sigma_down = kept / alpha
        else:
            return torch.ones_like(sigma_next), sigma_next, torch.zeros_like(sigma_next)
        return (
            alpha.nan_to_num(nan=1.0),
            torch.where(sigma_down.isnan(), sigma_next, sigma_down),
            sigma_up.nan_to_num(nan=0.0),
        )

    def step(
        self,
        sample: torch.Tensor,
        denoised_sample: torch.Tensor,
        sigmas: torch.Tensor,
        step_index: int,
        noise: torch.Tensor,
        eta: float = 0.5,
        **_kwargs: Any,
    ) -> torch.Tensor:
        """The sample at the next level, in the dtype of `denoised_sample`.

        sigmas: levels; each may be one number or per token (B, T, 1).
        eta: noise level to add, as a share of the next level. Where that is 0 for any token, nothing is left
        to add and the estimate is returned as it is.
        """
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        alpha, down, up = self.get_sde_coeff(sigma_next, sigma_up=sigma_next * eta)
        if (up == 0).any() or (sigma_next == 0).any():
            return denoised_sample
        direction = (sample - denoised_sample) / (sigma - sigma_next)
        clean = sample - sigma * direction
        return (alpha * (clean + down * direction) + up * noise).to(denoised_sample.dtype)


@dataclass(frozen=True)
class EulerAncestralDiffusionStep:
    """Ancestral Euler for rectified flow: step below the next level, then add noise up to it.

    eta: 0 adds no noise, 1 all that fits. s_noise: scale of the noise.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def stochastic(self) -> bool:
        """Whether `step` needs noise."""
        return self.eta > 0

    def step(
        self,
        sample: torch.Tensor,
        denoised_sample: torch.Tensor,
        sigmas: torch.Tensor,
        step_index: int,
        noise: torch.Tensor | None = None,
        **_kwargs: Any,
    ) -> torch.Tensor:
        """The sample at the next level, computed in float32, in its own dtype.

        Raises `InputError` if noise is needed and not given.
        """
        sigma, sigma_next = sigmas[step_index].float(), sigmas[step_index + 1].float()
        if sigma_next == 0:
            return denoised_sample.to(sample.dtype)
        down = sigma_next * (1 + (sigma_next / sigma - 1) * self.eta)
        ratio = down / sigma
        result = ratio * sample.float() + (1 - ratio) * denoised_sample.float()
        if self.stochastic:
            if noise is None:
                raise InputError(f"An ancestral step with eta {self.eta} needs noise; pass noise, or eta=0.")
            alpha = (1 - sigma_next) / (1 - down)
            level = (sigma_next**2 - down**2 * (1 - sigma_next) ** 2 / (1 - down) ** 2).clamp(min=0).sqrt()
            result = alpha * result + noise.float() * self.s_noise * level
        return result.to(sample.dtype)


@dataclass(frozen=True)
class EulerCfgPpDiffusionStep:
    """Euler with CFG++ (arXiv:2406.08070): noise is re-added along the unconditional direction.

    eta, s_noise: ancestral noise as in `EulerAncestralDiffusionStep`.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    @property
    def stochastic(self) -> bool:
        """Whether `step` adds noise."""
        return self.eta > 0 and self.s_noise > 0

    def step(
        self,
        sample: torch.Tensor,
        denoised_sample: torch.Tensor,
        sigmas: torch.Tensor,
        step_index: int,
        uncond_denoised: torch.Tensor,
        noise: torch.Tensor | None = None,
        **_kwargs: Any,
    ) -> torch.Tensor:
        """The sample at the next level, computed in float32, in its own dtype.

        uncond_denoised: the estimate of the unconditional pass. noise: None leaves ancestral noise out.
        """
        sigma, sigma_next = sigmas[step_index].float(), sigmas[step_index + 1].float()
        alpha, alpha_next = ((1 - level).clamp(min=SMALLEST_ALPHA) for level in (sigma, sigma_next))
        direction = (sample.float() - alpha * uncond_denoised.float()) / sigma
        down, up = self._split(sigma / alpha, sigma_next / alpha_next)
        result = alpha_next * denoised_sample.float() + alpha_next * down * direction
        if noise is not None and self.stochastic:
            result = result + alpha_next * noise.float() * self.s_noise * up
        return result.to(sample.dtype)

    def _split(self, start: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(down, up): the part of the noise-to-signal ratio `end` that is kept, and that is added anew."""
        if self.eta == 0:
            return end, torch.zeros_like(end)
        up = torch.minimum(self.eta * (end**2 * (start**2 - end**2).clamp(min=0) / start**2).sqrt(), end)
        return (end**2 - up**2).clamp(min=0).sqrt(), up
