"""Switching the LoRAs of a built model in place: nothing is read again, and clean weights come back exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ltx_core.loader.lora import LoraFile, LoraPathStrengthAndSDOps, Pair, fuse

Clean = tuple[torch.Tensor, torch.Tensor | None]


class LoraSwitcher:
    """Owns the LoRA set of one model.

    The clean weights of the layers that any set has touched are kept on the CPU, so that the weights of a
    set are always fused from them: equal, bit for bit, to those of a fresh build with that set.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._targets = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._clean: dict[str, Clean] = {}
        self._files: dict[LoraPathStrengthAndSDOps, LoraFile] = {}
        self._current: tuple[LoraPathStrengthAndSDOps, ...] = ()

    @torch.no_grad()
    def apply(self, loras: Iterable[LoraPathStrengthAndSDOps]) -> None:
        """Make the weights those of exactly this set, in this order; an empty one restores the clean model.

        Raises `CheckpointError`, before anything changes, for a LoRA file that does not fit the model.
        """
        wanted = tuple(lora for lora in loras if lora.strength != 0)
        if wanted == self._current:
            return
        files = [self._open(lora) for lora in wanted]
        touched = {name for lora in (*self._current, *wanted) for name in self._files[lora].match.modules}
        for name in sorted(touched):
            layer = self.model.get_submodule(name)
            device = layer.weight.device
            pairs = [pair for file in files if (pair := file.pair(name, device)) is not None]
            self._write(layer, *self._fused(name, layer, pairs))
        self._current = wanted

    def _open(self, lora: LoraPathStrengthAndSDOps) -> LoraFile:
        if lora not in self._files:
            self._files[lora] = LoraFile(lora, self._targets)
        return self._files[lora]

    def _fused(self, name: str, layer: nn.Module, pairs: list[Pair]) -> Clean:
        if name not in self._clean:
            scale = getattr(layer, "weight_scale", None)
            self._clean[name] = (_keep(layer.weight), None if scale is None else _keep(scale))
        device = layer.weight.device
        weight, scale = (None if t is None else t.to(device) for t in self._clean[name])
        assert weight is not None
        return fuse(weight, pairs, scale=scale) if pairs else (weight, scale)

    @staticmethod
    def _write(layer: nn.Module, weight: torch.Tensor, scale: torch.Tensor | None) -> None:
        layer.weight.copy_(weight)
        if scale is not None:
            layer.weight_scale.copy_(scale)


def _keep(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
