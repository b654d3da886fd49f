"""Video between keyframes in two stages: every picture guides, none is copied."""

from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.recipe import Recipe, Request, guided_stage, refinement
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline


class KeyframeInterpolationPipeline(TI2VidTwoStagesPipeline):
    """The flow of `TI2VidTwoStagesPipeline` with all images, the one at frame 0 included, appended as
    guiding keyframes in both stages. The sound is the second stage's."""

    def recipe(self, request: Request) -> Recipe:
        keyframes = Images(request.images, guides=True)
        first = guided_stage(request, keyframes, self.loras)
        second = refinement(request, first, keyframes, self.loras + self.distilled_lora)
        return request.recipe(first, second)


main = entry_point("keyframe_interpolation")

if __name__ == "__main__":
    raise SystemExit(main())
