"""Retake: regenerate a time window of a clip, picture or sound or both, and keep the rest."""

from dataclasses import replace
from pathlib import Path

from ltx_core.conditioning import TemporalRegionMask
from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Window
from ltx_pipelines.generate import Generated
from ltx_pipelines.media.video import fitted_clip
from ltx_pipelines.pipeline import (
    Device,
    LoraArgument,
    Options,
    PathArgument,
    Pipeline,
    Run,
    Unpack,
)
from ltx_pipelines.recipe import (
    GuiderArgument,
    Recipe,
    Request,
    Source,
    Stage,
    Start,
    Stream,
    distilled_sigmas,
    scheduled_sigmas,
)
from ltx_pipelines.utils.constants import PipelineParams
from ltx_pipelines.utils.validation import check_file, check_window, number, random_seed, whole_number

__all__ = ["RetakePipeline", "TemporalRegionMask"]


class RetakePipeline(Pipeline):
    """One stage at the clip's own size, from its encoded picture and sound, denoised inside a time window.

    With the full model and guidance, or with the distilled model (`distilled=True`, here or in the call) in
    eight steps.
    """

    stages = 1

    def __init__(
        self,
        checkpoint_path: PathArgument = None,
        gemma_root: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        *,
        distilled: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(checkpoint_path, gemma_root, None, loras, device, quantization, **options)
        self.distilled = distilled

    def __call__(
        self,
        video_path: str | Path,
        prompt: str,
        start_time: float,
        end_time: float,
        seed: int | None = None,
        *,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        video_guider_params: GuiderArgument | None = None,
        audio_guider_params: GuiderArgument | None = None,
        regenerate_video: bool = True,
        regenerate_audio: bool = True,
        enhance_prompt: bool = False,
        distilled: bool | None = None,
        fit: str | None = None,
        keep_original: bool = False,
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        **run: Unpack[Run],
    ) -> Generated:
        """Regenerate `video_path` between `start_time` and `end_time` (seconds) after `prompt`.

        The clip has 8k + 1 frames and sides that are multiples of 32. regenerate_video, regenerate_audio:
        False keeps that stream whole. A clip without sound gets generated sound all along. fit: "trim",
        "crop" or "pad" makes a clip fit that does not. keep_original: outside of the window give the clip's own
        frames and sound, not what is decoded of their latents.
        seed: negative draws a random one. See `GuidedPipeline.__call__` for the rest.
        """
        distilled = self.distilled if distilled is None else distilled
        check_file(video_path)
        clip = fitted_clip(video_path, fit)
        start, end = number("start_time", start_time), number("end_time", end_time)
        check_window(start, end, clip.duration)
        guided = self.guided(negative_prompt, num_inference_steps, video_guider_params, audio_guider_params)
        given = self.params.seed if seed is None else whole_number("seed", seed)
        drawn = random_seed() if given < 0 else given
        size = (drawn, clip.height, clip.width, clip.frames, clip.fps)
        request = self.request(prompt, run, *size, tiling=tiling_config, **({} if distilled else guided))
        request = request.enhanced(enhance_prompt)
        source = Source(video_path=str(video_path), clip=clip, fit=fit, put_back=keep_original)
        window = (Window(start, end),)
        video = Stream(Start.SOURCE, window, frozen=not regenerate_video)
        audio = Stream(Start.SOURCE, window, frozen=not regenerate_audio)
        return self.run(self.recipe(request, source, video, audio), run)

    @property
    def params(self) -> PipelineParams:
        """The checkpoint's guidance with the official 40 steps, whatever its version."""
        return self.engine.embedded_params or replace(super().params, num_inference_steps=40)

    def recipe(self, request: Request, source: Source, video: Stream, audio: Stream) -> Recipe:
        distilled = request.guidance is None
        stage = Stage(
            shape=request.first_shape,
            sigmas=distilled_sigmas() if distilled else scheduled_sigmas(request.num_inference_steps),
            video=video,
            audio=audio,
            loras=(self.engine.distillation if distilled else ()) + self.loras,
            guidance=request.guidance,
            sampler=request.sampler,
        )
        return request.recipe(stage, source=source)


main = entry_point("retake")

if __name__ == "__main__":
    raise SystemExit(main())
