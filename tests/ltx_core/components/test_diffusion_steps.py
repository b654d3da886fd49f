"""Diffusion steps: exactness on straight paths, noise levels, limits."""

import pytest
import torch

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    EulerDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.errors import InputError

SIGMAS = torch.tensor([0.9, 0.6, 0.0])
CLEAN = torch.linspace(-1, 1, 8).view(1, 4, 2)
NOISE = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
NOISY = 0.9 * NOISE + 0.1 * CLEAN


def test_euler_follows_the_straight_path():
    step = EulerDiffusionStep().step
    assert torch.allclose(step(NOISY, CLEAN, SIGMAS, 0), 0.6 * NOISE + 0.4 * CLEAN, atol=1e-6)
    assert torch.allclose(step(NOISY, CLEAN, torch.tensor([0.9, 0.0]), 0), CLEAN, atol=1e-6)


def test_euler_at_sigma_0():
    with pytest.raises(ValueError, match="sigma is 0"):
        EulerDiffusionStep().step(NOISY, CLEAN, torch.tensor([0.0, 0.0]), 0)


@pytest.mark.parametrize("step", [EulerAncestralDiffusionStep(eta=0.0), EulerCfgPpDiffusionStep(eta=0.0)])
def test_without_noise_they_are_euler(step):
    extra = {"uncond_denoised": CLEAN} if isinstance(step, EulerCfgPpDiffusionStep) else {}
    got = step.step(NOISY, CLEAN, SIGMAS, 0, **extra)
    assert torch.allclose(got, EulerDiffusionStep().step(NOISY, CLEAN, SIGMAS, 0), atol=1e-5)


@pytest.mark.parametrize("eta", [0.25, 0.5, 1.0])
def test_ancestral_noise_arrives_at_the_next_level(eta):
    """Signal and noise of the result have the proportions of a sample at sigma_next."""
    step, zeros = EulerAncestralDiffusionStep(eta=eta), torch.zeros_like(CLEAN)
    start = torch.full_like(CLEAN, 0.9)  # noise 1, clean 0
    kept = step.step(start, zeros, SIGMAS, 0, noise=zeros)
    added = step.step(zeros, zeros, SIGMAS, 0, noise=torch.ones_like(zeros))
    assert torch.allclose((kept**2 + added**2).sqrt(), torch.full_like(CLEAN, 0.6), atol=1e-5)
    signal = step.step(torch.full_like(CLEAN, 0.1), torch.ones_like(CLEAN), SIGMAS, 0, noise=zeros)
    assert torch.allclose(signal, torch.full_like(CLEAN, 0.4), atol=1e-5)


def test_ancestral_needs_noise_and_ends_in_the_estimate():
    step = EulerAncestralDiffusionStep()
    with pytest.raises(InputError, match="needs noise"):
        step.step(NOISY, CLEAN, SIGMAS, 0)
    assert torch.equal(step.step(NOISY, CLEAN, SIGMAS, 1), CLEAN)
    assert step.step(NOISY.bfloat16(), CLEAN, SIGMAS, 1).dtype is torch.bfloat16


def test_a_step_that_adds_no_noise_asks_for_none():
    kinds = (EulerAncestralDiffusionStep, EulerCfgPpDiffusionStep)
    assert all(kind().stochastic and not kind(eta=0.0).stochastic for kind in kinds)
    assert not EulerCfgPpDiffusionStep(s_noise=0.0).stochastic


@pytest.mark.parametrize("kind", [{"sigma_up": 0.2}, {"sigma_down": 0.4}])
def test_sde_coefficients_are_consistent(kind):
    sigma_next = torch.tensor([0.5, 0.3], dtype=torch.float64)
    given = {name: torch.tensor([value, value / 2], dtype=torch.float64) for name, value in kind.items()}
    alpha, down, up = Res2sDiffusionStep.get_sde_coeff(sigma_next, **given)
    assert torch.allclose((alpha * down) ** 2 + up**2, sigma_next**2)
    assert torch.allclose(alpha * (1 - down), 1 - sigma_next)


def test_sde_coefficients_are_finite_where_nothing_is_left_of_the_signal():
    for coefficient in Res2sDiffusionStep.get_sde_coeff(torch.tensor([0.5, 1.0]), sigma_down=torch.ones(2)):
        assert coefficient.isfinite().all()


def test_sde_coefficients_leave_the_callers_tensor_alone():
    up = torch.tensor([0.9])
    Res2sDiffusionStep.get_sde_coeff(torch.tensor([0.5]), sigma_up=up)
    assert up.item() == pytest.approx(0.9)


def test_res2s_without_noise_to_add_returns_the_estimate():
    step = Res2sDiffusionStep().step
    assert torch.equal(step(NOISY, CLEAN, SIGMAS, 1, NOISE), CLEAN)
    assert torch.equal(step(NOISY, CLEAN, SIGMAS, 0, NOISE, eta=0.0), CLEAN)
    per_token = torch.full((2, 1, 4, 1), 0.5)
    per_token[1] = 0.3
    per_token[1, 0, 2] = 0
    assert torch.equal(step(NOISY, CLEAN, per_token, 0, NOISE), CLEAN)


@pytest.mark.parametrize("step", [EulerDiffusionStep(), EulerAncestralDiffusionStep(), Res2sDiffusionStep()])
def test_dtype_is_kept(step):
    low = [x.bfloat16() for x in (NOISY, CLEAN)]
    assert step.step(*low, SIGMAS, 0, noise=NOISE.bfloat16()).dtype == torch.bfloat16
