"""The diffusion transformer of LTX-2."""

from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.transformer.model_configurator import (
    LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP,
    LTXV_MODEL_COMFY_RENAMING_MAP,
    LTXAudioOnlyModelConfigurator,
    LTXModelConfigurator,
    LTXVideoOnlyModelConfigurator,
)

__all__ = [
    "LTXAudioOnlyModelConfigurator",
    "LTXModel",
    "LTXModelConfigurator",
    "LTXV_AUDIO_ONLY_MODEL_COMFY_RENAMING_MAP",
    "LTXV_MODEL_COMFY_RENAMING_MAP",
    "LTXVideoOnlyModelConfigurator",
    "Modality",
    "X0Model",
]
