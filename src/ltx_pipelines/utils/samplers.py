"""The samplers under their official names: Euler, gradient estimation, ancestral Euler, CFG++ and res_2s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.components.protocols import DiffusionStepProtocol
from ltx_core.errors import InputError
from ltx_core.types import LatentState
from ltx_pipelines.events import Callback
from ltx_pipelines.utils.euler import (
    EulerSampler,
    GradientEstimationSampler,
    StochasticEulerSampler,
    gaussian_noise,
)
from ltx_pipelines.utils.loop import accepts_denoiser, run_loop
from ltx_pipelines.utils.res2s import (
    SUBSTEP_SEED_OFFSET,
    NewNoise,
    Res2sSampler,
    extended,
    normalized_noise,
)
from ltx_pipelines.utils.types import DenoisingFunc, States

__all__ = [
    "euler_ancestral_denoising_loop",
    "euler_cfg_pp_denoising_loop",
    "euler_denoising_loop",
    "gradient_estimating_euler_denoising_loop",
    "res2s_audio_video_denoising_loop",
]


@accepts_denoiser
def euler_denoising_loop(
    sigmas: torch.Tensor,
    video_state: LatentState | None,
    audio_state: LatentState | None,
    stepper: DiffusionStepProtocol,
    denoise_fn: DenoisingFunc,
    *,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """One evaluation per step of the schedule, one step of `stepper` towards it.

    sigmas: (steps + 1,) descending noise levels. States are patchified; either may be None.
    callback, stage: see `run_loop`. All loops here also take (transformer, denoiser) in place of denoise_fn.
    """
    return run_loop(EulerSampler(stepper), sigmas, (video_state, audio_state), denoise_fn, callback, stage)


@accepts_denoiser
def gradient_estimating_euler_denoising_loop(
    sigmas: torch.Tensor,
    video_state: LatentState | None,
    audio_state: LatentState | None,
    stepper: DiffusionStepProtocol,
    denoise_fn: DenoisingFunc,
    ge_gamma: float = 2.0,
    *,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """Euler on velocities extrapolated from the last two steps (gradient estimation, arXiv:2306.04848).

    ge_gamma: how far to extrapolate; 1 is plain Euler. The step to sigma 0 takes the estimate itself.
    """
    sampler = GradientEstimationSampler(stepper, ge_gamma)
    return run_loop(sampler, sigmas, (video_state, audio_state), denoise_fn, callback, stage)


@accepts_denoiser
def res2s_audio_video_denoising_loop(
    sigmas: torch.Tensor,
    video_state: LatentState | None,
    audio_state: LatentState | None,
    stepper: DiffusionStepProtocol,
    denoise_fn: DenoisingFunc,
    noise_seed: int = -1,
    noise_seed_substep: int | None = None,
    bongmath: bool = True,
    bongmath_max_iter: int = 100,
    new_noise_fn: NewNoise = normalized_noise,
    model_dtype: torch.dtype = torch.bfloat16,
    legacy_mode: bool = True,
    eta: float = 0.5,
    *,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """The second-order res_2s sampler: two evaluations per step, one more at the end.

    noise_seed: of the noise that is re-injected after each step; noise_seed_substep: after each half step,
    default noise_seed + 10000. bongmath: correct the start of small steps, by bongmath_max_iter iterations.
    new_noise_fn: (latent, generator) -> noise. model_dtype: of the latents that the model sees and that are
    returned, bfloat16 unless given. legacy_mode: re-inject noise alike in all tokens, then restore the clean
    ones. eta: share of each level that is new noise.
    Raises `InputError` for any stepper but a `Res2sDiffusionStep`.
    """
    _check_stepper(stepper, Res2sDiffusionStep)
    states = (video_state, audio_state)
    substep_seed = noise_seed + SUBSTEP_SEED_OFFSET if noise_seed_substep is None else noise_seed_substep
    sampler = Res2sSampler(
        stepper=stepper,  # type: ignore[arg-type]
        step_noise=_noise_source(states, noise_seed, new_noise_fn),
        substep_noise=_noise_source(states, substep_seed, new_noise_fn),
        fixpoint_iterations=bongmath_max_iter if bongmath else 0,
        model_dtype=model_dtype,
        blend=legacy_mode,
        eta=eta,
    )
    return run_loop(sampler, extended(sigmas), states, denoise_fn, callback, stage)


@accepts_denoiser
def euler_ancestral_denoising_loop(
    sigmas: torch.Tensor,
    video_state: LatentState | None,
    audio_state: LatentState | None,
    stepper: DiffusionStepProtocol,
    denoise_fn: DenoisingFunc,
    noise_seed: int = -1,
    new_noise_fn: NewNoise = gaussian_noise,
    model_dtype: torch.dtype = torch.bfloat16,
    *,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """Ancestral Euler: each step goes below the next level and adds noise up to it.

    noise_seed: of that noise. new_noise_fn: (latent, generator) -> noise. model_dtype: of the latents that
    the model sees and that are returned.
    Raises `InputError` for any stepper but an `EulerAncestralDiffusionStep`.
    """
    _check_stepper(stepper, EulerAncestralDiffusionStep)
    sampler = _stochastic(stepper, (video_state, audio_state), noise_seed, new_noise_fn, model_dtype)
    return run_loop(sampler, sigmas, (video_state, audio_state), denoise_fn, callback, stage)


@accepts_denoiser
def euler_cfg_pp_denoising_loop(
    sigmas: torch.Tensor,
    video_state: LatentState | None,
    audio_state: LatentState | None,
    stepper: DiffusionStepProtocol,
    denoise_fn: DenoisingFunc,
    noise_seed: int = -1,
    new_noise_fn: NewNoise = gaussian_noise,
    model_dtype: torch.dtype = torch.bfloat16,
    *,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """CFG++: as `euler_ancestral_denoising_loop`, with noise re-added along the unconditional direction.

    denoise_fn must return `DenoisedLatentResult`s with `uncond`, as a `GuidedDenoiser` with CFG (or with
    force_uncond_pass) does; else `InputError`, as for any stepper but an `EulerCfgPpDiffusionStep`.
    """
    _check_stepper(stepper, EulerCfgPpDiffusionStep)
    sampler = _stochastic(stepper, (video_state, audio_state), noise_seed, new_noise_fn, model_dtype)
    return run_loop(sampler, sigmas, (video_state, audio_state), denoise_fn, callback, stage)


def _stochastic(
    stepper: Any, states: States, seed: int, new_noise: NewNoise, dtype: torch.dtype
) -> StochasticEulerSampler:
    return StochasticEulerSampler(stepper, _noise_source(states, seed, new_noise), dtype)


def _noise_source(states: States, seed: int, new_noise: NewNoise) -> Callable[[torch.Tensor], torch.Tensor]:
    """Draws for a latent from a generator of its own, on the device of the first state that is present."""
    devices = [state.latent.device for state in states if state is not None]
    if not devices:
        raise InputError("There is neither a video nor an audio state to denoise; give at least one.")
    generator = torch.Generator(devices[0]).manual_seed(seed % 2**64)  # offsets may go beyond
    return lambda latent: new_noise(latent, generator)


def _check_stepper(stepper: Any, kind: type) -> None:
    if not isinstance(stepper, kind):
        raise InputError(f"This loop steps with {kind.__name__}, not with {type(stepper).__name__}.")
