"""The official helper functions under one roof; those that need media or models are loaded when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from ltx_pipelines.utils.denoisers import (
    guider_denoising_func,
    multi_modal_guider_denoising_func,
    multi_modal_guider_factory_denoising_func,
    simple_denoising_func,
)
from ltx_pipelines.utils.frames import (
    evenly_spaced_keyframe_positions,
    resolve_generated_keyframes,
    seconds_to_clamped_num_frames,
    snap_frames_to_grid,
)
from ltx_pipelines.utils.samplers import (
    euler_denoising_loop,
    gradient_estimating_euler_denoising_loop,
    res2s_audio_video_denoising_loop,
)
from ltx_pipelines.utils.states import (
    create_noised_state,
    denoise_audio_video,
    denoise_video_only,
    modality_from_latent_state,
    noise_audio_state,
    noise_video_state,
    post_process_latent,
    state_with_conditionings,
    timesteps_from_mask,
)

_HOMES = {
    "ModelLedger": "ltx_pipelines.utils.model_ledger",
    "assert_resolution": "ltx_pipelines.utils.validation",
    "clean_response": "ltx_pipelines.utils.prompts",
    "cleanup_memory": "ltx_pipelines.memory",
    "combined_image_conditionings": "ltx_pipelines.utils.conditionings",
    "encode_prompts": "ltx_pipelines.utils.text",
    "generate_enhanced_prompt": "ltx_pipelines.utils.text",
    "get_device": "ltx_pipelines.memory",
    "image_conditionings_by_adding_guiding_latent": "ltx_pipelines.utils.conditionings",
    "image_conditionings_by_replacing_latent": "ltx_pipelines.utils.conditionings",
}

__all__ = [
    "create_noised_state",
    "denoise_audio_video",
    "denoise_video_only",
    "euler_denoising_loop",
    "evenly_spaced_keyframe_positions",
    "gradient_estimating_euler_denoising_loop",
    "guider_denoising_func",
    "modality_from_latent_state",
    "multi_modal_guider_denoising_func",
    "multi_modal_guider_factory_denoising_func",
    "noise_audio_state",
    "noise_video_state",
    "post_process_latent",
    "res2s_audio_video_denoising_loop",
    "resolve_generated_keyframes",
    "seconds_to_clamped_num_frames",
    "simple_denoising_func",
    "snap_frames_to_grid",
    "state_with_conditionings",
    "timesteps_from_mask",
]
__all__ += list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
