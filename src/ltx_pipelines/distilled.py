"""Text or image to video with the distilled model: eight steps at half size, three at full size."""

from collections.abc import Sequence

from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.generate import Generated
from ltx_pipelines.pipeline import (
    Device,
    LoraArgument,
    Options,
    PathArgument,
    Pipeline,
    Run,
    Unpack,
)
from ltx_pipelines.recipe import Recipe, Request, distilled_stage, refinement
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.prompts import ENHANCEMENT_SEED


class DistilledPipeline(Pipeline):
    """The fast one: predefined sigmas, no guidance, no negative prompt, one transformer for both stages."""

    def __init__(
        self,
        distilled_checkpoint_path: PathArgument = None,
        gemma_root: PathArgument = None,
        spatial_upsampler_path: PathArgument = None,
        loras: LoraArgument = (),
        device: Device = None,
        quantization: QuantizationPolicy | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            distilled_checkpoint_path,
            gemma_root,
            spatial_upsampler_path,
            loras,
            device,
            quantization,
            **options,
        )
        self.loras = self.engine.distillation + self.loras

    def __call__(
        self,
        prompt: str,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float | None = None,
        images: Sequence[ImageConditioningInput] = (),
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        enhance_prompt: bool = False,
        **run: Unpack[Run],
    ) -> Generated:
        """Generate a video with sound; the arguments are those of `GuidedPipeline.__call__`."""
        size = (seed, height, width, num_frames, frame_rate)
        request = self.request(prompt, run, *size, images, tiling_config)
        return self.run(self.recipe(request.enhanced(enhance_prompt, seed=ENHANCEMENT_SEED)), run)

    @property
    def default_sampler(self) -> str:
        return "euler-ancestral" if self.engine.version >= (2, 5) else "euler"

    def recipe(self, request: Request) -> Recipe:
        images = Images(request.images)
        first = distilled_stage(request, (images,), self.loras)
        return request.recipe(first, refinement(request, first, images, self.loras))


main = entry_point("distilled")

if __name__ == "__main__":
    raise SystemExit(main())
