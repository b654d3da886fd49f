"""Diffusion goldens: shapes, positions, schedules, guidance, conditioning, steps, loops, denoising functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltx_core.components import diffusion_steps, guiders, schedulers
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
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
from ltx_core.conditioning.mask_utils import build_attention_mask, resolve_cross_mask, update_attention_mask
from ltx_core.conditioning.pixel_mask import downsample_mask
from ltx_core.guidance import BatchedPerturbationConfig, Perturbation, PerturbationConfig, PerturbationType
from ltx_core.tools import AudioLatentTools, VideoLatentTools
from ltx_core.types import (
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)
from ltx_core.utils import rms_norm, to_denoised, to_velocity
from ltx_pipelines.utils import frames as frame_helpers
from ltx_pipelines.utils import samplers
from ltx_pipelines.utils.denoisers import (
    FactoryGuidedDenoiser,
    GuidedDenoiser,
    SimpleDenoiser,
    guider_denoising_func,
    multi_modal_guider_denoising_func,
    multi_modal_guider_factory_denoising_func,
    simple_denoising_func,
)
from ltx_pipelines.utils.res2s import get_res2s_coefficients, normalized_noise, phi
from ltx_pipelines.utils.states import (
    denoise_audio_video,
    denoise_video_only,
    freeze,
    modality_from_latent_state,
    post_process_latent,
    timesteps_from_mask,
)
from ltx_pipelines.utils.types import PipelineComponents
from tests.conformance.harness import Case, Check, Context, equal, exact, near_abs, near_max, raises, read_json, read_tensors
from tests.conformance.topics.diffusion_stubs import AnalyticDenoiser, StubTransformer

FLOAT, LOOP_BF16 = 1e-5, 2e-2
CPU = torch.device("cpu")
LOOPS = {
    "euler": (samplers.euler_denoising_loop, diffusion_steps.EulerDiffusionStep),
    "ge": (samplers.gradient_estimating_euler_denoising_loop, diffusion_steps.EulerDiffusionStep),
    "res2s": (samplers.res2s_audio_video_denoising_loop, diffusion_steps.Res2sDiffusionStep),
    "ancestral": (samplers.euler_ancestral_denoising_loop, diffusion_steps.EulerAncestralDiffusionStep),
    "cfgpp": (samplers.euler_cfg_pp_denoising_loop, diffusion_steps.EulerCfgPpDiffusionStep),
}
STATE_TENSORS = [f.name for f in fields(LatentState) if f.name not in ("generated_keyframe_layout", "frozen")]


@dataclass(frozen=True)
class Golden:
    """One case with its file's json and tensors. `tensors` are the case's own, `shared` all of the file."""

    case: dict[str, Any]
    file: dict[str, Any]
    tensors: Mapping[str, torch.Tensor]
    shared: Mapping[str, torch.Tensor]

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.case["dtype"])

    def state(self, prefix: str, tensors: Mapping[str, torch.Tensor] | None = None) -> LatentState:
        tensors = self.tensors if tensors is None else tensors
        return LatentState(**{n: tensors[f"{prefix}.{n}"] for n in STATE_TENSORS if f"{prefix}.{n}" in tensors})


def recognises(folder: Path) -> bool:
    return any((folder / f"{name}.json").is_file() for name in ("denoise_funcs", "v120_loops", "schedulers"))


def cases(folder: Path, context: Context) -> Iterator[Case]:
    """All on the CPU, whatever the context's device: these goldens hold CPU random numbers."""
    for path in sorted(folder.glob("*.json")):
        file, beside = read_json(path), path.with_suffix(".safetensors")
        tensors = read_tensors(beside) if beside.is_file() else {}
        name = path.stem if path.stem in FILES else path.stem.removeprefix("v120_")
        if name not in FILES:
            yield Case(path.stem, lambda: [Check("file", False, "nobody knows how to run this file")])
        elif name == "perturbations":
            yield Case(path.stem, partial(_perturbations, file))
        else:
            for case in file["cases"]:
                prefix = f"{case['id']}."
                own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
                golden = Golden(case, file, own, tensors)
                yield Case(f"{path.stem}/{case['id']}", partial(FILES[name], golden))
            extras = {k: v for k, v in file.items() if k in EXTRAS}
            for extra in extras:
                yield Case(f"{path.stem}/{extra}", partial(EXTRAS[extra], file[extra]))
            for situation, exception in file.get("errors", {}).items():
                yield Case(f"{path.stem}/error: {situation}", partial(_error, situation, exception))
            unknown = set(file) - set(EXTRAS) - {"cases", "errors", "denoiser", "stub", "replaces"}
            if unknown:
                yield Case(f"{path.stem}/unknown", lambda u=unknown: [Check("fields", False, f"unknown {u}")])
            if name == "tools" and "v_nocausal.positions" in tensors:
                yield Case(f"{path.stem}/v_nocausal", partial(_tools_nocausal, tensors))
            if name == "steps" and "sde.sigma_next" in tensors:
                yield Case(f"{path.stem}/sde", partial(_sde, tensors))
            if name == "v120_states" and "timesteps.mask" in tensors:
                yield Case(f"{path.stem}/timesteps", partial(_timesteps, tensors))


def _near(name: str, got: torch.Tensor, want: torch.Tensor, loop: bool = False) -> Check:
    """As the README has it: relative to the maximum in float32; in bfloat16 an ulp, 2 % of it after a loop."""
    if got.dtype != want.dtype:
        return Check(name, False, f"dtype {got.dtype}, expected {want.dtype}")
    if want.dtype != torch.bfloat16:
        return near_max(name, got, want, FLOAT)
    if loop:
        return near_max(name, got, want, LOOP_BF16)
    if got.shape != want.shape:
        return Check(name, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    ulp = torch.exp2(torch.floor(torch.log2(want.double().abs().clamp(min=1e-30))) - 7)
    off = ((got.double() - want.double()).abs() / ulp).max().item()
    return Check(name, off <= 1, f"{off:.2g} ulp (at most 1)")


def _same_state(name: str, got: LatentState, want: Mapping[str, torch.Tensor]) -> Iterator[Check]:
    """Every stored tensor of a state: arrangements exactly, positions to 1e-6, blends closely."""
    for field in STATE_TENSORS:
        tensor = want.get(f"{name}.{field}")
        if tensor is None:
            continue
        value = getattr(got, field)
        if value is None:
            yield Check(f"{name}.{field}", False, "missing")
        elif field == "positions":
            yield near_abs(f"{name}.{field}", value, tensor, 1e-6)
            yield equal(f"{name}.{field} dtype", value.dtype, tensor.dtype)
        else:
            yield _near(f"{name}.{field}", value, tensor)


# -- components ------------------------------------------------------------------------------------------


def _types(golden: Golden) -> Iterator[Check]:
    case = golden.case
    if "duration" in case:
        got = AudioLatentShape.from_duration(1, case["duration"], **case["kwargs"])
        yield equal("audio_latent", got._asdict(), case["audio_latent"])
        return
    pixels = VideoPixelShape(**case["pixel"])
    video, audio = VideoLatentShape.from_pixel_shape(pixels), AudioLatentShape.from_video_pixel_shape(pixels)
    small = VideoLatentShape.from_pixel_shape(pixels, 16, SpatioTemporalScaleFactors(4, 16, 16))
    yield equal("video_latent", video._asdict(), case["video_latent"])
    yield equal("video_latent_c16_t4_s16", small._asdict(), case["video_latent_c16_t4_s16"])
    yield equal("token_count", video.token_count(), case["token_count"])
    yield equal("mask_shape", list(video.mask_shape()), case["mask_shape"])
    yield equal("upscale", video.upscale()._asdict(), case["upscale"])
    yield equal("audio_latent", audio._asdict(), case["audio_latent"])
    yield equal("audio_token_count", audio.token_count(), case["audio_token_count"])
    yield equal("audio_mask_shape", list(audio.mask_shape()), case["audio_mask_shape"])
    for shape in (video, audio):
        yield equal("torch shape", type(shape).from_torch_shape(shape.to_torch_shape()), shape)


def _schedulers(golden: Golden) -> Iterator[Check]:
    case = golden.case
    kwargs = dict(case["kwargs"])
    if case["latent_shape"] is not None:
        kwargs["latent"] = torch.empty(case["latent_shape"], device="meta")
    got = getattr(schedulers, case["scheduler"])().execute(**kwargs)
    yield near_abs("sigmas", got, golden.shared[case["id"]], 1e-6)
    yield equal("length", len(got), case["length"])
    yield equal("dtype", got.dtype, torch.float32)


def _patchifiers(golden: Golden) -> Iterator[Check]:
    case, tensors = golden.case, golden.tensors
    if case["kind"] == "video":
        patchifier: Any = VideoLatentPatchifier(case["patch_size"])
        shape: Any = VideoLatentShape(*case["shape"])
        bounds = patchifier.get_patch_grid_bounds(shape)
        default = SpatioTemporalScaleFactors.default()
        for causal in (True, False):
            name = f"pixel_coords_causal_{causal}"
            yield exact(name, get_pixel_coords(bounds, default, causal), tensors[name])
        other = get_pixel_coords(bounds, SpatioTemporalScaleFactors(4, 16, 16), True)
        yield exact("pixel_coords_t4_s16", other, tensors["pixel_coords_t4_s16_causal_True"])
        yield equal("patch_size", list(patchifier.patch_size), case["patch_size_property"])
    elif case["kind"] == "audio":
        patchifier, shape = AudioPatchifier(1, **case["kwargs"]), AudioLatentShape(*case["shape"])
        bounds = patchifier.get_patch_grid_bounds(shape)
    else:
        raise ValueError(f"unknown kind {case['kind']!r}")
    yield near_abs("bounds", bounds, tensors["bounds"], 1e-6)
    yield equal("bounds dtype", bounds.dtype, tensors["bounds"].dtype)
    yield exact("tokens", patchifier.patchify(tensors["latent"]), tensors["tokens"])
    yield exact("latent", patchifier.unpatchify(tensors["tokens"], shape), tensors["latent"])
    yield equal("token_count", patchifier.get_token_count(shape), case["token_count"])


def _utils(golden: Golden) -> Iterator[Check]:
    t = golden.tensors
    results = {
        "timesteps": timesteps_from_mask(t["mask"], t["sigma"]),
        "to_velocity": to_velocity(t["sample"], t["sigma"], t["denoised"]),
        "to_denoised_scalar": to_denoised(t["sample"], t["velocity_in"], t["sigma"]),
        "to_denoised_timesteps": to_denoised(t["sample"], t["velocity_in"], t["timesteps"]),
        "post_process_latent": post_process_latent(t["denoised"], t["mask"], t["sample"]),
        "rms_norm": rms_norm(t["sample"]),
        "rms_norm_weight_eps": rms_norm(t["sample"], t["rms_weight"], 1e-3),
    }
    for name, got in results.items():
        yield _near(name, got, t[name])


def _noiser(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    positions = torch.zeros(1, 3, t["latent"].shape[1], 2)
    state = LatentState(t["latent"], t["mask"], positions, clean_latent=t["latent"])
    noiser = GaussianNoiser(torch.Generator().manual_seed(case["seed"]))
    for name in ("out_first", "out_second"):
        yield _near(name, noiser(state, case["noise_scale"]).latent, t[name])


def _guiders(golden: Golden) -> Iterator[Check]:
    case, group = golden.case, golden.case["id"].split(".")[0]
    inputs = {n: golden.shared[f"{group}.{n}"] for n in ("cond", "uncond", "perturbed", "modality")}
    if case["cls"] == "MultiModalGuider":
        guider = MultiModalGuider(MultiModalGuiderParams(**case["params"]))
        zeros = guider.calculate(inputs["cond"], 0.0, 0.0, 0.0)
        yield _near("calculate", guider.calculate(*inputs.values()), golden.shared[case["id"]])
        yield _near("zeros", zeros, golden.shared[case["id"] + ".zeros"])
        for flag in ("unconditional", "perturbed", "isolated_modality"):
            yield equal(flag, getattr(guider, f"do_{flag}_generation")(), case[f"do_{flag}_generation"])
        return
    single = getattr(guiders, case["cls"])(**case["kwargs"])
    yield equal("enabled", single.enabled(), case["enabled"])
    if "successive" in case["call"]:
        for i, name in enumerate(("uncond", "perturbed", "modality")):
            yield _near(f"call{i}", single.delta(inputs["cond"], inputs[name]), golden.tensors[f"call{i}"])
        return
    names = re.match(r"delta\((\w+), (\w+)\)", case["call"])
    assert names is not None, case["call"]
    yield _near("delta", single.delta(*(inputs[n] for n in names.groups())), golden.shared[case["id"]])
    coefficient = golden.shared.get(f"{group}.projection_coef")
    if coefficient is not None:
        got = guiders.projection_coef(inputs["cond"], inputs["uncond"])
        yield _near("projection_coef", got, coefficient)


def _steps(golden: Golden) -> Iterator[Check]:
    t, i, sigmas = golden.tensors, golden.case["step_index"], golden.shared["sigmas"]
    sample, denoised, noise, res2s = t["sample"], t["denoised"], t["noise"], diffusion_steps.Res2sDiffusionStep()
    wide, levels = (sample.double(), denoised.double()), t["per_token_sigmas"]
    with_zero = levels.clone()
    with_zero[1, 0, 2] = 0
    results = {
        "euler": diffusion_steps.EulerDiffusionStep().step(sample, denoised, sigmas, i),
        "res2s": res2s.step(sample, denoised, sigmas, i, noise.to(golden.dtype)),
        "res2s_f64": res2s.step(*wide, sigmas, i, noise),
        "res2s_per_token": res2s.step(*wide, levels, 0, noise),
        "res2s_per_token_one_zero": res2s.step(*wide, with_zero, 0, noise),
    }
    for name, got in results.items():
        yield _near(name, got, t[name])


def _v120_steps(golden: Golden) -> Iterator[Check]:
    t, case = golden.tensors, golden.case
    if "params" in case:
        guider = MultiModalGuider(MultiModalGuiderParams(**case["params"]))
        yield _near("out", guider.calculate(t["cond"], t["uncond"], t["perturbed"], t["modality"]), t["out"])
        return
    if "configs" in case:
        kinds = sorted(case["values"], key=case["values"].get)
        config, blocks = _config(case["configs"]), range(case["num_blocks"])
        masks = [[config.mask(PerturbationType[k], b).flatten() for b in blocks] for k in kinds]
        got = torch.stack([torch.stack(row) for row in masks])
        yield exact("block_masks", got, t["block_masks"])
        like = config.mask_like(PerturbationType.SKIP_A2V_CROSS_ATTN, 0, torch.zeros(3, 2, 2))
        yield exact("mask_a2v_block0", like, t["mask_a2v_block0"])
        return
    classes = {
        "ancestral": diffusion_steps.EulerAncestralDiffusionStep,
        "cfgpp": diffusion_steps.EulerCfgPpDiffusionStep,
    }
    given = (t["sample"], t["denoised"], golden.shared["sigmas"], case["step_index"])
    for name, want in t.items():
        if match := re.fullmatch(r"(ancestral|cfgpp)_eta([\d.]+)_s([\d.]+)", name):
            step = classes[match[1]](eta=float(match[2]), s_noise=float(match[3]))
            extra = {"uncond_denoised": t["uncond"]} if match[1] == "cfgpp" else {}
            yield _near(name, step.step(*given, noise=t["noise"], **extra), want)
        elif match := re.fullmatch(r"res2s_eta([\d.]+)", name):
            wide = [x.double() for x in (t["sample"], t["denoised"])]
            step = diffusion_steps.Res2sDiffusionStep()
            yield _near(name, step.step(*wide, *given[2:], t["noise"].double(), eta=float(match[1])), want)


def _sde(t: Mapping[str, torch.Tensor]) -> Iterator[Check]:
    for name in sorted({key.split(".")[1] for key in t if key.startswith("sde.")} - {"sigma_next"}):
        start = f"sde.{name}."
        given = {
            key.removeprefix(start): value.clone()
            for key, value in t.items()
            if key.startswith(start) and ".out_" not in key
        }
        got = diffusion_steps.Res2sDiffusionStep().get_sde_coeff(t["sde.sigma_next"], **given)
        for field, value in zip(("alpha_ratio", "sigma_down", "sigma_up"), got):
            yield _near(f"{name}.{field}", value, t[f"{start}out_{field}"])


def _config(samples: list) -> BatchedPerturbationConfig:
    return BatchedPerturbationConfig(
        [
            PerturbationConfig(s and [Perturbation(PerturbationType[p["type"]], p["blocks"]) for p in s])
            for s in samples
        ]
    )


def _perturbations(file: dict[str, Any]) -> Iterator[Check]:
    config = _config(file["configs"])
    for case in file["cases"]:
        kind, block = PerturbationType[case["type"]], case["block"]
        name = f"{case['type']} {block}"
        yield equal(f"{name} mask", config.mask(kind, block).tolist(), case["mask"])
        yield equal(f"{name} any", config.any_in_batch(kind, block), case["any"])
        yield equal(f"{name} all", config.all_in_batch(kind, block), case["all"])
    like = config.mask_like(PerturbationType.SKIP_VIDEO_SELF_ATTN, 0, torch.zeros(len(file["configs"]), 2, 3))
    yield equal("mask_like", list(like.shape), file["mask_like_shape"])
    empty = [BatchedPerturbationConfig.empty(2).any_in_batch(kind, 0) for kind in PerturbationType]
    yield equal("empty", empty, file["empty2_any"])


# -- states ----------------------------------------------------------------------------------------------


def _tools(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if case["kind"] == "video":
        tools: Any = _video_tools(case["shape"], case["fps"])
    else:
        tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(*case["shape"]))
    state = tools.create_initial_state(CPU, golden.dtype, t.get("initial_latent"))
    yield from _same_state("state", state, t)
    yield from _same_state("unpatchified", tools.unpatchify(state), t)


def _tools_nocausal(t: Mapping[str, torch.Tensor]) -> Iterator[Check]:
    tools = replace(_video_tools((1, 2, 3, 2, 2), 24.0), causal_fix=False)
    got = tools.create_initial_state(CPU, torch.float32).positions
    yield near_abs("positions", got, t["v_nocausal.positions"], 1e-6)


def _video_tools(shape: Iterable[int], fps: float) -> VideoLatentTools:
    return VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(*shape), fps)


def _conditioning(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if "items" in case:
        items = [_item(t, i, item) for i, item in enumerate(case["items"])]
        yield from _conditioned(golden, items, {"noised_latent": 1.0}, "noised_latent")
    elif "num_noisy_tokens" in case:
        yield from _masks(case, t)
    elif "latent_shape" in case:
        mask = t["mask_x8_uint8"].float() / 8
        yield _near("latent_mask", downsample_mask(mask, tuple(case["latent_shape"][2:])), t["latent_mask"])
    elif case.get("kind") == "audio temporal_region":
        tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape(1, 2, case["frames"], 2))
        item = TemporalRegionMask(case["start_time"], case["end_time"], 24.0)
        state = item.apply_to(tools.create_initial_state(CPU, torch.float32), tools)
        yield from _same_state("", state, {f".{name}": tensor for name, tensor in t.items()})
    else:
        raise ValueError(f"unknown kind of case: {case}")


def _item(t: Mapping[str, torch.Tensor], i: int, spec: dict[str, Any]) -> ConditioningItem:
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
    tools = _video_tools(case["target_shape"], case["fps"])
    state = tools.create_initial_state(CPU, golden.dtype, t["initial_latent"])
    for item in items:
        state = item.apply_to(state, tools)
    yield from _same_state("out", state, t)
    yield equal("attention_mask", state.attention_mask is None, "out.attention_mask" not in t)
    states = {}
    for name, scale in noised.items():
        noiser = GaussianNoiser(torch.Generator().manual_seed(case["noiser_seed"]))
        states[name] = noiser(state, scale)
        yield _near(name, states[name].latent, t[name])
    yield from _same_state("cleared", tools.clear_conditioning(states[cleared_from]), t)
    layout = state.generated_keyframe_layout
    if "layout" in case:
        got = layout and {**vars(layout), "pixel_frame_indices": list(layout.pixel_frame_indices)}
        yield equal("layout", got, case["layout"])


def _masks(case: dict[str, Any], t: Mapping[str, torch.Tensor]) -> Iterator[Check]:
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


def _v120_states(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    latents = [t[f"item_latent{k}"] for k in range(len(t)) if f"item_latent{k}" in t]
    if case["id"] == "audio_ref":
        shape = AudioLatentShape(*case["audio_shape"])
        tools = AudioLatentTools(AudioPatchifier(1), shape)
        item = AudioConditionByReferenceLatent(t["tokens"], t["positions"], case["strength"])
        yield from _same_state("out", item.apply_to(tools.create_initial_state(CPU, torch.float32), tools), t)
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


def _timesteps(t: Mapping[str, torch.Tensor]) -> Iterator[Check]:
    mask, sigma = t["timesteps.mask"], t["timesteps.sigma_1d"]
    yield _near("out", timesteps_from_mask(mask, sigma), t["timesteps.out"])
    yield _near("out_f64", timesteps_from_mask(mask, sigma.double()), t["timesteps.out_f64"])


# -- sampling --------------------------------------------------------------------------------------------


def _loops(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if "what" in case:
        generator = torch.Generator().manual_seed(case["seed"])
        for name in ("first", "second"):
            yield _near(name, normalized_noise(torch.empty(case["shape"]), generator), t[name])
        return
    denoise = AnalyticDenoiser(golden.file["denoiser"], golden.shared)
    loop, stepper = LOOPS[case["loop"]]
    kwargs = dict(case["kwargs"])
    if case["model_dtype"] is not None:
        kwargs["model_dtype"] = getattr(torch, case["model_dtype"])
    video, audio = loop(t["sigmas"], golden.state("video_in"), golden.state("audio_in"), stepper(), denoise, **kwargs)
    yield _near("video_out", video.latent, t["video_out"], loop=True)
    yield _near("audio_out", audio.latent, t["audio_out"], loop=True)
    yield equal("calls", len(denoise.calls), len(case["denoiser_calls"]))
    for i, (got, want) in enumerate(zip(denoise.calls, case["denoiser_calls"])):
        yield equal(f"call {i}", {**got, "sigma": round(got["sigma"], 6)}, {**want, "sigma": round(want["sigma"], 6)})


def _denoise_funcs(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    stub = StubTransformer(golden.file["stub"], golden.shared)
    function, calls = _denoising_func(golden, stub), []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(function(*args, **kwargs))
        return calls[-1]

    loop, stepper = LOOPS[case["loop"]]
    kwargs = {"model_dtype": golden.dtype} if case["loop"] == "res2s" else {}
    video, audio = loop(t["sigmas"], golden.state("video_in"), golden.state("audio_in"), stepper(), recorded, **kwargs)
    yield equal("calls", len(calls), len(case["calls"]))
    for k, pair in enumerate(calls):
        for stream, got in zip(("video", "audio"), pair):
            name = f"call{k}.denoised_{stream}"
            yield _near(name, got, t[name], loop=True)
    yield _near("video_out", video.latent, t["video_out"], loop=True)
    yield _near("audio_out", audio.latent, t["audio_out"], loop=True)


def _context(golden: Golden, name: str, dtype: torch.dtype) -> torch.Tensor:
    return golden.shared[f"context.{name}"].to(dtype)


def _denoising_func(golden: Golden, stub: StubTransformer) -> Callable[..., Any]:
    case = golden.case
    v, vn, a, an = (_context(golden, n, golden.dtype) for n in ("v_pos", "v_neg", "a_pos", "a_neg"))
    video, audio = case["video_params"], case["audio_params"]
    match case["func"]:
        case "simple":
            return simple_denoising_func(v, a, stub)
        case "guider_cfg" | "guider_cfg_off":
            return guider_denoising_func(guiders.CFGGuider(**video), v, vn, a, an, stub)
        case "guider_apg":
            return guider_denoising_func(guiders.LtxAPGGuider(**video), v, vn, a, an, stub)
        case "mm":
            pair = (_guider(video, vn), _guider(audio, an))
            return multi_modal_guider_denoising_func(*pair, v, a, stub)
        case "mm_factory" | "mm_factory_shared":
            pair = (_factory(video, vn), None if audio is None else _factory(audio, an))
            return multi_modal_guider_factory_denoising_func(*pair, v, a, stub)
    raise ValueError(f"unknown function {case['func']!r}")


def _guider(params: dict | None, negative: torch.Tensor) -> MultiModalGuider | None:
    return None if params is None else MultiModalGuider(MultiModalGuiderParams(**params), negative)


def _factory(params: dict | None, negative: torch.Tensor) -> MultiModalGuiderFactory | None:
    if params is None:
        return None
    bins = {float(sigma): MultiModalGuiderParams(**p) for sigma, p in params.items()}
    return MultiModalGuiderFactory.from_dict(bins, negative)


def _v120_loops(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    v, vn, a, an = (_context(golden, n, golden.dtype) for n in ("v_pos", "v_neg", "a_pos", "a_neg"))
    video, audio = case["video_params"], case["audio_params"]
    makers: dict[str, Callable[[], Any]] = {
        "simple": lambda: SimpleDenoiser(v, a),
        "guided": lambda: GuidedDenoiser(v, a, _guider(video, vn), _guider(audio, an)),
        "guided_force": lambda: GuidedDenoiser(v, a, _guider(video, vn), _guider(audio, an), force_uncond_pass=True),
        "factory": lambda: FactoryGuidedDenoiser(v, a, _factory(video, vn), _factory(audio, an)),
    }
    loop, stepper = LOOPS[case["loop"]]
    kwargs = dict(case["kwargs"])
    own = () if case["loop"] == "res2s" else ("eta", "s_noise")
    step = stepper(**{name: kwargs.pop(name) for name in own if name in kwargs})
    if case["loop"] not in ("euler", "ge"):
        kwargs["model_dtype"] = getattr(torch, case["model_dtype"])
    states = [golden.state(f"{s}_in") if f"{s}_in.latent" in t else None for s in ("video", "audio")]
    if case["mode"] == "av_frozen_audio":
        states[1] = freeze(states[1])
    stub = StubTransformer(golden.file["stub"], golden.shared)
    results = loop(t["sigmas"], *states, step, stub, makers[case["denoiser"]](), **kwargs)
    for stream, got in zip(("video", "audio"), results):
        want = t.get(f"{stream}_out")
        yield equal(f"{stream} absent", got is None, want is None)
        if got is not None and want is not None:
            yield _near(f"{stream}_out", got.latent, want, loop=True)


def _end_to_end(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    shape = VideoPixelShape(**case["pixel_shape"])
    items = {
        "i2v": lambda: VideoConditionByLatentIndex(t["image_latent"], 1.0, 0),
        "kf": lambda: VideoConditionByKeyframeIndex(t["image_latent"], shape.frames - 1, 0.9),
    }
    scale = t["sigmas"][0] if case["noise_scale"] == "sigmas[0]" else case["noise_scale"]
    contexts = (_context(golden, n, golden.dtype) for n in ("v_pos", "a_pos"))
    denoise = simple_denoising_func(*contexts, StubTransformer(golden.file["stub"], golden.shared))
    start: list[LatentState] = []

    def loop(sigmas: torch.Tensor, video: Any, audio: Any, stepper: Any) -> Any:
        start.extend((video, audio))
        return samplers.euler_denoising_loop(sigmas, video, audio, stepper, denoise)

    function = {"denoise_audio_video": denoise_audio_video, "denoise_video_only": denoise_video_only}[case["func"]]
    results = function(
        output_shape=shape,
        conditionings=[items[name]() for name in case["conditionings"]],
        noiser=GaussianNoiser(torch.Generator().manual_seed(case["seed"])),
        sigmas=t["sigmas"],
        stepper=diffusion_steps.EulerDiffusionStep(),
        denoising_loop_fn=loop,
        components=PipelineComponents(golden.dtype, CPU),
        dtype=golden.dtype,
        device=CPU,
        noise_scale=scale,
        initial_video_latent=t.get("initial_video_latent"),
        initial_audio_latent=t.get("initial_audio_latent"),
    )
    for stream, state in zip(("video", "audio"), start):
        yield _near(f"noised_{stream}", state.latent, t[f"noised_{stream}"])
        yield near_abs(f"{stream}_positions", state.positions, t[f"{stream}_positions"], 1e-6)
    for stream, state in zip(("video", "audio"), (results,) if isinstance(results, LatentState) else results):
        yield _near(f"{stream}_out", state.latent, t[f"{stream}_out"], loop=True)


FILES: dict[str, Callable[..., Iterable[Check]]] = {
    "types": _types,
    "schedulers": _schedulers,
    "patchifiers": _patchifiers,
    "utils": _utils,
    "noiser": _noiser,
    "guiders": _guiders,
    "steps": _steps,
    "tools": _tools,
    "conditioning": _conditioning,
    "perturbations": _perturbations,
    "loops": _loops,
    "denoise_funcs": _denoise_funcs,
    "end_to_end": _end_to_end,
    "v120_states": _v120_states,
    "v120_steps": _v120_steps,
    "v120_loops": _v120_loops,
}
