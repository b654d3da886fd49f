"""Text or image to video in one guided stage at full size."""

from collections.abc import Sequence

from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.generate import Generated
from ltx_pipelines.pipeline import (
    Device,
    GuidedPipeline,
    LoraArgument,
    Options,
    PathArgument,
    Run,
    Unpack,
)
from ltx_pipelines.recipe import GuiderArgument, Recipe, Request, guided_stage
from ltx_pipelines.utils.args import ImageConditioningInput


class TI2VidOneStagePipeline(GuidedPipeline):
    """Denoises at the final size with multimodal guidance: no upsampler, no distilled LoRA.

    Sides are multiples of 32. The call is `GuidedPipeline.__call__`.
    """

    stages = 1

    def __init__(
        self,
        checkpoint_path: PathArgument = None,
        gemma_root: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(checkpoint_path, gemma_root, None, loras, device, quantization, **options)

    def __call__(  # type: ignore[override]
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
        enhance_prompt: bool = False,
        *,
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        **run: Unpack[Run],
    ) -> Generated:
        """`GuidedPipeline.__call__` with the official order of arguments, which knows no tiling here."""
        size = (seed, height, width, num_frames, frame_rate)
        guidance = (num_inference_steps, video_guider_params, audio_guider_params)
        return super().__call__(
            prompt, negative_prompt, *size, *guidance, images, tiling_config, enhance_prompt, **run
        )

    def recipe(self, request: Request) -> Recipe:
        return request.recipe(guided_stage(request, Images(request.images), self.loras))


main = entry_point("ti2vid_one_stage")

if __name__ == "__main__":
    raise SystemExit(main())
