"""Lookup tables and expected errors that the diffusion goldens list beside their cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from ltx_core.components.diffusion_steps import EulerDiffusionStep
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier
from ltx_core.conditioning import VideoConditionByLatentIndex, VideoGeneratedKeyframeSlots
from ltx_core.conditioning.mask_utils import resolve_cross_mask
from ltx_core.types import AudioLatentShape, LatentState, SpatioTemporalScaleFactors, VideoLatentShape
from ltx_core.utils import to_velocity
from ltx_pipelines.utils import frames
from ltx_pipelines.utils.denoisers import multi_modal_guider_denoising_func
from ltx_pipelines.utils.res2s import get_res2s_coefficients, phi
from ltx_pipelines.utils.samplers import res2s_audio_video_denoising_loop
from ltx_pipelines.utils.states import freeze, modality_from_latent_state
from tests.conformance.harness import Check, equal, near_max
from tests.conformance.topics.diffusion.common import CPU, video_tools

Table = Callable[[Any, dict[str, Any]], Iterator[Check]]


def _guider_factory(by_key: dict[str, float]) -> MultiModalGuiderFactory:
    bins = {float(key): MultiModalGuiderParams(cfg_scale=scale) for key, scale in by_key.items()}
    return MultiModalGuiderFactory.from_dict(bins)


def _factory_lookup(table: list, file: dict[str, Any]) -> Iterator[Check]:
    factory = _guider_factory(file["factory_from_dict_cfg_scale_by_key"])
    for sigma, scale in table:
        yield equal(f"sigma {sigma}", factory.params(sigma).cfg_scale, scale)


def _factory_input(table: dict[str, float], file: dict[str, Any]) -> Iterator[Check]:
    """What `factory_lookup` is made from; its largest key must look itself up."""
    key = max(table, key=float)
    yield equal("largest key", _guider_factory(table).params(float(key)).cfg_scale, table[key])


def _constant_lookup(table: list, file: dict[str, Any]) -> Iterator[Check]:
    for sigma, scale in table:
        factory = MultiModalGuiderFactory.constant(MultiModalGuiderParams(cfg_scale=scale))
        yield equal(f"sigma {sigma}", factory.build_from_sigma(sigma).params.cfg_scale, scale)


def _skipped(table: dict[str, list[bool]], file: dict[str, Any]) -> Iterator[Check]:
    for skip, expected in table.items():
        guider = MultiModalGuider(MultiModalGuiderParams(skip_step=int(skip)))
        yield equal(f"skip_step {skip}", [guider.should_skip_step(i) for i in range(len(expected))], expected)


def _defaults(table: dict[str, Any], file: dict[str, Any]) -> Iterator[Check]:
    yield equal("defaults", asdict(MultiModalGuiderParams()), table)


def _coefficients(c2: float) -> Table:
    def check(table: list, file: dict[str, Any]) -> Iterator[Check]:
        for h, *expected in table:
            got = torch.tensor(get_res2s_coefficients(h, {}, c2), dtype=torch.float64)
            yield near_max(f"h {h}", got, torch.tensor(expected, dtype=torch.float64), 1e-9)

    return check


def _phi(table: list, file: dict[str, Any]) -> Iterator[Check]:
    for j, z, expected in table:
        got, want = (torch.tensor(x, dtype=torch.float64) for x in (phi(j, z), expected))
        yield near_max(f"phi_{j}({z})", got, want, 1e-9)


def _frozen_modality() -> Any:
    state = video_tools((1, 4, 2, 2, 2), 24.0).create_initial_state(CPU, torch.float32)
    return modality_from_latent_state(freeze(state), torch.zeros(1, 1, 1), torch.tensor([0.7]))


def _frozen_sigma(table: list[float], file: dict[str, Any]) -> Iterator[Check]:
    yield equal("sigma", _frozen_modality().sigma.tolist(), table)


def _frozen_timesteps(table: float, file: dict[str, Any]) -> Iterator[Check]:
    yield equal("largest timestep", _frozen_modality().timesteps.max().item(), table)


def _calls(function: Callable[..., Any]) -> Table:
    """Rows [argument, ..., result]; a dict among the arguments holds keywords."""

    def check(table: list, file: dict[str, Any]) -> Iterator[Check]:
        for *arguments, expected in table:
            keywords = {k: v for a in arguments if isinstance(a, dict) for k, v in a.items()}
            got = function(*(a for a in arguments if not isinstance(a, dict)), **keywords)
            yield equal(str(arguments), list(got) if isinstance(got, tuple) else got, expected)

    return check


TABLES: dict[str, Table] = {
    "factory_from_dict_cfg_scale_by_key": _factory_input,
    "factory_lookup": _factory_lookup,
    "factory_constant_lookup": _constant_lookup,
    "should_skip_step": _skipped,
    "default_params": _defaults,
    "res2s_coefficients": _coefficients(0.5),
    "res2s_coefficients_c2_0_3": _coefficients(0.3),
    "phi": _phi,
    "frozen_modality_sigma": _frozen_sigma,
    "frozen_timesteps_max": _frozen_timesteps,
    "evenly_spaced_keyframe_positions": _calls(frames.evenly_spaced_keyframe_positions),
    "resolve_generated_keyframes": _calls(frames.resolve_generated_keyframes),
    "snap_frames_to_grid": _calls(frames.snap_frames_to_grid),
    "seconds_to_clamped_num_frames": _calls(frames.seconds_to_clamped_num_frames),
    "scale_factors_from_blocks": _calls(SpatioTemporalScaleFactors.from_blocks),
}


# -- errors ----------------------------------------------------------------------------------------------

GRID = (1, 4, 3, 2, 2)


def _apply(item: Any) -> LatentState:
    tools = video_tools(GRID, 24.0)
    return item.apply_to(tools.create_initial_state(CPU, torch.float32), tools)


def _condition(*shape: int, index: int = 0) -> Callable[[], Any]:
    return lambda: _apply(VideoConditionByLatentIndex(torch.zeros(shape), 1.0, index))


def _slots(*indices: int) -> Callable[[], Any]:
    return lambda: _apply(VideoGeneratedKeyframeSlots(list(indices)))


def _cross(*shape: int) -> Callable[[], Any]:
    """A mask of this shape for 3 new tokens and a batch of 2."""
    return lambda: resolve_cross_mask(torch.ones(shape), 3, 2, CPU, torch.float32)


def _no_negative_context() -> Any:
    guided, plain = (MultiModalGuider(MultiModalGuiderParams(cfg_scale=s)) for s in (3.0, 1.0))
    state = video_tools(GRID, 24.0).create_initial_state(CPU, torch.float32)
    context = torch.zeros(1, 2, 3)

    def transformer(**streams: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return state.latent, state.latent

    denoise = multi_modal_guider_denoising_func(guided, plain, context, context, transformer)
    return denoise(state, state, torch.tensor([1.0, 0.0]), 0)


def _wrong_stepper() -> Any:
    state = video_tools(GRID, 24.0).create_initial_state(CPU, torch.float32)
    sigmas, stepper = torch.tensor([1.0, 0.0]), EulerDiffusionStep()
    return res2s_audio_video_denoising_loop(sigmas, state, state, stepper, lambda v, a, s, i: (v, a))


def _wrong_initial_latent() -> Any:
    return video_tools(GRID, 24.0).create_initial_state(CPU, torch.float32, torch.zeros(1, 4, 2, 2, 2))


def _bounds(patchifier: Any, shape: Any) -> Callable[[], Any]:
    return lambda: patchifier(1).get_patch_grid_bounds(shape)


ERRORS: dict[str, Callable[[], Any]] = {
    "latent_index spatial mismatch": _condition(1, 4, 1, 3, 2),
    "latent_index channel mismatch": _condition(1, 3, 1, 2, 2),
    "latent_index past the end": _condition(1, 4, 2, 2, 2, index=2),
    "cross mask 1-D wrong length": _cross(4),
    "cross mask 2-D wrong tokens": _cross(2, 4),
    "cross mask 2-D wrong batch": _cross(3, 3),
    "cross mask 3-D": _cross(2, 3, 3),
    "cfg without negative context": _no_negative_context,
    "from_dict({})": lambda: MultiModalGuiderFactory.from_dict({}),
    "empty factory params(0.5)": lambda: MultiModalGuiderFactory().params(0.5),
    "res2s with EulerDiffusionStep": _wrong_stepper,
    "video bounds with AudioLatentShape": _bounds(VideoLatentPatchifier, AudioLatentShape(1, 8, 4, 16)),
    "audio bounds with VideoLatentShape": _bounds(AudioPatchifier, VideoLatentShape(*GRID)),
    "video bounds with zero frames": _bounds(VideoLatentPatchifier, VideoLatentShape(1, 4, 0, 2, 2)),
    "video initial latent with wrong shape": _wrong_initial_latent,
    "to_velocity with sigma 0": lambda: to_velocity(torch.zeros(1), torch.tensor(0.0), torch.zeros(1)),
    "slots empty": _slots(),
    "slots not increasing": _slots(4, 4),
    "slots negative": _slots(-1, 4),
    "slots out of range": _slots(17),
    "keyframe positions too many": lambda: frames.evenly_spaced_keyframe_positions(4, 5),
    "snap 0": lambda: frames.snap_frames_to_grid(0),
}
