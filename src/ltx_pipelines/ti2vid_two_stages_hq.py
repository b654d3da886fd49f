"""Two stages in high quality: second-order sampling, the distilled LoRA at a strength of its own in each."""

import torch

from ltx_core.quantization import QuantizationPolicy
from ltx_core.types import VideoLatentShape
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.pipeline import Device, LoraArgument, Options, PathArgument, Unpack
from ltx_pipelines.recipe import (
    AudioOutput,
    Loras,
    Recipe,
    Request,
    guided_stage,
    refinement,
    scheduled_sigmas,
)
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.utils.constants import LTX_2_3_HQ_PARAMS
from ltx_pipelines.utils.validation import finite


class TI2VidTwoStagesHQPipeline(TI2VidTwoStagesPipeline):
    """`TI2VidTwoStagesPipeline` with the res_2s sampler in both stages and a schedule shifted by the number
    of tokens. Only the first distilled LoRA is used; its strength is the stage's, not its own."""

    sampler = "res2s"
    fixed_params = LTX_2_3_HQ_PARAMS

    def __init__(
        self,
        checkpoint_path: PathArgument = None,
        distilled_lora: LoraArgument = (),
        distilled_lora_strength_stage_1: float = 0.25,
        distilled_lora_strength_stage_2: float = 0.5,
        spatial_upsampler_path: PathArgument = None,
        gemma_root: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            checkpoint_path,
            distilled_lora,
            spatial_upsampler_path,
            gemma_root,
            loras,
            device,
            quantization,
            **options,
        )
        self.strengths = (
            finite("distilled_lora_strength_stage_1", distilled_lora_strength_stage_1),
            finite("distilled_lora_strength_stage_2", distilled_lora_strength_stage_2),
        )

    def recipe(self, request: Request) -> Recipe:
        images = Images(request.images)
        latent = torch.empty(
            VideoLatentShape.from_pixel_shape(request.first_shape).to_torch_shape(), device="meta"
        )
        sigmas = scheduled_sigmas(request.num_inference_steps, latent)
        first = guided_stage(request, images, self._loras(0), sigmas)
        second = refinement(request, first, images, self._loras(1))
        return request.recipe(first, second, audio_output=AudioOutput.FIRST_STAGE)

    def _loras(self, stage: int) -> Loras:
        distilled = tuple(lora._replace(strength=self.strengths[stage]) for lora in self.distilled_lora[:1])
        return self.loras + distilled


main = entry_point("ti2vid_two_stages_hq")

if __name__ == "__main__":
    raise SystemExit(main())
