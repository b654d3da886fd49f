"""Which weights rest in 8 bits, and which layers compute with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import nn

from ltx_core.errors import ConfigError
from ltx_core.quantization.fp8 import CastLinear, ScaledLinear, dequantize, to_fp8
from ltx_core.sd_ops import KeyValueOperationResult, SDOps

if TYPE_CHECKING:
    from ltx_core.loader.module_ops import ModuleOps

# Linear layers of the blocks that fp8-cast stores in 8 bits, weights and biases both.
CAST_PREFIX = "transformer_blocks."
CAST_LAYERS = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "ff.net.2")
CAST_SUFFIXES = tuple(f"{layer}.{part}" for layer in CAST_LAYERS for part in ("weight", "bias"))


def is_cast(name: str) -> bool:
    """Whether fp8-cast stores the tensor of this name (inside the transformer) in 8 bits."""
    return name.startswith(CAST_PREFIX) and name.endswith(CAST_SUFFIXES)


def _downcast(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    return [KeyValueOperationResult(key, to_fp8(value))]


def _cast_map() -> SDOps:
    ops = SDOps("TRANSFORMER_LINEAR_DOWNCAST_MAP")
    for suffix in CAST_SUFFIXES:
        ops = ops.with_kv_operation(_downcast, key_prefix=CAST_PREFIX, key_suffix=suffix)
    return ops


# To be chained after the transformer's key map; alone it keeps no key.
TRANSFORMER_LINEAR_DOWNCAST_MAP = _cast_map()


class Mode(Enum):
    """How linear layers hold and use their weights."""

    NONE = "none"
    CAST = "fp8-cast"
    SCALED = "fp8-scaled-mm"


@dataclass(frozen=True)
class QuantizationPolicy:
    """What becomes of a transformer's weights while they are loaded.

    Make one with `fp8_cast` (half the memory, any checkpoint, any device) or `fp8_scaled_mm` (also faster
    on GPUs with fp8 units; needs an fp8 checkpoint). sd_ops and module_ops are the reference's fields.
    """

    sd_ops: SDOps | None = None
    module_ops: tuple[ModuleOps, ...] = ()
    mode: Mode = Mode.NONE

    @classmethod
    def fp8_cast(cls) -> QuantizationPolicy:
        """Block weights rest as e4m3 and are widened for each call."""
        from ltx_core.quantization.module_ops import UPCAST_DURING_INFERENCE

        return cls(TRANSFORMER_LINEAR_DOWNCAST_MAP, (UPCAST_DURING_INFERENCE,), Mode.CAST)

    @classmethod
    def fp8_scaled_mm(cls) -> QuantizationPolicy:
        """Layers that the file stores as e4m3 with a ``weight_scale`` multiply in 8 bits."""
        return cls(mode=Mode.SCALED)

    def prepare(self, model: nn.Module, scaled: Collection[str]) -> None:
        """Give the layers of a module on the meta device the class that this policy asks for.

        scaled: names of the layers that the file stores as fp8 with a scale.
        Raises `ConfigError` where fp8-scaled-mm finds none.
        """
        if self.mode is Mode.CAST:
            upcast_linears(model)
        elif self.mode is Mode.SCALED:
            if not scaled:
                raise ConfigError("no layer is stored as fp8 with a weight_scale; use fp8-cast for this file.")
            for name in scaled:
                _make_scaled(model.get_submodule(name))

    def convert(
        self, name: str, tensor: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype | None
    ) -> torch.Tensor:
        """What to store for the tensor `name`, read as `tensor` with the ``weight_scale`` `scale` (or None)."""
        if scale is not None:
            if self.mode is Mode.SCALED:
                return tensor
            tensor = dequantize(tensor, scale, torch.bfloat16 if self.mode is Mode.CAST else dtype or torch.bfloat16)
        if self.mode is Mode.CAST and is_cast(name):
            return to_fp8(tensor)
        if dtype is None or not tensor.is_floating_point() or name.endswith("_scale"):
            return tensor
        return tensor.to(dtype)


def upcast_linears(model: nn.Module) -> nn.Module:
    """Make every linear layer of `model` widen its weights to its input's dtype."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CastLinear
    return model


def _make_scaled(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    layer.__class__ = ScaledLinear
    for buffer in ("weight_scale", "input_scale"):
        layer.register_buffer(buffer, torch.empty((), dtype=torch.float32, device="meta"))
