"""The official import path of `ltx_core.sd_ops`."""

from ltx_core.sd_ops import (
    LTXV_LORA_COMFY_RENAMING_MAP,
    LTXV_LORA_COMFY_TARGET_MAP,
    ContentMatching,
    ContentReplacement,
    KeyValueOperation,
    KeyValueOperationResult,
    SDKeyValueOperation,
    SDOps,
)

__all__ = [
    "LTXV_LORA_COMFY_RENAMING_MAP",
    "LTXV_LORA_COMFY_TARGET_MAP",
    "ContentMatching",
    "ContentReplacement",
    "KeyValueOperation",
    "KeyValueOperationResult",
    "SDKeyValueOperation",
    "SDOps",
]
