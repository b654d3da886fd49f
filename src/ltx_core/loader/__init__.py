"""Checkpoints: open, describe, build modules from them, fuse and switch LoRAs, write them."""

from ltx_core.loader.build import build_model, tensor_bytes
from ltx_core.loader.builder import LoRAAdaptableProtocol, ModelBuilderProtocol, SingleGPUModelBuilder
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.describe import FileDescription, describe, variant_by_name
from ltx_core.loader.fuse import LoraStateDictWithStrength, apply_loras
from ltx_core.loader.lora import LoraMatch, LoraPathStrengthAndSDOps
from ltx_core.loader.module_ops import ModuleOps
from ltx_core.loader.save import save_checkpoint, write_tensors
from ltx_core.loader.sd_ops import (
    LTXV_LORA_COMFY_RENAMING_MAP,
    ContentMatching,
    ContentReplacement,
    KeyValueOperation,
    KeyValueOperationResult,
    SDKeyValueOperation,
    SDOps,
)
from ltx_core.loader.state_dict import (
    DummyRegistry,
    Registry,
    SafetensorsModelStateDictLoader,
    SafetensorsStateDictLoader,
    StateDict,
    StateDictLoader,
    StateDictRegistry,
)
from ltx_core.loader.streaming import stream_model
from ltx_core.loader.switch import LoraSwitcher

__all__ = [
    "LTXV_LORA_COMFY_RENAMING_MAP",
    "Checkpoint",
    "ContentMatching",
    "ContentReplacement",
    "DummyRegistry",
    "FileDescription",
    "KeyValueOperation",
    "KeyValueOperationResult",
    "LoRAAdaptableProtocol",
    "LoraMatch",
    "LoraPathStrengthAndSDOps",
    "LoraStateDictWithStrength",
    "LoraSwitcher",
    "ModelBuilderProtocol",
    "ModuleOps",
    "Registry",
    "SDKeyValueOperation",
    "SDOps",
    "SafetensorsModelStateDictLoader",
    "SafetensorsStateDictLoader",
    "SingleGPUModelBuilder",
    "StateDict",
    "StateDictLoader",
    "StateDictRegistry",
    "apply_loras",
    "build_model",
    "tensor_bytes",
    "describe",
    "save_checkpoint",
    "stream_model",
    "variant_by_name",
    "write_tensors",
]
