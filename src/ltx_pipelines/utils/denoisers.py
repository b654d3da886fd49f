"""Denoising functions: from states to guided x0 estimates, each a thin layer on the plan of passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ltx_core.components.guiders import (
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
    create_multimodal_guider_factory,
)
from ltx_core.components.protocols import GuiderProtocol
from ltx_core.guidance.plan import (
    COND,
    ISOLATED,
    PERTURBED,
    UNCOND,
    Contexts,
    GuidancePass,
    TransformerCall,
    combine,
    plan_passes,
    run_passes,
)
from ltx_core.types import LatentState, Modality
from ltx_pipelines.utils.states import modality_from_latent_state
from ltx_pipelines.utils.types import (
    DenoisedLatentResult,
    Denoiser,
    DenoisingFunc,
    Results,
    States,
    per_stream,
)

Transformer = Callable[..., tuple[torch.Tensor | None, torch.Tensor | None]]
PresentGuiders = tuple[MultiModalGuider, MultiModalGuider]

UNGUIDED = MultiModalGuider(MultiModalGuiderParams())
ALL_ENABLED = (True, True)


def _transformer_call(states: States, contexts: Contexts, sigma: torch.Tensor) -> TransformerCall:
    """What every pass of a step has in common: both streams at noise level `sigma`."""

    def modality(state: LatentState, context: torch.Tensor) -> Modality:
        return modality_from_latent_state(state, context, sigma)

    return TransformerCall(*per_stream(modality, states, contexts))


class SimpleDenoiser:
    """One unguided pass."""

    def __init__(self, v_context: torch.Tensor | None, a_context: torch.Tensor | None) -> None:
        self.contexts = (v_context, a_context)

    def __call__(
        self,
        transformer: Transformer,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> Results:
        call = _transformer_call((video_state, audio_state), self.contexts, sigmas[step_index])
        return per_stream(DenoisedLatentResult, run_passes(transformer, [call])[0])


class SingleGuiderDenoiser:
    """A conditional and a negative pass, joined by a guider with one scale."""

    def __init__(self, guider: GuiderProtocol, positive: Contexts, negative: Contexts) -> None:
        self.guider = guider
        self.positive, self.negative = positive, negative

    def __call__(
        self,
        transformer: Transformer,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> Results:
        call = _transformer_call((video_state, audio_state), self.positive, sigmas[step_index])
        if not self.guider.enabled():
            return per_stream(DenoisedLatentResult, run_passes(transformer, [call])[0])
        negative = call.for_pass(GuidancePass(UNCOND, True, ALL_ENABLED), self.negative)

        def guided(cond: torch.Tensor, uncond: torch.Tensor) -> DenoisedLatentResult:
            return DenoisedLatentResult(cond + self.guider.delta(cond, uncond), uncond, cond)

        return per_stream(guided, *run_passes(transformer, [call, negative]))


class GuidedDenoiser:
    """All passes that the multimodal guiders of video and audio ask for; remembers the last estimates.

    A missing guider guides nothing. force_uncond_pass: run the unconditional pass even without CFG, for
    samplers that need its estimate.
    """

    def __init__(
        self,
        v_context: torch.Tensor | None,
        a_context: torch.Tensor | None,
        video_guider: MultiModalGuider | None = None,
        audio_guider: MultiModalGuider | None = None,
        force_uncond_pass: bool = False,
    ) -> None:
        self.contexts = (v_context, a_context)
        self.guiders = (video_guider or UNGUIDED, audio_guider or UNGUIDED)
        self.force_uncond_pass = force_uncond_pass
        self.last: Results = (None, None)

    def _guiders_at(self, sigmas: torch.Tensor, step_index: int) -> PresentGuiders:
        return self.guiders

    def __call__(
        self,
        transformer: Transformer,
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> Results:
        self.last = guided_results(
            transformer,
            (video_state, audio_state),
            self.contexts,
            self._guiders_at(sigmas, step_index),
            sigmas[step_index],
            step_index,
            self.last,
            self.force_uncond_pass,
        )
        return self.last


class FactoryGuidedDenoiser(GuidedDenoiser):
    """`GuidedDenoiser` with guiders by noise level.

    Without an audio factory the video's serves both, its negative context included. Guiders follow the
    schedule of the first call by step index: the midpoints of res_2s, which come as schedules of their own,
    are guided like the first step.
    """

    def __init__(
        self,
        v_context: torch.Tensor | None,
        a_context: torch.Tensor | None,
        video_guider_factory: MultiModalGuiderFactory | None = None,
        audio_guider_factory: MultiModalGuiderFactory | None = None,
        force_uncond_pass: bool = False,
    ) -> None:
        super().__init__(v_context, a_context, force_uncond_pass=force_uncond_pass)
        video = video_guider_factory or create_multimodal_guider_factory(UNGUIDED.params)
        self.factories = (video, audio_guider_factory or video)
        self._schedule: list[float] | None = None

    def _guiders_at(self, sigmas: torch.Tensor, step_index: int) -> PresentGuiders:
        if self._schedule is None:
            self._schedule = sigmas.tolist()
        video, audio = self.factories
        sigma = self._schedule[step_index]
        return video.build_from_sigma(sigma), audio.build_from_sigma(sigma)


def guided_results(
    transformer: Transformer,
    states: States,
    contexts: Contexts,
    guiders: PresentGuiders,
    sigma: torch.Tensor,
    step_index: int,
    last: Results = (None, None),
    force_uncond: bool = False,
) -> Results:
    """One guided evaluation of both streams; a stream that its guider skips gets its `last` result again."""
    video_enabled, audio_enabled = (
        state is not None and not (guider.should_skip_step(step_index) and result is not None)
        for state, guider, result in zip(states, guiders, last)
    )
    enabled = (video_enabled, audio_enabled)
    video_guider, audio_guider = (g if s is not None else None for g, s in zip(guiders, states))
    passes = plan_passes((video_guider, audio_guider), enabled, force_uncond)
    if not passes:
        return last
    negatives = per_stream(
        lambda guider, context: context if guider.negative_context is None else guider.negative_context,
        guiders,
        contexts,
    )
    base = _transformer_call(states, contexts, sigma)
    calls = [base.for_pass(p, negatives if p.negative else contexts) for p in passes]
    names = [planned.name for planned in passes]
    streams = zip(*run_passes(transformer, calls))
    video, audio = (
        _guided(guider, dict(zip(names, estimates))) if is_enabled else result
        for guider, estimates, is_enabled, result in zip(guiders, streams, enabled, last)
    )
    return video, audio


def _guided(guider: MultiModalGuider, estimates: dict[str, Any]) -> DenoisedLatentResult:
    return DenoisedLatentResult(
        combine(guider, estimates),
        uncond=estimates.get(UNCOND),
        cond=estimates[COND],
        ptb=estimates.get(PERTURBED),
        mod=estimates.get(ISOLATED),
    )


def bound(denoiser: Denoiser, transformer: Transformer) -> DenoisingFunc:
    """A denoiser with its transformer, as a denoising function that returns x0 tokens."""

    def denoise(
        video_state: LatentState | None,
        audio_state: LatentState | None,
        sigmas: torch.Tensor,
        step_index: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        results = denoiser(transformer, video_state, audio_state, sigmas, step_index)
        return per_stream(lambda result: result.denoised, results)

    return denoise


def simple_denoising_func(
    video_context: torch.Tensor, audio_context: torch.Tensor, transformer: Transformer
) -> DenoisingFunc:
    """Unguided: one pass per evaluation."""
    return bound(SimpleDenoiser(video_context, audio_context), transformer)


def guider_denoising_func(
    guider: GuiderProtocol,
    v_context_p: torch.Tensor,
    v_context_n: torch.Tensor,
    a_context_p: torch.Tensor,
    a_context_n: torch.Tensor,
    transformer: Transformer,
) -> DenoisingFunc:
    """Guided by a guider with one scale, from positive (p) and negative (n) contexts."""
    denoiser = SingleGuiderDenoiser(guider, (v_context_p, a_context_p), (v_context_n, a_context_n))
    return bound(denoiser, transformer)


def multi_modal_guider_denoising_func(
    video_guider: MultiModalGuider,
    audio_guider: MultiModalGuider,
    v_context: torch.Tensor,
    a_context: torch.Tensor,
    transformer: Transformer,
    *,
    last_denoised_video: torch.Tensor | None = None,
    last_denoised_audio: torch.Tensor | None = None,
) -> DenoisingFunc:
    """Guided by a multimodal guider per stream; last_denoised_*: what a skipped first step returns."""
    denoiser = GuidedDenoiser(v_context, a_context, video_guider, audio_guider)
    denoiser.last = per_stream(DenoisedLatentResult, (last_denoised_video, last_denoised_audio))
    return bound(denoiser, transformer)


def multi_modal_guider_factory_denoising_func(
    video_guider_factory: MultiModalGuiderFactory,
    audio_guider_factory: MultiModalGuiderFactory | None,
    v_context: torch.Tensor,
    a_context: torch.Tensor,
    transformer: Transformer,
) -> DenoisingFunc:
    """Guided by guiders that change with the noise level; see `FactoryGuidedDenoiser`."""
    denoiser = FactoryGuidedDenoiser(v_context, a_context, video_guider_factory, audio_guider_factory)
    return bound(denoiser, transformer)
