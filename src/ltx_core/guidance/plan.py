"""The passes a guided step needs, as data, and how they are run and combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ltx_core.components.guiders import MultiModalGuider
from ltx_core.errors import InputError
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.types import Modality

COND, UNCOND, PERTURBED, ISOLATED = "cond", "uncond", "perturbed", "isolated"

Guiders = tuple[MultiModalGuider | None, MultiModalGuider | None]
"""Of video and audio; None for a stream that is absent."""

Contexts = tuple[Any, Any]
"""Text features (B, S, D) for video and audio; anything for a stream that is absent."""

TokenPair = tuple[torch.Tensor | None, torch.Tensor | None]
"""Tokens (B, T, D) of video and audio, velocities or x0; None for a stream that is absent."""

SELF_ATTENTION = (PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_AUDIO_SELF_ATTN)
CROSS_ATTENTION = (PerturbationType.SKIP_A2V_CROSS_ATTN, PerturbationType.SKIP_V2A_CROSS_ATTN)


@dataclass(frozen=True)
class GuidancePass:
    """One pass of a guided step.

    name: COND, UNCOND, PERTURBED or ISOLATED. negative: with the negative text contexts.
    enabled: whether video and audio are updated. perturbations: one config for the whole batch, or None.
    """

    name: str
    negative: bool
    enabled: tuple[bool, bool]
    perturbations: BatchedPerturbationConfig | None = None


@dataclass(frozen=True)
class TransformerCall:
    """The arguments of one transformer pass."""

    video: Modality | None
    audio: Modality | None
    perturbations: BatchedPerturbationConfig | None = None

    @property
    def tokens(self) -> int:
        """Tokens of both streams and all samples."""
        return sum(m.latent.shape[:2].numel() for m in (self.video, self.audio) if m is not None)

    @property
    def batch_size(self) -> int:
        """Samples of each stream."""
        return max(len(m.latent) for m in (self.video, self.audio) if m is not None)

    def for_pass(self, planned: GuidancePass, contexts: Contexts) -> TransformerCall:
        """This call with the contexts, flags and perturbations of a planned pass; all else is shared."""
        video, audio = (
            modality if modality is None else replace(modality, context=context, enabled=enabled)
            for modality, context, enabled in zip((self.video, self.audio), contexts, planned.enabled)
        )
        return TransformerCall(video, audio, planned.perturbations)


def plan_passes(
    guiders: Guiders, enabled: tuple[bool, bool], force_uncond: bool = False
) -> list[GuidancePass]:
    """The passes that the guiders of the enabled streams need, in order; none if no stream is enabled.

    enabled: per stream, False where this step reuses the last estimate (or the stream is absent).
    force_uncond: run the unconditional pass even if no guider asks for it.
    Raises `InputError` for a guider with cfg_scale other than 1 and no negative context.
    """
    if not any(enabled):
        return []
    for name, guider in zip(("video", "audio"), guiders):
        if guider and guider.do_unconditional_generation() and guider.negative_context is None:
            raise InputError(
                f"The {name} cfg_scale is {guider.params.cfg_scale}, but there is no negative context; "
                "give a negative prompt, or set cfg_scale to 1."
            )
    active = [guider for guider, on in zip(guiders, enabled) if guider is not None and on]
    passes = [GuidancePass(COND, False, enabled)]
    if force_uncond or any(guider.do_unconditional_generation() for guider in active):
        passes.append(GuidancePass(UNCOND, True, enabled))
    if any(guider.do_perturbed_generation() for guider in active):
        passes.append(GuidancePass(PERTURBED, False, enabled, _without_self_attention(guiders)))
    if any(guider.do_isolated_modality_generation() for guider in active):
        isolated = _one_config(Perturbation(kind, None) for kind in CROSS_ATTENTION)
        passes.append(GuidancePass(ISOLATED, False, enabled, isolated))
    return passes


def _without_self_attention(guiders: Guiders) -> BatchedPerturbationConfig:
    return _one_config(
        Perturbation(kind, guider.params.stg_blocks)
        for kind, guider in zip(SELF_ATTENTION, guiders)
        if guider is not None and guider.do_perturbed_generation()
    )


def _one_config(perturbations: Any) -> BatchedPerturbationConfig:
    return BatchedPerturbationConfig([PerturbationConfig(list(perturbations))])


def can_stack(calls: Sequence[TransformerCall]) -> bool:
    """Whether `stack` takes these calls: the same tokens at the same positions, contexts of one size.

    Masks that are given once for several samples are not stacked.
    """

    def form(modality: Modality | None) -> list[Any]:
        return [
            id(value) if _is_shared(name, value) else getattr(value, "shape", value)
            for name, value in (vars(modality) if modality else {}).items()
        ]

    first = calls[0]
    forms = [(form(call.video), form(call.audio)) for call in calls]
    return all(map(_has_rows, (first.video, first.audio))) and all(other == forms[0] for other in forms)


def _is_shared(name: str, value: Any) -> bool:
    """Whether a field of a modality must be the very same in all calls of a stack."""
    return name == "positions" or (isinstance(value, torch.Tensor) and not value.ndim)


def _has_rows(modality: Modality | None) -> bool:
    """Whether what is not shared has a row for each sample; a text mask may be (queries, keys) for all of them."""
    if modality is None:
        return True
    rows = [v for k, v in vars(modality).items() if isinstance(v, torch.Tensor) and not _is_shared(k, v)]
    return modality.context_mask is None and all(len(value) == len(modality.latent) for value in rows)


def stack(calls: Sequence[TransformerCall]) -> TransformerCall:
    """Calls that differ in contexts and perturbations alone as one, on the batch axis, in their order."""
    configs = []
    for call in calls:
        given = (call.perturbations or BatchedPerturbationConfig.empty()).perturbations
        configs += list(given) * (call.batch_size // len(given))
    return TransformerCall(
        _stack_modalities([call.video for call in calls]),
        _stack_modalities([call.audio for call in calls]),
        BatchedPerturbationConfig(configs),
    )


def _stack_modalities(modalities: Sequence[Modality | None]) -> Modality | None:
    first = modalities[0]
    if first is None:
        return None
    joined: dict[str, Any] = {}
    for name, value in vars(first).items():
        shared = name == "positions" and len(value) == 1  # rotary tables broadcast
        if isinstance(value, torch.Tensor) and value.ndim and not shared:
            joined[name] = torch.cat([getattr(modality, name) for modality in modalities])
    return replace(first, **joined)


def run_passes(transformer: Callable[..., TokenPair], calls: Sequence[TransformerCall]) -> list[TokenPair]:
    """The x0 estimates of each call.

    A transformer that has a `run_passes` of its own gets all calls at once, to share work between them: their
    modalities differ in context and flags only. Any other is called once for each.
    """
    together = getattr(transformer, "run_passes", None)
    if together is not None:
        return list(together(calls))
    return [
        transformer(video=call.video, audio=call.audio, perturbations=call.perturbations) for call in calls
    ]


def combine(guider: MultiModalGuider, estimates: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The guided estimate of one stream from those of its passes, by name."""
    return guider.calculate(
        estimates[COND],
        estimates.get(UNCOND, 0.0),
        estimates.get(PERTURBED, 0.0),
        estimates.get(ISOLATED, 0.0),
    )
