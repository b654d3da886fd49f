"""Eight-bit weights: which, and how layers compute with them."""

from ltx_core.quantization.policy import TRANSFORMER_LINEAR_DOWNCAST_MAP, QuantizationPolicy

__all__ = ["TRANSFORMER_LINEAR_DOWNCAST_MAP", "QuantizationPolicy", "UPCAST_DURING_INFERENCE"]


def __getattr__(name: str):  # type: ignore[no-untyped-def]
    if name == "UPCAST_DURING_INFERENCE":  # stands above the loader, which itself imports this package
        from ltx_core.quantization.module_ops import UPCAST_DURING_INFERENCE

        return UPCAST_DURING_INFERENCE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
