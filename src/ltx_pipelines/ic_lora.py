"""Video to video with an IC-LoRA: control clips steer the first stage, the second refines without them."""

from collections.abc import Sequence

import torch

from ltx_core.errors import InputError
from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_core.quantization import QuantizationPolicy
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images, ReferenceVideo
from ltx_pipelines.generate import Generated
from ltx_pipelines.media.video import probe_video
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
from ltx_pipelines.utils.loras import reference_downscale_factor
from ltx_pipelines.utils.validation import check_file, check_mask, check_strength, items_of


class ICLoraPipeline(Pipeline):
    """Distilled two-stage generation that follows reference clips through an IC-LoRA.

    Stage 1 runs with the LoRAs, the images and the references; stage 2 with the images alone and no LoRA.
    """

    def __init__(
        self,
        distilled_checkpoint_path: PathArgument = None,
        spatial_upsampler_path: PathArgument = None,
        gemma_root: PathArgument = None,
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
        self.loras = self.loras or self.engine.control_lora
        self.reference_downscale_factor = reference_downscale_factor(self.loras)

    def __call__(
        self,
        prompt: str,
        seed: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float | None = None,
        images: Sequence[ImageConditioningInput] = (),
        video_conditioning: Sequence[tuple[str, float]] = (),
        enhance_prompt: bool = False,
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        conditioning_attention_strength: float = 1.0,
        skip_stage_2: bool = False,
        conditioning_attention_mask: torch.Tensor | None = None,
        **run: Unpack[Run],
    ) -> Generated:
        """Generate a video with sound that follows `video_conditioning`.

        video_conditioning: (path, strength) pairs; the clips are cut to `num_frames`.
        conditioning_attention_strength: in [0, 1], how strongly the result attends to the references.
        conditioning_attention_mask: (1, 1, F, H, W) in [0, 1], the same varied over time and picture.
        skip_stage_2: stop at half size. The other arguments are those of `GuidedPipeline.__call__`.
        """
        attention = check_strength("conditioning_attention_strength", conditioning_attention_strength)
        size = (seed, height, width, num_frames, frame_rate)
        request = self.request(prompt, run, *size, images, tiling_config).enhanced(enhance_prompt)
        references = tuple(
            self._reference(pair, request, attention, conditioning_attention_mask)
            for pair in items_of("video_conditioning", video_conditioning, "(path, strength)")
        )
        return self.run(self.recipe(request, references, skip_stage_2), run)

    def _reference(
        self, pair: tuple[str, float], request: Request, attention: float, mask: torch.Tensor | None
    ) -> ReferenceVideo:
        """A control clip out of (path, strength), checked."""
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"video_conditioning is a list of (path, strength); {pair!r} is none.")
        path, strength = pair
        check_file(path)
        clip = probe_video(path)
        if mask is not None:
            check_mask(mask, min(clip.frames, request.num_frames))
        return ReferenceVideo(
            str(path),
            strength=check_strength(f"The strength of {path}", strength),
            downscale=self.reference_downscale_factor,
            attention=attention,
            mask=mask,
        )

    def recipe(self, request: Request, references: tuple[ReferenceVideo, ...], skip_stage_2: bool) -> Recipe:
        images = Images(request.images)
        first = distilled_stage(request, (images, *references), self.engine.distillation + self.loras)
        for reference in references:
            reference.size(first.shape)  # raises, before any work, where it does not fit
        if skip_stage_2:
            return request.recipe(first)
        return request.recipe(first, refinement(request, first, images, self.engine.distillation))


main = entry_point("ic_lora")

if __name__ == "__main__":
    raise SystemExit(main())
