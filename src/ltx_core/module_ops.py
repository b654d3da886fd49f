"""A named change to a module before it gets its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn


class ModuleOps(NamedTuple):
    """`mutator` is applied to a module on the meta device if `matcher` says so."""

    name: str
    matcher: Callable[[nn.Module], bool]
    mutator: Callable[[nn.Module], nn.Module]

    def apply(self, module: nn.Module) -> nn.Module:
        """The changed module, or the same one if it is not meant."""
        return self.mutator(module) if self.matcher(module) else module
