"""Default parameters of each model generation, predefined sigmas, and the default negative prompt."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from ltx_core.components.guiders import MultiModalGuiderParams
from ltx_core.config import checked_object, parse_config
from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.types import VIDEO_SCALE_FACTORS

log = logging.getLogger(__name__)

__all__ = [
    "DEFAULT_IMAGE_CRF",
    "DEFAULT_LORA_STRENGTH",
    "DEFAULT_NEGATIVE_PROMPT",
    "DISTILLED_SIGMA_VALUES",
    "LTX_2_3_HQ_PARAMS",
    "LTX_2_3_PARAMS",
    "LTX_2_PARAMS",
    "STAGE_2_DISTILLED_SIGMA_VALUES",
    "VIDEO_LATENT_CHANNELS",
    "VIDEO_SCALE_FACTORS",
    "PipelineParams",
    "detect_params",
]

DISTILLED_SIGMA_VALUES = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]
STAGE_2_DISTILLED_SIGMA_VALUES = [0.909375, 0.725, 0.421875, 0.0]
VIDEO_LATENT_CHANNELS = 128
DEFAULTS_KEY = "generation_defaults"
DEFAULT_LORA_STRENGTH = 1.0
DEFAULT_IMAGE_CRF = 33
DEFAULT_NEGATIVE_PROMPT = (
    files("ltx_pipelines.utils").joinpath("default_negative_prompt.txt").read_text(encoding="utf-8")
)


def check_schedule(sigmas: Sequence[float], name: str) -> None:
    """Raise `ConfigError` unless the noise levels fall to 0."""
    falling = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falling or sigmas[0] > 1 or sigmas[-1] != 0:
        raise ConfigError(f"{name} are {sigmas}; give levels that fall from at most 1 to 0.")


def guidance(cfg_scale: float, stg_block: int = 29) -> MultiModalGuiderParams:
    """What the published models are guided by."""
    return MultiModalGuiderParams(
        cfg_scale=cfg_scale, stg_scale=1.0, stg_blocks=[stg_block], rescale_scale=0.7, modality_scale=3.0
    )


@dataclass(frozen=True)
class PipelineParams:
    """Defaults of a call, those of LTX-2.0. Sizes in pixels: stage 1's, of which stage 2's are twice.

    stage_2_sigmas: noise levels of the refinement, falling to 0. The official ones suit thousands of tokens; fewer
    tell each other less, and keep what stage 1 drew only under less noise (Esser et al. 2024, arXiv:2403.03206).
    A checkpoint can bring its own, as JSON in the metadata entry "generation_defaults".
    """

    seed: int = 10
    stage_1_height: int = 512
    stage_1_width: int = 768
    num_frames: int = 121
    frame_rate: float = 24.0
    num_inference_steps: int = 40
    video_guider_params: MultiModalGuiderParams = field(default_factory=lambda: guidance(cfg_scale=3.0))
    audio_guider_params: MultiModalGuiderParams = field(default_factory=lambda: guidance(cfg_scale=7.0))
    default_image_crf: int = DEFAULT_IMAGE_CRF
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    stage_2_sigmas: tuple[float, ...] = tuple(STAGE_2_DISTILLED_SIGMA_VALUES)

    def __post_init__(self) -> None:
        check_schedule(self.stage_2_sigmas, "stage_2_sigmas")

    def sides(self, stages: int) -> tuple[int, int]:
        """(height, width) of the result of so many stages."""
        return stages * self.stage_1_height, stages * self.stage_1_width

    @property
    def stage_2_height(self) -> int:
        return 2 * self.stage_1_height

    @property
    def stage_2_width(self) -> int:
        return 2 * self.stage_1_width


LTX_2_PARAMS = PipelineParams()
LTX_2_3_PARAMS = PipelineParams(
    num_inference_steps=30,
    video_guider_params=guidance(cfg_scale=3.0, stg_block=28),
    audio_guider_params=guidance(cfg_scale=7.0, stg_block=28),
)
LTX_2_3_HQ_PARAMS = PipelineParams(
    num_inference_steps=15,
    stage_1_height=544,
    stage_1_width=960,
    video_guider_params=MultiModalGuiderParams(cfg_scale=3.0, rescale_scale=0.45, modality_scale=3.0),
    audio_guider_params=MultiModalGuiderParams(cfg_scale=7.0, rescale_scale=1.0, modality_scale=3.0),
)
# From version 2.4 images are compressed less before they are encoded.
LTX_2_4_PARAMS = replace(LTX_2_3_PARAMS, default_image_crf=18)


def parse_version(text: str | None) -> tuple[int, ...]:
    """The leading whole numbers of a version: "2.3rc1" and "2.3.rc1" are (2, 3); nothing readable is ()."""
    found = re.match(r"\d+(\.\d+)*", text or "")
    return tuple(map(int, found[0].split("."))) if found else ()


def params_for_version(version: str | None) -> PipelineParams:
    """Defaults of the newest generation that is not newer than `version`."""
    numbers = parse_version(version)
    if numbers >= (2, 4):
        return LTX_2_4_PARAMS
    return LTX_2_3_PARAMS if numbers >= (2, 3) else LTX_2_PARAMS


def embedded_params(checkpoint: Checkpoint) -> PipelineParams | None:
    """The defaults that a checkpoint's metadata bring; None for most. Raises `ConfigError` for wrong values."""
    text = checkpoint.metadata.get(DEFAULTS_KEY)
    if text is None:
        return None
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{checkpoint.path}: {DEFAULTS_KEY} of its metadata is not JSON ({error})."
        ) from None
    values = dict(checked_object(given, f"{checkpoint.path}: {DEFAULTS_KEY} of its metadata"))
    for name in ("video_guider_params", "audio_guider_params"):
        values[name] = parse_config(MultiModalGuiderParams, values.get(name, {}), f"{DEFAULTS_KEY}.{name}")
    return parse_config(PipelineParams, values, DEFAULTS_KEY)


def detect_params(checkpoint_path: str | Path) -> PipelineParams:
    """A checkpoint's own defaults, or those of its version; LTX-2.0's if the file cannot be read."""
    try:
        checkpoint = Checkpoint(checkpoint_path)
        return embedded_params(checkpoint) or params_for_version(checkpoint.model_version)
    except CheckpointError as error:
        log.warning("%s Using the defaults of LTX-2.0.", error)
        return LTX_2_PARAMS
