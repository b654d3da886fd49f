"""The import surface that users of the official package rely on, each name loaded when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ModelLedger": "model_ledger",
    "ModelPaths": "model_paths",
    "assert_resolution": "helpers",
    "cleanup_memory": "helpers",
    "combined_image_conditionings": "helpers",
    "denoise_audio_video": "helpers",
    "encode_prompts": "helpers",
    "euler_denoising_loop": "samplers",
    "generate_enhanced_prompt": "helpers",
    "get_device": "helpers",
    "gradient_estimating_euler_denoising_loop": "samplers",
    "multi_modal_guider_denoising_func": "helpers",
    "multi_modal_guider_factory_denoising_func": "helpers",
    "res2s_audio_video_denoising_loop": "samplers",
    "simple_denoising_func": "helpers",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
