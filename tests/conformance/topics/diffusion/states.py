"""Cases on latent states: made, conditioned, noised, cleared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.conditioning import (
    AudioConditionByReferenceLatent,
    ConditioningItem,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByMask,
    VideoConditionByReferenceLatent,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.conditioning.mask_utils import build_attention_mask, update_attention_mask
from ltx_core.conditioning.pixel_mask import downsample_mask
from ltx_core.tools import AudioLatentTools
from ltx_core.types import AudioLatentShape, LatentState
from ltx_pipelines.utils.states import timesteps_from_mask
from tests.conformance.harness import Check, equal, exact, near_abs
from tests.conformance.topics.diffusion.common import CPU, Golden, Tensors, near, same_state, video_tools


def tools(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if case["kind"] == "video":
        tools: Any = video_tools(case["shape"], case["fps"])
    else:
        tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(*case["shape"]))
    state = tools.create_initial_state(CPU, golden.dtype, t.get("initial_latent"))
    yield from same_state("state", state, t)
    yield from same_state("unpatchified", tools.unpatchify(state), t)


def positions_without_causal_fix(t: Tensors) -> Iterator[Check]:
    tools = replace(video_tools((1, 2, 3, 2, 2), 24.0), causal_fix=False)
    got = tools.create_initial_state(CPU, torch.float32).positions
    yield near_abs("positions", got, t["v_nocausal.positions"], 1e-6)


def conditioning(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if "items" in case:
        items = [_item(t, i, item) for i, item in enumerate(case["items"])]
        yield from _conditioned(golden, items, {"noised_latent": 1.0}, "noised_latent")
    elif "num_noisy_tokens" in case:
        yield from _masks(case, t)
    elif "latent_shape" in case:
        mask = t["mask_x8_uint8"].float() / 8
        yield near("latent_mask", downsample_mask(mask, tuple(case["latent_shape"][2:])), t["latent_mask"])
    elif case.get("kind") == "audio temporal_region":
        tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(1, 2, case["frames"], 2))
        item = TemporalRegionMask(case["start_time"], case["end_time"], 24.0)
        state = item.apply_to(tools.create_initial_state(CPU, torch.float32), tools)
        yield from same_state("", state, {f".{name}": tensor for name, tensor in t.items()})
    else:
        raise ValueError(f"unknown kind of case: {case}")


def _item(t: Tensors, i: int, spec: dict[str, Any]) -> ConditioningItem:
    given = dict(spec)
    kind, attention = given.pop("kind"), given.pop("attention", None)
    latent = t.get(f"item{i}.latent")
    match kind:
        case "latent_index":
            item: ConditioningItem = VideoConditionByLatentIndex(latent=latent, **given)
        case "keyframe":
            item = VideoConditionByKeyframeIndex(keyframes=latent, **given)
        case "reference":
            item = VideoConditionByReferenceLatent(latent=latent, **given)
        case "temporal_region":
            item = TemporalRegionMask(**given)
        case _:
            raise ValueError(f"unknown item {kind!r}")
    if isinstance(attention, str):
        attention = t[f"item{i}.attention"]
    return item if attention is None else ConditioningItemAttentionStrengthWrapper(item, attention)


def _conditioned(
    golden: Golden, items: list[ConditioningItem], noised: dict[str, float], cleared_from: str
) -> Iterator[Check]:
    """Items applied, noise of each scale from a fresh generator, and what is left after clearing."""
    case, t = golden.case, golden.tensors
    tools = video_tools(case["target_shape"], case["fps"])
    state = tools.create_initial_state(CPU, golden.dtype, t["initial_latent"])
    for item in items:
        state = item.apply_to(state, tools)
    yield from same_state("out", state, t)
    yield equal("attention_mask", state.attention_mask is None, "out.attention_mask" not in t)
    states = {}
    for name, scale in noised.items():
        noiser = GaussianNoiser(torch.Generator().manual_seed(case["noiser_seed"]))
        states[name] = noiser(state, scale)
        yield near(name, states[name].latent, t[name])
    yield from same_state("cleared", tools.clear_conditioning(states[cleared_from]), t)
    layout = state.generated_keyframe_layout
    if "layout" in case:
        got = layout and {**vars(layout), "pixel_frame_indices": list(layout.pixel_frame_indices)}
        yield equal("layout", got, case["layout"])


def _masks(case: dict[str, Any], t: Tensors) -> Iterator[Check]:
    noisy, new, old, batch = (
        case[f"{n}"] for n in ("num_noisy_tokens", "num_new_tokens", "num_existing_tokens", "batch_size")
    )
    for name, existing in (("with", t["existing"]), ("without", None)):
        got = build_attention_mask(existing, noisy, new, old, t["cross"], CPU, torch.float32)
        yield exact(f"build_{name}_existing", got, t[f"build_{name}_existing"])
    latent = torch.zeros(batch, old, 2)
    state = LatentState(latent, latent[..., :1], torch.zeros(batch, 3, old, 2), latent, t["existing"])
    for name, value in (("none_with_existing", None), ("scalar", 0.4)):
        got = update_attention_mask(state, value, noisy, new, batch, CPU, torch.float32)
        assert got is not None
        yield near_abs(name, got, t[f"update_{name}"], 1e-7)


def v120_states(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    latents = [t[f"item_latent{k}"] for k in range(len(t)) if f"item_latent{k}" in t]
    if case["id"] == "audio_ref":
        shape = AudioLatentShape(*case["audio_shape"])
        tools = AudioLatentTools(AudioPatchifier(1), shape)
        item = AudioConditionByReferenceLatent(t["tokens"], t["positions"], case["strength"])
        yield from same_state("out", item.apply_to(tools.create_initial_state(CPU, torch.float32), tools), t)
        return
    recipes: dict[str, Callable[[], list[Any]]] = {
        "plain": lambda: [],
        "latent_index": lambda: [VideoConditionByLatentIndex(latents[0], 0.7, 0)],
        "keyframe": lambda: [VideoConditionByKeyframeIndex(latents[0], 9, 0.7)],
        "keyframe_multi": lambda: [VideoConditionByKeyframeIndex(latents[0], 0, 1.0, num_pixel_frames=9)],
        "reference_temporal": lambda: [
            VideoConditionByReferenceLatent(latents[0], 2, strength=0.9, temporal_scale_factor=4)
        ],
        "slots": lambda: [
            VideoConditionByLatentIndex(latents[0], 1.0, 0),
            VideoGeneratedKeyframeSlots([4, 11]),
            VideoConditionByKeyframeIndex(latents[1], 16, 1.0),
        ],
        "slots_seeded": lambda: [VideoGeneratedKeyframeSlots([3, 9], initial_keyframes=latents[0])],
        "mask": lambda: [VideoConditionByMask(latents[0], t["mask"], 0.8)],
    }
    noised = {name: float(name.removeprefix("noised_")) for name in t if name.startswith("noised_")}
    yield from _conditioned(golden, recipes[case["id"]](), noised, case["cleared_from"])


def timesteps(t: Tensors) -> Iterator[Check]:
    mask, sigma = t["timesteps.mask"], t["timesteps.sigma_1d"]
    yield near("out", timesteps_from_mask(mask, sigma), t["timesteps.out"])
    yield near("out_f64", timesteps_from_mask(mask, sigma.double()), t["timesteps.out_f64"])
