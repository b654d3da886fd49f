"""From configurations to the text encoder and the embeddings processor, on whatever device is current."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ltx_core.config import Configurator, parse_config, section_of
from ltx_core.errors import UnsupportedConfigError
from ltx_core.module_ops import ModuleOps
from ltx_core.sd_ops import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    GEMMA_LLM_KEY_OPS,
    VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS,
)
from ltx_core.text_encoders.gemma.embeddings_connector import ConnectorConfig
from ltx_core.text_encoders.gemma.embeddings_processor import EmbeddingsProcessor
from ltx_core.text_encoders.gemma.encoders.base_encoder import GemmaTextEncoder
from ltx_core.text_encoders.gemma.feature_extractor import FeatureExtractorV1, FeatureExtractorV2
from ltx_core.text_encoders.gemma.model import Gemma, fill_buffers

__all__ = [
    "EMBEDDINGS_PROCESSOR_KEY_OPS",
    "EmbeddingsProcessorConfigurator",
    "GEMMA_LLM_KEY_OPS",
    "GEMMA_MODEL_OPS",
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


@dataclass(frozen=True)
class _Streams:
    """The widths of the diffusion transformer, which LTX-2.3's text projections share."""

    num_attention_heads: int = 32
    attention_head_dim: int = 128
    audio_num_attention_heads: int = 32
    audio_attention_head_dim: int = 64


class GemmaTextEncoderConfigurator:
    """Builds the text encoder without tokenizer, with its vision tower."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GemmaTextEncoder:
        """config: a parsed Gemma ``config.json``; one without ``text_config`` stands for Gemma 3 12B.

        Raises `UnsupportedConfigError` (a ValueError) if it describes another model than Gemma 3.
        """
        gemma = Gemma(config)
        gemma.add_vision(*gemma.new_vision())
        return GemmaTextEncoder(gemma)


def _fill(encoder: nn.Module) -> nn.Module:
    fill_buffers(encoder, "cpu")
    return encoder


# Gives an encoder on the meta device the buffers that no file holds.
GEMMA_MODEL_OPS = ModuleOps("gemma_buffers", lambda module: isinstance(module, GemmaTextEncoder), _fill)


class EmbeddingsProcessorConfigurator(Configurator[EmbeddingsProcessor]):
    """Builds the embeddings processor of an audio-video checkpoint.

    How many values per token the text encoder gives is not in the configuration: the input width of the text
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
            feature_extractor=_feature_extractor(section_of(config, "transformer"), video),
            video_connector=video.build(),
            audio_connector=video.for_audio().build(),
        )


def _feature_extractor(section: Mapping[str, Any], connector: ConnectorConfig) -> nn.Module:
    if not _is_v2(section):
        width = connector.connector_num_attention_heads * connector.connector_attention_head_dim
        return FeatureExtractorV1(_projection(width, bias=False), is_av=True)
    streams = parse_config(_Streams, section, "config.transformer")
    video = streams.num_attention_heads * streams.attention_head_dim
    audio = streams.audio_num_attention_heads * streams.audio_attention_head_dim
    return FeatureExtractorV2(_projection(video, bias=True), None, _projection(audio, bias=True))


def _is_v2(section: Mapping[str, Any]) -> bool:
    """Whether the configuration describes LTX-2.3's extractor rather than LTX-2.0's."""
    missing = [key for key in V2_KEYS if key not in section]
    if len(missing) == len(V2_KEYS):
        return False
    if missing:
        raise UnsupportedConfigError(
            f"config.transformer lacks {', '.join(missing)}; a text projection is described by all of "
            f"{', '.join(V2_KEYS)}, or by none of them."
        )
    for key, expected in V2_KEYS.items():
        if section[key] != expected:
            raise UnsupportedConfigError(
                f"config.transformer.{key} is {section[key]!r}, expected {expected!r}: this kind of text "
                "projection is not supported."
            )
    return True


def _projection(width: int, bias: bool) -> nn.LazyLinear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Lazy modules are a new feature" (until torch 2.10)
        return nn.LazyLinear(width, bias=bias)
