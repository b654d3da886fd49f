"""Eight-bit weights: which, and how layers compute with them."""

from ltx_core.quantization.policy import (
    FP8_PREPARE_MODULE_OPS,
    FP8_TRANSPOSE_SD_OPS,
    TRANSFORMER_LINEAR_DOWNCAST_MAP,
    UPCAST_DURING_INFERENCE,
    QuantizationPolicy,
    UpcastWithStochasticRounding,
)

__all__ = [
    "FP8_PREPARE_MODULE_OPS",
    "FP8_TRANSPOSE_SD_OPS",
    "TRANSFORMER_LINEAR_DOWNCAST_MAP",
    "UPCAST_DURING_INFERENCE",
    "QuantizationPolicy",
    "UpcastWithStochasticRounding",
]
