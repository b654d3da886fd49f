"""The reference's builder: a frozen description of a model that `build` turns into a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ltx_core.loader.build import TensorSource, build_model
from ltx_core.loader.checkpoint import Checkpoint, TensorInfo
from ltx_core.loader.lora import LoraPathStrengthAndSDOps
from ltx_core.loader.module_ops import ModuleOps
from ltx_core.loader.state_dict import (
    DummyRegistry,
    Paths,
    Registry,
    SafetensorsModelStateDictLoader,
    StateDict,
    StateDictLoader,
)
from ltx_core.loader.switch import LoraSwitcher
from ltx_core.quantization import QuantizationPolicy
from ltx_core.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP, SDOps

CPU = torch.device("cpu")


class ModelBuilderProtocol(Protocol):
    """Anything that builds a module."""

    def build(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module: ...


class LoRAAdaptableProtocol(Protocol):
    """Anything that takes LoRAs and gives a new builder."""

    def lora(self, lora_path: str, strength: float = 1.0, sd_ops: SDOps | None = None) -> Any: ...


class _InMemory:
    """A state dict with the methods of a checkpoint; what is read from it is a copy."""

    def __init__(self, path: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self.path, self.config, self._tensors = path, config, tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def info(self, key: str) -> TensorInfo:
        tensor = self._tensors[key]
        return TensorInfo(tensor.dtype, tuple(tensor.shape), tensor.nbytes, Path(self.path))

    def read(self, key: str, device: torch.device | str = "cpu") -> torch.Tensor:
        return self._tensors[key].to(device, copy=True)


def source_of(
    files: Checkpoint | Paths,
    sd_ops: SDOps | None,
    registry: Registry | None,
    loader: StateDictLoader | None = None,
) -> tuple[TensorSource, SDOps | None]:
    """What to build a model from, and the key map that goes with it, as `build_model` takes them.

    With a registry that keeps nothing, or none: the files, of which each tensor goes straight into its place.
    Otherwise the registry's state dict, which is filled first. It holds the tensors as the files do: what operations
    make of them comes after scaled weights are widened.
    """
    loader = loader or SafetensorsModelStateDictLoader()
    if isinstance(registry, DummyRegistry | None) and type(loader) is SafetensorsModelStateDictLoader:
        return files if isinstance(files, Checkpoint) else Checkpoint(files), sd_ops
    paths = files.paths if isinstance(files, Checkpoint) else files
    keys, operations = sd_ops.split() if sd_ops else (None, None)
    state = _load(paths, keys, registry or DummyRegistry(), loader, CPU)
    first = str(paths if isinstance(paths, str | Path) else next(iter(paths)))
    return _InMemory(first, loader.metadata(first), state.sd), operations


def _load(
    paths: Paths, sd_ops: SDOps | None, registry: Registry, loader: StateDictLoader, device: Any
) -> StateDict:
    kept = registry.get(paths, sd_ops)
    if kept is None:
        kept = loader.load(paths, sd_ops=sd_ops, device=device)
        registry.add(paths, sd_ops, kept)
    return kept


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
    lora_load_device: torch.device = CPU

    def lora(
        self, lora_path: str, strength: float = 1.0, sd_ops: SDOps | None = None
    ) -> SingleGPUModelBuilder:
        """The same builder with one more LoRA."""
        one = LoraPathStrengthAndSDOps(lora_path, strength, sd_ops or LTXV_LORA_COMFY_RENAMING_MAP)
        return replace(self, loras=(*self.loras, one))

    @property
    def first_path(self) -> str:
        """The file that carries the configuration."""
        return self.model_path[0] if isinstance(self.model_path, tuple | list) else self.model_path

    def model_config(self) -> dict[str, Any]:
        """The configuration in the first file's metadata."""
        return self.model_loader.metadata(self.first_path)

    def meta_model(self, config: Mapping[str, Any], module_ops: tuple[ModuleOps, ...]) -> nn.Module:
        """The module without weights, changed by every operation that matches it."""
        with torch.device("meta"):
            model = self.model_class_configurator.from_config(config)
        for operation in module_ops:
            model = operation.apply(model)
        return model

    def load_sd(
        self, paths: Paths, registry: Registry, device: Any = None, sd_ops: SDOps | None = None
    ) -> StateDict:
        """The renamed state dict, from the registry if it has it."""
        return _load(paths, sd_ops, registry, self.model_loader, device)

    def build(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """The module in eval mode on `device` (default CPU) in `dtype` (default: as in the file)."""
        source, key_map = source_of(self.model_path, self.model_sd_ops, self.registry, self.model_loader)
        policy = QuantizationPolicy(module_ops=self.module_ops)
        model = build_model(self.model_class_configurator, source, key_map, device or CPU, dtype, policy)
        if any(lora.strength for lora in self.loras):
            LoraSwitcher(model).apply(self.loras)
        return model
