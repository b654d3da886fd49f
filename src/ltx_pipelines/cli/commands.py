"""The pipelines by name: module, class, and one line on when to use each."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A pipeline as a command: ``ltx <name with dashes>`` and ``python -m ltx_pipelines.<name>``."""

    name: str
    class_name: str
    summary: str

    def load(self) -> Any:
        """The pipeline class; importing it brings in torch."""
        return getattr(importlib.import_module(f"ltx_pipelines.{self.name}"), self.class_name)


COMMANDS = {
    command.name: command
    for command in (
        Command("ti2vid_two_stages", "TI2VidTwoStagesPipeline", "text or images to video: start here"),
        Command(
            "ti2vid_two_stages_hq",
            "TI2VidTwoStagesHQPipeline",
            "text or images to video, slower and finer (res_2s)",
        ),
        Command("ti2vid_one_stage", "TI2VidOneStagePipeline", "one guided stage, for small videos"),
        Command("distilled", "DistilledPipeline", "text or images to video, fastest (8 + 3 steps)"),
        Command("ic_lora", "ICLoraPipeline", "video to video, steered by control clips"),
        Command("keyframe_interpolation", "KeyframeInterpolationPipeline", "a video between keyframes"),
        Command("a2vid_two_stage", "A2VidPipelineTwoStage", "a video to a given sound"),
        Command("retake", "RetakePipeline", "regenerate a time window of a clip"),
    )
}
