"""Run LTX-2: eight pipelines from text, images, keyframes, audio or video to a video with sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltx_pipelines.a2vid_two_stage import A2VidPipelineTwoStage
    from ltx_pipelines.distilled import DistilledPipeline
    from ltx_pipelines.ic_lora import ICLoraPipeline
    from ltx_pipelines.keyframe_interpolation import KeyframeInterpolationPipeline
    from ltx_pipelines.retake import RetakePipeline
    from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline
    from ltx_pipelines.ti2vid_two_stages import TI2VidTwoStagesPipeline
    from ltx_pipelines.ti2vid_two_stages_hq import TI2VidTwoStagesHQPipeline

__all__ = [
    "A2VidPipelineTwoStage",
    "DistilledPipeline",
    "ICLoraPipeline",
    "KeyframeInterpolationPipeline",
    "RetakePipeline",
    "TI2VidOneStagePipeline",
    "TI2VidTwoStagesHQPipeline",
    "TI2VidTwoStagesPipeline",
]


def __getattr__(name: str) -> Any:
    """Load a pipeline class when it is asked for: `import ltx_pipelines` itself stays quick."""
    from ltx_pipelines.cli.commands import COMMANDS

    for command in COMMANDS.values():
        if command.class_name == name:
            return command.load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
