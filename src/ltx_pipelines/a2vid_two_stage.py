"""Audio to video in two stages: the sound is given and kept, the picture is generated to it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ltx_core.errors import InputError
from ltx_core.model.video_vae import AUTO_TILING, AutoTiling, TilingConfig
from ltx_pipelines.cli.app import entry_point
from ltx_pipelines.conditions import Images
from ltx_pipelines.generate import Generated
from ltx_pipelines.pipeline import Run, Unpack
from ltx_pipelines.recipe import (
    AudioOutput,
    GuiderArgument,
    Recipe,
    Request,
    Source,
    Start,
    Stream,
    guided_stage,
    refinement,
)
from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
from ltx_pipelines.utils.args import ImageConditioningInput
from ltx_pipelines.utils.constants import LTX_2_3_PARAMS
from ltx_pipelines.utils.prompts import ENHANCEMENT_SEED
from ltx_pipelines.utils.validation import check_file, number


class A2VidPipelineTwoStage(TI2VidTwoStagesPipeline):
    """The flow of `TI2VidTwoStagesPipeline` with the audio stream frozen at the encoded sound.

    The returned audio is the given waveform, not a reconstruction of it.
    """

    fixed_params = LTX_2_3_PARAMS

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
        images: Sequence[ImageConditioningInput] = (),
        audio_path: str | Path | None = None,
        audio_start_time: float = 0.0,
        audio_max_duration: float | None = None,
        tiling_config: TilingConfig | AutoTiling | None = AUTO_TILING,
        enhance_prompt: bool = False,
        **run: Unpack[Run],
    ) -> Generated:
        """Generate a video to the sound in `audio_path`.

        audio_start_time, audio_max_duration: the part of it to use, in seconds. A sound shorter than the
        video is continued with silence. The other arguments are those of `GuidedPipeline.__call__`.
        """
        if audio_path is None:
            raise InputError("No sound was given; pass audio_path (--audio-path).")
        check_file(audio_path)
        if audio_max_duration is not None and not number("audio_max_duration", audio_max_duration) > 0:
            raise InputError(f"audio_max_duration is {audio_max_duration}; give seconds, more than 0.")
        guided = self.guided(negative_prompt, num_inference_steps, video_guider_params, None)
        guided["guidance"] = replace(guided["guidance"], audio=None)
        size = (seed, height, width, num_frames, frame_rate)
        request = self.request(prompt, run, *size, images, tiling_config, **guided)
        request = request.enhanced(enhance_prompt, seed=ENHANCEMENT_SEED)
        source = Source(
            audio_path=str(audio_path),
            audio_start_time=number("audio_start_time", audio_start_time),
            audio_max_duration=audio_max_duration,
        )
        return self.run(self.recipe(request, source), run)

    def recipe(self, request: Request, source: Source) -> Recipe:  # type: ignore[override]
        images = Images(request.images)
        given = Stream(Start.SOURCE, frozen=True)
        first = replace(guided_stage(request, images, self.loras), audio=given)
        second = refinement(request, first, images, self.loras + self.distilled_lora)
        return request.recipe(first, second, source=source, audio_output=AudioOutput.SOURCE)


main = entry_point("a2vid_two_stage")

if __name__ == "__main__":
    raise SystemExit(main())
