"""Changes to modules: named ones before they get their weights, and how a tensor gets into its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class ModuleOps(NamedTuple):
    """`mutator` is applied to a module on the meta device if `matcher` says so."""

    name: str
    matcher: Callable[[nn.Module], bool]
    mutator: Callable[[nn.Module], nn.Module]

    def apply(self, module: nn.Module) -> nn.Module:
        """The changed module, or the same one if it is not meant."""
        return self.mutator(module) if self.matcher(module) else module


def assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer called `name`."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
