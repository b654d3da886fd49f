"""Text or image to video in two stages: guided at half size, upsampled, refined at full size."""

import logging

from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.pipeline import (
    Device,
    GuidedPipeline,
    LoraArgument,
    Options,
    PathArgument,
    Unpack,
)
from ltx_pipelines.recipe import AudioOutput, Recipe, Request, guided_stage, refinement
from ltx_pipelines.utils.loras import as_loras

log = logging.getLogger(__name__)


class TI2VidTwoStagesPipeline(GuidedPipeline):
    """The pipeline to start with. Sides are multiples of 64; the call is `GuidedPipeline.__call__`.

    Stage 1 denoises at half size with multimodal guidance. The latent upsampler doubles its sides. Stage 2
    refines in three unguided steps with the distilled LoRA. The sound is the first stage's.
    """

    def __init__(
        self,
        checkpoint_path: PathArgument = None,
        distilled_lora: LoraArgument = (),
        spatial_upsampler_path: PathArgument = None,
        gemma_root: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            checkpoint_path,
            gemma_root,
            spatial_upsampler_path,
            loras,
            device,
            quantization,
            **options,
        )
        self.distilled_lora = as_loras(distilled_lora, "distilled_lora") or self.engine.distillation
        if not self.distilled_lora:
            log.warning(
                "No distilled LoRA was given: stage 2 refines in a few unguided steps, which only a distilled model "
                "is made for. Pass distilled_lora (--distilled-lora)."
            )

    def recipe(self, request: Request) -> Recipe:
        images = Images(request.images)
        first = guided_stage(request, images, self.loras)
        second = refinement(request, first, images, self.loras + self.distilled_lora)
        return request.recipe(first, second, audio_output=AudioOutput.FIRST_STAGE)


main = entry_point("ti2vid_two_stages")

if __name__ == "__main__":
    raise SystemExit(main())
