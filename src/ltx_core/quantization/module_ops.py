"""The reference's module operations for 8-bit weights, for users who build models with `ModuleOps`."""

from __future__ import annotations

from torch import nn

from ltx_core.loader.module_ops import ModuleOps
from ltx_core.quantization.policy import upcast_linears


def _has_linears(model: nn.Module) -> bool:
    return any(type(module) is nn.Linear for module in model.modules())


UPCAST_DURING_INFERENCE = ModuleOps("upcast_fp8_during_linear_forward", _has_linears, upcast_linears)
