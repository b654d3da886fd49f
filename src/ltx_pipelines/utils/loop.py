"""The one denoising loop: samplers are pure functions that it calls for every step of a schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch

from ltx_core.errors import InputError
from ltx_pipelines.events import Callback, Event, tell
from ltx_pipelines.progress import progress
from ltx_pipelines.utils.types import DenoisedLatentResult, DenoisingFunc, Estimate, Results, States

Loop = TypeVar("Loop", bound=Callable[..., States])


@dataclass(frozen=True)
class Evaluate:
    """The model, as a sampler sees it at one step: estimates at a noise level, told to the callback.

    step, of: the current step of the loop and how many there are. Raises `Cancelled` if the callback says so.
    """

    denoise_fn: DenoisingFunc
    callback: Callback | None = None
    stage: str = "denoise"
    step: int = 0
    of: int = 0

    def __call__(self, states: States, sigmas: torch.Tensor, index: int) -> Results:
        """The estimates of both streams at ``sigmas[index]``; None for a stream that is absent.

        Raises `InputError` if there is none of a stream that is present.
        """
        video, audio = map(_as_result, self.denoise_fn(*states, sigmas, index))
        for name, state, result in zip(("video", "audio"), states, (video, audio)):
            if state is not None and result is None:
                raise InputError(
                    f"The denoising function returned None in place of an estimate of the {name}."
                )
        if self.callback is not None:
            event = Event(
                self.stage,
                self.step,
                self.of,
                sigma=float(sigmas[index]),
                video_x0=None if video is None else video.denoised,
                audio_x0=None if audio is None else audio.denoised,
            )
            tell(self.callback, event)
        return video, audio


class SamplerStep(Protocol):
    """One step of a sampler, from ``sigmas[i]`` to ``sigmas[i + 1]``.

    memory: what the step before returned beside the states, None at first.
    """

    def __call__(
        self, evaluate: Evaluate, states: States, memory: Any, sigmas: torch.Tensor, i: int
    ) -> tuple[States, Any]: ...


@torch.no_grad()
def run_loop(
    step: SamplerStep,
    sigmas: torch.Tensor,
    states: States,
    denoise_fn: DenoisingFunc,
    callback: Callback | None = None,
    stage: str = "denoise",
) -> States:
    """Both states after all steps of the schedule, with a bar where somebody sees it.

    callback: told of every evaluation of the model, as an `Event` of `stage`; answering False cancels.
    """
    steps, memory = len(sigmas) - 1, None
    for i in progress(range(steps), desc=stage):
        states, memory = step(Evaluate(denoise_fn, callback, stage, i, steps), states, memory, sigmas, i)
    return states


def accepts_denoiser(loop: Loop) -> Loop:
    """Let a loop be called as (..., stepper, transformer, denoiser), too, as the v1.2.0 packages do."""

    @functools.wraps(loop)
    def call(
        sigmas: torch.Tensor, video_state: Any, audio_state: Any, stepper: Any, *rest: Any, **options: Any
    ) -> States:
        model = list(rest)
        if "denoiser" in options or (len(model) > 1 and callable(model[1])):
            transformer = options.pop("transformer") if "transformer" in options else model.pop(0)
            denoiser = options.pop("denoiser") if "denoiser" in options else model.pop(0)
            model.insert(0, functools.partial(denoiser, transformer))
        return loop(sigmas, video_state, audio_state, stepper, *model, **options)

    return cast(Loop, call)


def _as_result(estimate: Estimate) -> DenoisedLatentResult | None:
    return DenoisedLatentResult(estimate) if isinstance(estimate, torch.Tensor) else estimate
