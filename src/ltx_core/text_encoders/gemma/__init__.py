"""Text conditioning of LTX-2: the Gemma 3 encoder and the embeddings processor."""

from __future__ import annotations

from typing import Any

from torch import nn

from ltx_core.text_encoders.gemma.embeddings_processor import (
    EmbeddingsProcessor,
    EmbeddingsProcessorOutput,
    convert_to_additive_mask,
)
from ltx_core.text_encoders.gemma.encoders.base_encoder import GemmaTextEncoder, module_ops_from_gemma_root
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    GEMMA_LLM_KEY_OPS,
    VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS,
    EmbeddingsProcessorConfigurator,
    GemmaTextEncoderConfigurator,
)
from ltx_core.text_encoders.gemma.loading import fill_buffers, load_text_encoder

__all__ = [
    "EMBEDDINGS_PROCESSOR_KEY_OPS",
    "EmbeddingsProcessor",
    "EmbeddingsProcessorConfigurator",
    "EmbeddingsProcessorOutput",
    "GEMMA_LLM_KEY_OPS",
    "GEMMA_MODEL_OPS",
    "GemmaTextEncoder",
    "GemmaTextEncoderConfigurator",
    "VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS",
    "convert_to_additive_mask",
    "load_text_encoder",
    "module_ops_from_gemma_root",
]


def __getattr__(name: str) -> Any:
    """`GEMMA_MODEL_OPS`: `ModuleOps` that fill an encoder's buffers; late, as the loader stands above."""
    if name != "GEMMA_MODEL_OPS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ltx_core.loader import ModuleOps

    def fill(encoder: nn.Module) -> nn.Module:
        fill_buffers(encoder, "cpu")
        return encoder

    return ModuleOps("gemma_buffers", lambda module: isinstance(module, GemmaTextEncoder), fill)
