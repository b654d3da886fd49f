"""From configurations to the text encoder and the embeddings processor, on whatever device is current."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ltx_core.config import parse_config
from ltx_core.errors import ConfigError, UnsupportedConfigError
from ltx_core.sd_ops import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    GEMMA_LLM_KEY_OPS,
    VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS,
)
from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX
from ltx_core.text_encoders.gemma.embeddings_connector import ConnectorConfig
from ltx_core.text_encoders.gemma.embeddings_processor import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.encoders.base_encoder import GemmaTextEncoder
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2

__all__ = [
    "EMBEDDINGS_PROCESSOR_KEY_OPS",
    "EmbeddingsProcessorConfigurator",
    "GEMMA_LLM_KEY_OPS",
    "GemmaTextEncoderConfigurator",
    "VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS",
]

# All four absent: LTX-2.0's extractor. All four with these values: LTX-2.3's.
V2_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_proj_input_norm": False,
    "caption_projection_second_linear": False,
}


class GemmaTextEncoderConfigurator:
    """Builds the text encoder without tokenizer."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GemmaTextEncoder:
        """config: a parsed Gemma ``config.json``; one without ``text_config`` stands for Gemma 3 12B.

        Raises `UnsupportedConfigError` (a ValueError) if it describes another model than Gemma 3.
        """
        from transformers import Gemma3Config, Gemma3ForConditionalGeneration

        values = dict(config) if "text_config" in config else GEMMA3_CONFIG_FOR_LTX.to_dict()
        if values.get("model_type", "gemma3") != "gemma3":
            raise UnsupportedConfigError(
                f"model_type is {values['model_type']!r}; LTX-2.0 and 2.3 need a Gemma 3 model ('gemma3')."
            )
        gemma = Gemma3Config.from_dict(values)
        return GemmaTextEncoder(Gemma3ForConditionalGeneration._from_config(gemma, attn_implementation="sdpa"))


class EmbeddingsProcessorConfigurator:
    """Builds the embeddings processor of an audio-video checkpoint.

    How many values a token the text encoder gives is not in the configuration: the input width of the text
    projections is that of the weights they are given.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EmbeddingsProcessor:
        """config: the parsed ``config`` metadata of a checkpoint.

        Raises `UnsupportedConfigError` (a ValueError and a NotImplementedError) if it describes a text
        projection of neither LTX-2.0 nor LTX-2.3, `ConfigError` for a wrong value.
        """
        video = ConnectorConfig.from_config(config)
        return EmbeddingsProcessor(
            feature_extractor=_feature_extractor(config.get("transformer", {}), video),
            video_connector=video.build(),
            audio_connector=video.for_audio().build(),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> EmbeddingsProcessor:
        """metadata: of a checkpoint, with the parsed ``config`` in it."""
        if "config" not in metadata:
            raise ConfigError(f"The metadata holds {sorted(metadata)}; expected a parsed 'config'.")
        return cls.from_config(metadata["config"])


def _feature_extractor(section: Mapping[str, Any], connector: ConnectorConfig) -> nn.Module:
    if not _is_v2(section):
        width = connector.connector_num_attention_heads * connector.connector_attention_head_dim
        return FeatureExtractorV1(_projection(width, bias=False), is_av=True)
    widths = parse_config(_StreamWidths, section, "config.transformer")
    return FeatureExtractorV2(
        _projection(widths.num_attention_heads * widths.attention_head_dim, bias=True),
        None,
        _projection(widths.audio_num_attention_heads * widths.audio_attention_head_dim, bias=True),
    )
