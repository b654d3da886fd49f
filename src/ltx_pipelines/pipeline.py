"""What the eight pipeline classes share: an engine made from their arguments, and the edges of a call."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from typing_extensions import TypedDict, Unpack

from ltx_core.errors import InputError
from ltx_core.loader import LoraPathStrengthAndSDOps
from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines import sampling
from ltx_pipelines.engine import Engine
from ltx_pipelines.events import Callback
from ltx_pipelines.generate import Generated, generate
from ltx_pipelines.recipe import Guidance, GuiderArgument, Loras, Recipe, Request
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import PipelineParams
from ltx_pipelines.utils.loras import as_loras
from ltx_pipelines.utils.model_paths import ModelPaths
from ltx_pipelines.utils.validation import check_kind, check_output_path, whole_number

log = logging.getLogger(__name__)

PathArgument = str | Path | None
Device = torch.device | str | None
LoraArgument = Iterable[LoraPathStrengthAndSDOps | tuple | str]


class Options(TypedDict, total=False):
    """Keywords that every pipeline's constructor takes beside the official ones.

    dtype: of all models and latents; bfloat16 on a GPU, float32 on a CPU, unless given.
    model_paths: a `ModelPaths` in place of checkpoint_path and gemma_root.
    engine: share another pipeline's engine (its weights stay loaded) instead of making one.
    offload: "none", "cpu" or "disk": where blocks wait while they are not computing; by the memory if None.
    attention: the transformer's attention kernel, such as "flash_attention_3" or "sage"; if None the quickest exact
    one that is installed. compile: True, or a dict of options of `torch.compile`, to compile its blocks.
    max_batch_size: passes of a guided step computed at once; if None all where there are few tokens, else one.
    fuse_loras: False computes LoRAs beside the weights, which switches sets at once and needs no second copy of
    weights; each step takes longer, and numbers differ as fused weights are rounded.
    """

    dtype: torch.dtype | None
    model_paths: ModelPaths | None
    engine: Engine | None
    offload: str | None
    attention: str | None
    compile: bool | Mapping[str, Any] | None
    max_batch_size: int | None
    fuse_loras: bool


class Run(TypedDict, total=False):
    """Keywords that every pipeline's call takes beside the official ones.

    output_path: write the result there as an MP4. callback: told of every stage and step; returning False
    cancels. sampler: "euler", "gradient-estimation" (with ge_gamma), "res2s" or "euler-ancestral". denoising_loop:
    your own loop with the signature of `euler_denoising_loop`, in place of a named sampler. settings: JSON to keep
    in the file. dry_run: only return the `Recipe`, and load nothing.
    """

    output_path: PathArgument
    callback: Callback | None
    sampler: str | None
    ge_gamma: float
    denoising_loop: Callable[..., Any] | None
    settings: str | None
    dry_run: bool


def check_keywords(given: Mapping[str, Any], known: type, taker: Callable[..., Any]) -> None:
    """Raise TypeError for a keyword that is not one of the TypedDict `known`, as Python does for functions."""
    names = inspect.get_annotations(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, [*inspect.signature(taker).parameters, *names], 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(names)} besides."
            raise TypeError(f"{taker.__qualname__}() got an unexpected keyword argument {name!r}{hint}")


class Pipeline:
    """Base of all pipelines. It owns no weights: they are the engine's, which pipelines may share.

    fixed_params: defaults for checkpoints of every version that bring none; None for those of the version.
    """

    stages: ClassVar[int] = 2
    sampler: ClassVar[str] = "euler"
    fixed_params: ClassVar[PipelineParams | None] = None

    def __init__(
        self,
        checkpoint_path: PathArgument = None,
        gemma_root: PathArgument = None,
        spatial_upsampler_path: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        **options: Unpack[Options],
    ) -> None:
        check_keywords(options, Options, type(self))
        shared, paths = options.get("engine"), options.get("model_paths")
        check_kind("engine", shared, (Engine, type(None)), "another pipeline's engine")
        check_kind("model_paths", paths, (ModelPaths, type(None)), "a ModelPaths")
        own = (checkpoint_path, gemma_root, spatial_upsampler_path, device, quantization)
        if shared is not None and (any(value is not None for value in own) or len(options) > 1):
            raise InputError(
                "With engine= the files, device, dtype and how it computes are the engine's; leave them out."
            )
        if paths is not None and (checkpoint_path is not None or gemma_root is not None):
            raise InputError("model_paths names the model's files; leave checkpoint_path and gemma_root out.")
        self.loras: Loras = as_loras(loras)
        self.engine = shared or Engine.open(
            paths or ModelPaths.from_arguments(checkpoint_path=checkpoint_path, gemma_root=gemma_root),
            spatial_upsampler_path=spatial_upsampler_path,
            device=device,
            dtype=options.get("dtype"),
            quantization=quantization,
            offload=options.get("offload"),
            attention=options.get("attention"),
            compile=options.get("compile"),
            max_batch_size=options.get("max_batch_size"),
            fuse_loras=options.get("fuse_loras", True),
        )

    def __call__(self, *arguments: Any, **keywords: Any) -> Generated:
        """Generate; each pipeline says with which arguments."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def params(self) -> PipelineParams:
        """Default sizes, steps and guidance of the checkpoint in use."""
        if self.fixed_params is None:
            return self.engine.params
        return self.engine.embedded_params or self.fixed_params

    def request(
        self,
        prompt: str,
        run: Run,
        seed: int | None,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        frame_rate: float | None,
        images: Sequence[ImageConditioningInput] = (),
        tiling: TilingConfig | AutoTiling | None = AUTO_TILING,
        **more: Any,
    ) -> Request:
        """A checked request: what was not given (None) takes the checkpoint's default."""
        check_keywords(run, Run, type(self).__call__)
        for name in ("callback", "denoising_loop"):
            check_kind(name, run.get(name), (Callable, type(None)), "a function")  # type: ignore[arg-type]
        params = self.params
        given_seed = whole_number("seed", params.seed if seed is None else seed)
        default_height, default_width = params.sides(self.stages)
        return Request(
            prompt=prompt,
            seed=given_seed,
            height=default_height if height is None else height,
            width=default_width if width is None else width,
            num_frames=params.num_frames if num_frames is None else num_frames,
            frame_rate=params.frame_rate if frame_rate is None else frame_rate,
            images=images,
            image_crf=self.engine.params.default_image_crf,
            stages=self.stages,
            stage_2_sigmas=params.stage_2_sigmas,
            tiling=tiling,
            sampler=self._sampler(run, given_seed),
            **more,
        )

    def guided(
        self,
        negative_prompt: str | None,
        steps: int | None,
        video: GuiderArgument | None,
        audio: GuiderArgument | None,
    ) -> dict[str, Any]:
        """What a guided request has besides; None takes the default."""
        params = self.params
        return {
            "negative_prompt": params.negative_prompt if negative_prompt is None else negative_prompt,
            "num_inference_steps": params.num_inference_steps if steps is None else steps,
            "guidance": Guidance(video or params.video_guider_params, audio or params.audio_guider_params),
        }

    def run(self, recipe: Recipe, run: Run) -> Generated:
        """Generate, and write the file if `output_path` was given."""
        if run.get("dry_run"):
            return recipe  # type: ignore[return-value]
        self._warn_of_variant(recipe)
        callback, path = run.get("callback"), run.get("output_path")
        if path is not None:
            check_output_path(path)
            check_kind("settings", run.get("settings"), (str, type(None)), "JSON as a text")
        generated = generate(self.engine, recipe, callback)
        if path is not None:
            generated.save(path, callback, run.get("settings"))
        return generated

    @property
    def default_sampler(self) -> str:
        """The name of the sampler that a call uses unless it asks for another."""
        return self.sampler

    def _warn_of_variant(self, recipe: Recipe) -> None:
        variant = self.engine.variant
        if variant not in (None, recipe.variant):
            better = (
                "the distilled pipeline suits it" if variant == "distilled" else "a guided pipeline suits it"
            )
            log.warning(
                "By its name the checkpoint is a %s one, not %s: %s.", variant, recipe.variant, better
            )

    def _sampler(self, run: Run, seed: int) -> sampling.Sampler:
        if (loop := run.get("denoising_loop")) is not None:
            return sampling.custom(loop)
        name = run.get("sampler") or self.default_sampler
        return sampling.by_name(name, seed=seed, gamma=run.get("ge_gamma", 2.0))


class GuidedPipeline(Pipeline):
    """Base of the pipelines with multimodal guidance from text and images; they differ in their recipe."""

    def recipe(self, request: Request) -> Recipe:
        raise NotImplementedError

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float | None = None,
        num_inference_steps: int | None = None,
        video_guider_params: GuiderArgument | None = None,
        audio_guider_params: GuiderArgument | None = None,
        images: Sequence[ImageConditioningInput] = (),
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        enhance_prompt: bool = False,
        **run: Unpack[Run],
    ) -> Generated:
        """Generate a video with sound.

        negative_prompt: what to steer away from; None takes the checkpoint's default, "" none at all.
        height, width: of the result in pixels, multiples of 32 (one stage) or 64 (two stages).
        num_frames: 8k + 1. frame_rate: frames a second, fractions allowed.
        images: pictures to start from or to meet at later frames. tiling_config: None decodes in one piece.
        What is left out (None) takes the checkpoint's default.

        Returns `Generated`, which unpacks to (iterator of uint8 frames (f, height, width, 3), Audio).
        Raises InputError (a ValueError) for arguments that do not fit, Cancelled if the callback asked to stop.
        """
        guided = self.guided(negative_prompt, num_inference_steps, video_guider_params, audio_guider_params)
        size = (seed, height, width, num_frames, frame_rate)
        request = self.request(prompt, run, *size, images, tiling_config, **guided)
        return self.run(self.recipe(request.enhanced(enhance_prompt)), run)
