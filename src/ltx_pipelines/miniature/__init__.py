"""The built-in model: a complete tiny LTX-2 in the official file formats, used where no model is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ltx_pipelines.utils.model_paths import ModelPaths

if TYPE_CHECKING:
    from ltx_core.loader import LoraPathStrengthAndSDOps
    from ltx_pipelines.utils.constants import PipelineParams


@dataclass(frozen=True)
class Miniature:
    """The built-in model's files and the defaults that suit it."""

    paths: ModelPaths
    spatial_upsampler_path: str
    distilled_lora: tuple[LoraPathStrengthAndSDOps, ...]
    params: PipelineParams


def miniature_params() -> PipelineParams:
    """Defaults for calls with the built-in model: small, short, few steps."""
    from ltx_core.components.guiders import MultiModalGuiderParams
    from ltx_pipelines.utils.constants import PipelineParams

    return PipelineParams(
        num_inference_steps=8,
        stage_1_height=64,
        stage_1_width=96,
        num_frames=25,
        frame_rate=12.0,
        video_guider_params=MultiModalGuiderParams(cfg_scale=3.0, modality_scale=1.0),
        audio_guider_params=MultiModalGuiderParams(cfg_scale=3.0, modality_scale=1.0),
    )


def miniature() -> Miniature:
    """The built-in model; made on first use, in the user's cache folder."""
    from ltx_pipelines.miniature.random_model import cached_folder

    folder = cached_folder()
    return Miniature(
        paths=ModelPaths.from_monolith(folder / "model.safetensors", folder / "gemma"),
        spatial_upsampler_path=str(folder / "upsampler.safetensors"),
        distilled_lora=_lora(folder / "distilled-lora.safetensors"),
        params=miniature_params(),
    )


def _lora(path: Path) -> tuple[LoraPathStrengthAndSDOps, ...]:
    from ltx_pipelines.utils.loras import as_loras

    return as_loras([str(path)])
