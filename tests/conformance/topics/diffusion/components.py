"""Cases on single components: shapes, schedules, patchifiers, noise, guidance, steps, perturbations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from ltx_core.components import diffusion_steps, schedulers
from ltx_core.components import guiders as guider_classes
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords
from ltx_core.guidance import BatchedPerturbationConfig, PerturbationType
from ltx_core.types import (
    AudioLatentShape,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)
from ltx_core.utils import rms_norm, to_denoised, to_velocity
from ltx_pipelines.utils.states import post_process_latent, timesteps_from_mask
from tests.conformance.harness import Check, equal, exact, near_abs
from tests.conformance.topics.diffusion.common import Golden, Tensors, near, perturbation_config


def types(golden: Golden) -> Iterator[Check]:
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


def schedules(golden: Golden) -> Iterator[Check]:
    case = golden.case
    kwargs = dict(case["kwargs"])
    if case["latent_shape"] is not None:
        kwargs["latent"] = torch.empty(case["latent_shape"], device="meta")
    got = getattr(schedulers, case["scheduler"])().execute(**kwargs)
    yield near_abs("sigmas", got, golden.shared[case["id"]], 1e-6)
    yield equal("length", len(got), case["length"])
    yield equal("dtype", got.dtype, torch.float32)


def patchifiers(golden: Golden) -> Iterator[Check]:
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


def utils(golden: Golden) -> Iterator[Check]:
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
        yield near(name, got, t[name])


def noiser(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    positions = torch.zeros(1, 3, t["latent"].shape[1], 2)
    state = LatentState(t["latent"], t["mask"], positions, clean_latent=t["latent"])
    noiser = GaussianNoiser(torch.Generator().manual_seed(case["seed"]))
    for name in ("out_first", "out_second"):
        yield near(name, noiser(state, case["noise_scale"]).latent, t[name])


def guidance(golden: Golden) -> Iterator[Check]:
    case, group = golden.case, golden.case["id"].split(".")[0]
    inputs = {n: golden.shared[f"{group}.{n}"] for n in ("cond", "uncond", "perturbed", "modality")}
    if case["cls"] == "MultiModalGuider":
        guider = MultiModalGuider(MultiModalGuiderParams(**case["params"]))
        zeros = guider.calculate(inputs["cond"], 0.0, 0.0, 0.0)
        yield near("calculate", guider.calculate(*inputs.values()), golden.shared[case["id"]])
        yield near("zeros", zeros, golden.shared[case["id"] + ".zeros"])
        for flag in ("unconditional", "perturbed", "isolated_modality"):
            yield equal(flag, getattr(guider, f"do_{flag}_generation")(), case[f"do_{flag}_generation"])
        return
    single = getattr(guider_classes, case["cls"])(**case["kwargs"])
    yield equal("enabled", single.enabled(), case["enabled"])
    if "successive" in case["call"]:
        for i, name in enumerate(("uncond", "perturbed", "modality")):
            yield near(f"call{i}", single.delta(inputs["cond"], inputs[name]), golden.tensors[f"call{i}"])
        return
    names = re.match(r"delta\((\w+), (\w+)\)", case["call"])
    assert names is not None, case["call"]
    yield near("delta", single.delta(*(inputs[n] for n in names.groups())), golden.shared[case["id"]])
    coefficient = golden.shared.get(f"{group}.projection_coef")
    if coefficient is not None:
        got = guider_classes.projection_coef(inputs["cond"], inputs["uncond"])
        yield near("projection_coef", got, coefficient)


def steps(golden: Golden) -> Iterator[Check]:
    t, i, sigmas = golden.tensors, golden.case["step_index"], golden.shared["sigmas"]
    sample, denoised, noise, res2s = (
        t["sample"],
        t["denoised"],
        t["noise"],
        diffusion_steps.Res2sDiffusionStep(),
    )
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
        yield near(name, got, t[name])


def v120_steps(golden: Golden) -> Iterator[Check]:
    t, case = golden.tensors, golden.case
    if "params" in case:
        guider = MultiModalGuider(MultiModalGuiderParams(**case["params"]))
        yield near("out", guider.calculate(t["cond"], t["uncond"], t["perturbed"], t["modality"]), t["out"])
        return
    if "configs" in case:
        kinds = sorted(case["values"], key=case["values"].get)
        config, blocks = perturbation_config(case["configs"]), range(case["num_blocks"])
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
            yield near(name, step.step(*given, noise=t["noise"], **extra), want)
        elif match := re.fullmatch(r"res2s_eta([\d.]+)", name):
            wide = [x.double() for x in (t["sample"], t["denoised"])]
            step = diffusion_steps.Res2sDiffusionStep()
            yield near(name, step.step(*wide, *given[2:], t["noise"].double(), eta=float(match[1])), want)


def sde_coefficients(t: Tensors) -> Iterator[Check]:
    for name in sorted({key.split(".")[1] for key in t if key.startswith("sde.")} - {"sigma_next"}):
        start = f"sde.{name}."
        given = {
            key.removeprefix(start): value.clone()
            for key, value in t.items()
            if key.startswith(start) and ".out_" not in key
        }
        got = diffusion_steps.Res2sDiffusionStep().get_sde_coeff(t["sde.sigma_next"], **given)
        for field, value in zip(("alpha_ratio", "sigma_down", "sigma_up"), got):
            yield near(f"{name}.{field}", value, t[f"{start}out_{field}"])


def perturbations(file: dict[str, Any]) -> Iterator[Check]:
    config = perturbation_config(file["configs"])
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
