"""Samplers by name: a diffusion step with the loop that drives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.errors import InputError
from ltx_pipelines.utils.loop import Evaluate
from ltx_pipelines.utils.samplers import (
    euler_ancestral_denoising_loop,
    euler_denoising_loop,
    gradient_estimating_euler_denoising_loop,
    res2s_audio_video_denoising_loop,
)
from ltx_pipelines.utils.validation import finite

# The offset of the official ancestral sampler; keeps the sampler's noise apart from the initial noise.
NOISE_SEED_OFFSET = 10_000


@dataclass(frozen=True)
class Sampler:
    """A loop ``(sigmas, video_state, audio_state, stepper, denoise_fn, *, callback, stage) -> states`` and its step.

    evaluations_per_step, last_evaluations: of the model, in each step and once more at the end.
    needs_dtype: the loop takes ``model_dtype``, the dtype that states have between its steps. refining: the
    sampler of a second stage that follows, if another.
    """

    name: str
    stepper: Any
    loop: Callable[..., Any]
    evaluations_per_step: int = 1
    last_evaluations: int = 0
    needs_dtype: bool = False
    refining: Sampler | None = None


SAMPLERS = ("euler", "gradient-estimation", "res2s", "euler-ancestral")

EULER = Sampler("euler", EulerDiffusionStep(), euler_denoising_loop)


def gradient_estimation(gamma: float = 2.0) -> Sampler:
    """Euler on velocities extrapolated from the last two steps by `gamma` (gradient estimation).

    Raises `InputError` for a `gamma` that is not finite.
    """
    loop = partial(gradient_estimating_euler_denoising_loop, ge_gamma=finite("ge_gamma", gamma))
    return Sampler("gradient-estimation", EulerDiffusionStep(), loop)


def res2s(seed: int) -> Sampler:
    """The second-order res_2s sampler; its own noise follows the seed of the call."""
    loop = partial(res2s_audio_video_denoising_loop, noise_seed=seed + NOISE_SEED_OFFSET)
    return Sampler(
        "res2s", Res2sDiffusionStep(), loop, evaluations_per_step=2, last_evaluations=1, needs_dtype=True
    )


def ancestral(seed: int) -> Sampler:
    """Ancestral Euler, then plain Euler: what distilled checkpoints of version 2.5 and later are made for."""
    loop = partial(euler_ancestral_denoising_loop, noise_seed=seed + NOISE_SEED_OFFSET)
    step = EulerAncestralDiffusionStep()
    return Sampler("euler-ancestral", step, loop, needs_dtype=True, refining=EULER)


def custom(loop: Callable[..., Any]) -> Sampler:
    """A user's own loop ``(sigmas, video_state, audio_state, stepper, denoise_fn)``, stepping by Euler."""

    def watched(sigmas, video, audio, stepper, denoise_fn, callback=None, stage=""):  # type: ignore[no-untyped-def]
        def evaluate(video_state, audio_state, sigmas, step_index):  # type: ignore[no-untyped-def]
            at = Evaluate(denoise_fn, callback, stage, step_index, len(sigmas) - 1)
            results = at((video_state, audio_state), sigmas, step_index)
            return tuple(None if result is None else result.denoised for result in results)

        return loop(sigmas=sigmas, video_state=video, audio_state=audio, stepper=stepper, denoise_fn=evaluate)

    return Sampler("custom", EulerDiffusionStep(), watched)


def by_name(name: str, *, seed: int, gamma: float = 2.0) -> Sampler:
    """The sampler called `name` on the command line. Raises `InputError` for an unknown name."""
    match name:
        case "euler":
            return EULER
        case "gradient-estimation":
            return gradient_estimation(gamma)
        case "res2s":
            return res2s(seed)
        case "euler-ancestral":
            return ancestral(seed)
    raise InputError(f"Unknown sampler {name!r}; choose {', '.join(SAMPLERS[:-1])} or {SAMPLERS[-1]}.")
