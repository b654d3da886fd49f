"""Text conditioning of LTX-2: the Gemma 3 encoder and the embeddings processor."""

from ltx_core.text_encoders.gemma.embeddings_processor import (
    EmbeddingsProcessor,
    EmbeddingsProcessorOutput,
    convert_to_additive_mask,
)
from ltx_core.text_encoders.gemma.encoders.base_encoder import GemmaTextEncoder, module_ops_from_gemma_root
from ltx_core.text_encoders.gemma.encoders.encoder_configurator import (
    EMBEDDINGS_PROCESSOR_KEY_OPS,
    GEMMA_LLM_KEY_OPS,
    GEMMA_MODEL_OPS,
    VIDEO_ONLY_EMBEDDINGS_PROCESSOR_KEY_OPS,
    EmbeddingsProcessorConfigurator,
    GemmaTextEncoderConfigurator,
)

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
    "module_ops_from_gemma_root",
]
