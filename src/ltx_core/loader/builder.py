"""The reference's builder: a frozen description of a model that `build` turns into a module."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from ltx_core.loader.build import fill_model
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import LoraPathStrengthAndSDOps
from ltx_core.loader.module_ops import ModuleOps
from ltx_core.loader.state_dict import (
    DummyRegistry,
    Registry,
    SafetensorsModelStateDictLoader,
    StateDict,
    StateDictLoader,
)
from ltx_core.loader.switch import LoraSwitcher
from ltx_core.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP, SDOps


class ModelBuilderProtocol(Protocol):
    """Anything that builds a module."""

    def build(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module: ...


class LoRAAdaptableProtocol(Protocol):
    """Anything that takes LoRAs and answers a new builder."""

    def lora(self, path: str, strength: float = 1.0, sd_ops: SDOps | None = None) -> Any: ...


@dataclass(frozen=True)
class SingleGPUModelBuilder:
    """Builds one model on one device from its file(s), with module operations and LoRAs."""

    model_class_configurator: Any
    model_path: str | tuple[str, ...]
    model_sd_ops: SDOps | None = None
    module_ops: tuple[ModuleOps, ...] = ()
    loras: tuple[LoraPathStrengthAndSDOps, ...] = ()
    model_loader: StateDictLoader = field(default_factory=SafetensorsModelStateDictLoader)
    registry: Registry = field(default_factory=DummyRegistry)
    lora_load_device: torch.device = torch.device("cpu")

    def lora(self, path: str, strength: float = 1.0, sd_ops: SDOps | None = None) -> SingleGPUModelBuilder:
        """The same builder with one more LoRA."""
        one = LoraPathStrengthAndSDOps(path, strength, sd_ops or LTXV_LORA_COMFY_RENAMING_MAP)
        return replace(self, loras=(*self.loras, one))

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.model_path)

    def model_config(self) -> dict[str, Any]:
        """The configuration in the first file's metadata."""
        return self.checkpoint().config

    def meta_model(self, config: dict[str, Any], module_ops: tuple[ModuleOps, ...]) -> nn.Module:
        """The module without weights, changed by every operation that matches it."""
        with torch.device("meta"):
            model = self.model_class_configurator.from_config(config)
        for operation in module_ops:
            if operation.matcher(model):
                model = operation.mutator(model)
        return model

    def load_sd(self, paths: Any, registry: Registry, device: Any, sd_ops: SDOps | None = None) -> StateDict:
        """The renamed state dict, from the registry if it has it."""
        kept = registry.get(paths, sd_ops)
        if kept is None:
            kept = self.model_loader.load(paths, sd_ops=sd_ops, device=device)
            registry.add(paths, sd_ops, kept)
        return kept

    def build(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """The module in eval mode on `device` (default CPU) in `dtype` (default: as in the file)."""
        checkpoint = self.checkpoint()
        model = self.meta_model(checkpoint.config, self.module_ops)
        fill_model(model, checkpoint, self.model_sd_ops, device or "cpu", dtype)
        if any(lora.strength for lora in self.loras):
            LoraSwitcher(model).apply(self.loras)
        return model
