"""Which weights rest in 8 bits, and which layers compute with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ltx_core.module_ops import ModuleOps
from ltx_core.quantization.fp8 import CastLinear, ScaledLinear, as_factor, to_fp8
from ltx_core.sd_ops import KeyValueOperationResult, SDOps

# Linear layers of the blocks that fp8-cast stores in 8 bits, weights and biases both.
CAST_PREFIX = "transformer_blocks."
CAST_LAYERS = (".to_q", ".to_k", ".to_v", ".to_out.0", "ff.net.0.proj", "ff.net.2")


def _downcast(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    return [KeyValueOperationResult(key, to_fp8(value))]


def _as_factor(key: str, value: torch.Tensor) -> list[KeyValueOperationResult]:
    return [KeyValueOperationResult(key, as_factor(value))]


def _cast_map() -> SDOps:
    ops = SDOps("TRANSFORMER_LINEAR_DOWNCAST_MAP")
    for layer in CAST_LAYERS:
        for part in ("weight", "bias"):
            ops = ops.with_kv_operation(_downcast, key_prefix=CAST_PREFIX, key_suffix=f"{layer}.{part}")
    return ops


def upcast_linears(model: nn.Module) -> nn.Module:
    """Make every linear layer of `model` widen its weights to its input's dtype."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = CastLinear
    return model


def scale_linears(model: nn.Module, scales: Mapping[str, Mapping[str, Sequence[int]]]) -> nn.Module:
    """Make linear layers multiply in 8 bits; their scales, of these shapes by layer, are still to be filled."""
    for name, shapes in scales.items():
        layer = model.get_submodule(name)
        layer.__class__ = ScaledLinear
        for buffer in ScaledLinear.SCALES:
            is_there = buffer in shapes
            value = torch.empty(shapes[buffer], dtype=torch.float32, device="meta") if is_there else None
            layer.register_buffer(buffer, value)
    return model


def _has_linears(model: nn.Module) -> bool:
    return any(type(module) is nn.Linear for module in model.modules())


# To be chained after the transformer's key map; alone they keep no key.
TRANSFORMER_LINEAR_DOWNCAST_MAP = _cast_map()
SCALES_AS_FACTORS = SDOps("SCALES_AS_FACTORS").with_kv_operation(_as_factor, key_suffix="_scale")
UPCAST_DURING_INFERENCE = ModuleOps("upcast_fp8_during_linear_forward", _has_linears, upcast_linears)

# Imports that official callers know and that have nothing to do here: scaled weights rest as (out, in), and
# `prepare_model` finds their layers in the file.
FP8_TRANSPOSE_SD_OPS = SDOps("fp8_transpose_weights")
FP8_PREPARE_MODULE_OPS = ModuleOps("fp8_prepare_for_loading", lambda model: False, lambda model: model)


class UpcastWithStochasticRounding(ModuleOps):
    """The official variant of `UPCAST_DURING_INFERENCE`; here the same: `seed` has no effect."""

    def __new__(cls, seed: int = 0) -> UpcastWithStochasticRounding:
        return super().__new__(cls, *UPCAST_DURING_INFERENCE)


@dataclass(frozen=True)
class QuantizationPolicy:
    """What becomes of a transformer's weights while they are loaded.

    Make one with `fp8_cast` (half the memory, any checkpoint, any device) or `fp8_scaled_mm` (also faster
    on GPUs with fp8 units; needs an fp8 checkpoint).

    sd_ops: chained after the component's key map. module_ops: applied to the module before it is filled.
    scaled_mm: layers that the file stores as e4m3 with scales keep them, instead of being widened.
    """

    sd_ops: SDOps | None = None
    module_ops: tuple[ModuleOps, ...] = ()
    scaled_mm: bool = False

    @property
    def name(self) -> str:
        """The policy's name on the command line."""
        return "fp8-scaled-mm" if self.scaled_mm else "fp8-cast" if self.sd_ops else "none"

    def chained(self, key_map: SDOps) -> SDOps:
        """The key map of a component with this policy's operations after it."""
        return key_map if self.sd_ops is None else key_map.chain(self.sd_ops)

    @classmethod
    def fp8_cast(cls) -> QuantizationPolicy:
        """Block weights rest as e4m3 and are widened for each call. Scaled fp8 files are widened first."""
        return cls(TRANSFORMER_LINEAR_DOWNCAST_MAP, (UPCAST_DURING_INFERENCE,))

    @classmethod
    def fp8_scaled_mm(cls) -> QuantizationPolicy:
        """Layers that the file stores as e4m3 with a ``weight_scale``, of the tensor or by row, multiply in 8 bits.

        Their inputs are rounded by the file's ``input_scale``; without one, each token by its largest value.
        """
        return cls(SCALES_AS_FACTORS, scaled_mm=True)


NO_POLICY = QuantizationPolicy()
