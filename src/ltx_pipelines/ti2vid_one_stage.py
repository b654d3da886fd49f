"""Text or image to video in one guided stage at full size."""

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
from ltx_pipelines.recipe import Recipe, Request, guided_stage


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

    def recipe(self, request: Request) -> Recipe:
        return request.recipe(guided_stage(request, Images(request.images), self.loras))


main = entry_point("ti2vid_one_stage")

if __name__ == "__main__":
    raise SystemExit(main())
