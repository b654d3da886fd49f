"""Cases on loops and denoising functions, with analytic models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ltx_core.components import diffusion_steps
from ltx_core.components.guiders import (
    CFGGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
)
from ltx_core.components.noisers import GaussianNoiser
from ltx_core.conditioning import VideoConditionByKeyframeIndex, VideoConditionByLatentIndex
from ltx_core.types import LatentState, VideoPixelShape
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
from ltx_pipelines.utils.res2s import normalized_noise
from ltx_pipelines.utils.states import denoise_audio_video, denoise_video_only, freeze
from ltx_pipelines.utils.types import PipelineComponents
from tests.conformance.harness import Check, equal, near_abs
from tests.conformance.topics.diffusion.common import CPU, Golden, near, state_from
from tests.conformance.topics.diffusion.stubs import AnalyticDenoiser, StubTransformer

LOOPS = {
    "euler": (samplers.euler_denoising_loop, diffusion_steps.EulerDiffusionStep),
    "ge": (samplers.gradient_estimating_euler_denoising_loop, diffusion_steps.EulerDiffusionStep),
    "res2s": (samplers.res2s_audio_video_denoising_loop, diffusion_steps.Res2sDiffusionStep),
    "ancestral": (samplers.euler_ancestral_denoising_loop, diffusion_steps.EulerAncestralDiffusionStep),
    "cfgpp": (samplers.euler_cfg_pp_denoising_loop, diffusion_steps.EulerCfgPpDiffusionStep),
}


def loops(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    if "what" in case:
        generator = torch.Generator().manual_seed(case["seed"])
        for name in ("first", "second"):
            yield near(name, normalized_noise(torch.empty(case["shape"]), generator), t[name])
        return
    denoise = AnalyticDenoiser(golden.file["denoiser"], golden.shared)
    loop, stepper = LOOPS[case["loop"]]
    kwargs = dict(case["kwargs"])
    if case["model_dtype"] is not None:
        kwargs["model_dtype"] = getattr(torch, case["model_dtype"])
    video, audio = loop(
        t["sigmas"], state_from(t, "video_in"), state_from(t, "audio_in"), stepper(), denoise, **kwargs
    )
    yield near("video_out", video.latent, t["video_out"], loop=True)
    yield near("audio_out", audio.latent, t["audio_out"], loop=True)
    yield equal("calls", len(denoise.calls), len(case["denoiser_calls"]))
    for i, (got, want) in enumerate(zip(denoise.calls, case["denoiser_calls"])):
        level = want["sigma"] if math.isclose(got["sigma"], want["sigma"], rel_tol=1e-6) else got["sigma"]
        yield equal(f"call {i}", {**got, "sigma": level}, want)


def denoise_funcs(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    stub = StubTransformer(golden.file["stub"], golden.shared)
    function, calls = _denoising_func(golden, stub), []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append(function(*args, **kwargs))
        return calls[-1]

    loop, stepper = LOOPS[case["loop"]]
    kwargs = {"model_dtype": golden.dtype} if case["loop"] == "res2s" else {}
    video, audio = loop(
        t["sigmas"], state_from(t, "video_in"), state_from(t, "audio_in"), stepper(), recorded, **kwargs
    )
    yield equal("calls", len(calls), len(case["calls"]))
    for k, pair in enumerate(calls):
        for stream, got in zip(("video", "audio"), pair):
            name = f"call{k}.denoised_{stream}"
            yield near(name, got, t[name], loop=True)
    yield near("video_out", video.latent, t["video_out"], loop=True)
    yield near("audio_out", audio.latent, t["audio_out"], loop=True)


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
            return guider_denoising_func(CFGGuider(**video), v, vn, a, an, stub)
        case "guider_apg":
            return guider_denoising_func(LtxAPGGuider(**video), v, vn, a, an, stub)
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


def v120_loops(golden: Golden) -> Iterator[Check]:
    case, t = golden.case, golden.tensors
    v, vn, a, an = (_context(golden, n, golden.dtype) for n in ("v_pos", "v_neg", "a_pos", "a_neg"))
    video, audio = case["video_params"], case["audio_params"]
    makers: dict[str, Callable[[], Any]] = {
        "simple": lambda: SimpleDenoiser(v, a),
        "guided": lambda: GuidedDenoiser(v, a, _guider(video, vn), _guider(audio, an)),
        "guided_force": lambda: GuidedDenoiser(
            v, a, _guider(video, vn), _guider(audio, an), force_uncond_pass=True
        ),
        "factory": lambda: FactoryGuidedDenoiser(v, a, _factory(video, vn), _factory(audio, an)),
    }
    loop, stepper = LOOPS[case["loop"]]
    kwargs = dict(case["kwargs"])
    own = () if case["loop"] == "res2s" else ("eta", "s_noise")
    step = stepper(**{name: kwargs.pop(name) for name in own if name in kwargs})
    if case["loop"] not in ("euler", "ge"):
        kwargs["model_dtype"] = getattr(torch, case["model_dtype"])
    states = [state_from(t, f"{s}_in") for s in ("video", "audio")]
    if case["mode"] == "av_frozen_audio":
        states[1] = freeze(states[1])
    stub = StubTransformer(golden.file["stub"], golden.shared)
    results = loop(t["sigmas"], *states, step, stub, makers[case["denoiser"]](), **kwargs)
    for stream, got in zip(("video", "audio"), results):
        want = t.get(f"{stream}_out")
        yield equal(f"{stream} absent", got is None, want is None)
        if got is not None and want is not None:
            yield near(f"{stream}_out", got.latent, want, loop=True)


def end_to_end(golden: Golden) -> Iterator[Check]:
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

    function = {"denoise_audio_video": denoise_audio_video, "denoise_video_only": denoise_video_only}[
        case["func"]
    ]
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
        yield near(f"noised_{stream}", state.latent, t[f"noised_{stream}"])
        yield near_abs(f"{stream}_positions", state.positions, t[f"{stream}_positions"], 1e-6)
    for stream, state in zip(("video", "audio"), (results,) if isinstance(results, LatentState) else results):
        yield near(f"{stream}_out", state.latent, t[f"{stream}_out"], loop=True)
