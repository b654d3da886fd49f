"""Switching the LoRAs of a built model: nothing is read again, and the clean model comes back exactly."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx_core.loader.branch import Branch
from ltx_core.loader.fuse import fuse
from ltx_core.loader.lora import LoraFile, LoraMatch, LoraPathStrengthAndSDOps, Pair
from ltx_core.loader.streaming import BlockStreamer
from ltx_core.quantization.fp8 import ScaledLinear
from ltx_core.sd_ops import SDOps

Loras = tuple[LoraPathStrengthAndSDOps, ...]


class FileKey(NamedTuple):
    """A LoRA file as it was read: written anew, at another time in nanoseconds, it is another one."""

    path: str
    sd_ops: SDOps
    written: int


LayerLoras = tuple[tuple[FileKey, float], ...]
"""The files that a layer has LoRAs from, with their strengths, in their order."""


class Weight(NamedTuple):
    """A layer's weight, and its scale if it is a scaled fp8 one."""

    value: torch.Tensor
    scale: torch.Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> Weight:
        """What the layer holds now, and goes on to be if the layer is given other tensors."""
        return cls(layer.weight.data, layer.weight_scale.data if isinstance(layer, ScaledLinear) else None)

    def on(self, device: torch.device | str, copy: bool = False) -> Weight:
        scale = None if self.scale is None else self.scale.to(device, copy=copy)
        return Weight(self.value.to(device, copy=copy), scale)

    def put(self, layer: nn.Linear) -> None:
        """Let the layer's parameters be these tensors."""
        layer.weight.data = self.value
        if self.scale is not None:
            layer.weight_scale.data = self.scale  # type: ignore[union-attr]


class LoraSwitcher:
    """Owns the LoRA set of one model.

    The clean weights of the layers that any set has touched are kept on the CPU, and the weights of a set are
    always fused from them: equal, bit for bit, to those of a fresh build with that set. Where the model itself
    is in main memory, the layer's last fused weight stays beside the clean one while the layer is clean: it takes
    the place of a second clean one, and going there again moves no byte. Blocks that wait elsewhere stay clean
    there; each is fused whenever it comes to the device. What was read of the LoRA files of the current and of the
    previous set stays in memory, so that going back and forth between two reads nothing.

    beside: device and dtype of the activations. If given, no weight is touched: each layer gets a `Branch`, which
    computes what the set adds to its output.
    """

    def __init__(self, model: nn.Module, beside: tuple[torch.device, torch.dtype] | None = None) -> None:
        self.model, self.is_beside = model, beside is not None
        self._place = beside or (torch.device("cpu"), None)  # of the pairs; None: in the dtype of their file
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        self._clean: dict[str, Weight] = {}
        # Of layers in main memory: what they last had fused.
        self._last: dict[str, tuple[LayerLoras, Weight]] = {}
        self._hooks: dict[str, Any] = {}  # of the layers that have a branch
        # What each touched layer computes with; None: unknown, a change was cut short.
        self._applied: dict[str, LayerLoras | None] = {}
        self._files: dict[FileKey, LoraFile] = {}
        self._pairs: dict[tuple[FileKey, str], Pair] = {}  # what was read of them, at strength 1, by layer
        self._current: set[FileKey] = set()
        self._streamer: BlockStreamer | None = getattr(model, "streamer", None)
        if self._streamer is not None and not self.is_beside:
            self._streamer.dress = self._dress

    @torch.inference_mode(False)
    @torch.no_grad()
    def apply(
        self, loras: Iterable[LoraPathStrengthAndSDOps], opened: Mapping[FileKey, LoraFile] | None = None
    ) -> tuple[LoraMatch, ...]:
        """Let the model compute with exactly this set, in this order; an empty one restores the clean model.

        opened: files that are open already, by path and key map. LoRAs of strength 0 are not opened.
        Returns how each of the others fits the model.
        Raises `CheckpointError`, before anything changes, for a LoRA file that does not fit.
        """
        wanted = [(file_key(lora), lora.strength) for lora in loras if lora.strength != 0]
        self._files |= {key: opened[key] for key, _ in wanted if opened and key in opened}
        files = [self._open(key) for key, _ in wanted]
        plan: dict[str, LayerLoras] = dict.fromkeys(self._applied, ())
        for lora, file in zip(wanted, files):
            for name in file.match.modules:
                plan[name] = (*plan.get(name, ()), lora)
        for name, new in plan.items():
            if self._applied.get(name, ()) != new:
                self._bring(name, new)
        self._forget({key for key, _ in wanted})
        return tuple(file.match for file in files)

    @property
    def bytes_kept(self) -> int:
        """What it holds in main memory beside the model's own weights: for each touched layer another weight."""
        return sum(weight.value.nbytes for weight in self._clean.values())

    def _open(self, key: FileKey) -> LoraFile:
        if key not in self._files:
            targets = {name: tuple(layer.weight.shape) for name, layer in self._layers.items()}
            self._files[key] = LoraFile(key.path, targets, key.sd_ops)
        return self._files[key]

    def _forget(self, used: set[FileKey]) -> None:
        """Let go of the files that neither this set nor the one before it uses."""
        if used != self._current:
            kept = used | self._current
            self._files = {key: file for key, file in self._files.items() if key in kept}
            self._pairs = {key: pair for key, pair in self._pairs.items() if key[0] in kept}
            self._current = used

    def _bring(self, name: str, loras: LayerLoras) -> None:
        """Let one layer compute with exactly these LoRAs."""
        layer, known = self._layers[name], self._applied.get(name, ())
        self._applied[name] = None
        if self.is_beside:
            self._branch(name, layer, loras)
        elif self._streamer is not None and self._streamer.brings(name):
            pass  # `_dress` fuses whenever its block arrives
        elif in_main_memory(layer.weight):
            self._swap(name, layer, loras)
        else:
            self._write(name, layer, loras, is_clean=known == ())
        self._applied[name] = loras

    def _branch(self, name: str, layer: nn.Linear, loras: LayerLoras) -> None:
        """Hang a branch on the layer in place of the one that it has, or none."""
        pairs = [self._pair(name, *lora, self._place[0]) for lora in loras]
        if name in self._hooks:
            self._hooks[name].remove()
            del self._hooks[name]
        if pairs:
            self._hooks[name] = layer.register_forward_hook(Branch(pairs))

    def _swap(self, name: str, layer: nn.Linear, loras: LayerLoras) -> None:
        """Give the layer the clean tensors or the fused ones, which are made if they are not the last."""
        new = clean = self._clean.setdefault(name, Weight.of(layer))
        if loras:
            last, new = self._last.get(name, ((), clean))
            if last != loras:
                new = self._with(name, loras, clean)
                self._last[name] = (loras, new)
        new.put(layer)

    def _write(self, name: str, layer: nn.Linear, loras: LayerLoras, is_clean: bool) -> None:
        """Write the new weight over the old one, on the device."""
        held = Weight.of(layer)
        if name not in self._clean:
            self._clean[name] = held.on("cpu", copy=True)
        new = held if is_clean else self._clean[name].on(held.value.device)
        if loras:
            new = self._with(name, loras, new)
        held.value.copy_(new.value)
        if held.scale is not None and new.scale is not None:
            held.scale.copy_(new.scale)

    def _with(self, name: str, loras: LayerLoras, clean: Weight) -> Weight:
        pairs = [self._pair(name, *lora, clean.value.device) for lora in loras]
        return Weight(*fuse(clean.value, pairs, scale=clean.scale))

    def _pair(self, name: str, key: FileKey, strength: float, device: torch.device) -> Pair:
        if (key, name) not in self._pairs:
            down, up, scale = self._files[key].read(name)
            self._pairs[key, name] = Pair(self._kept(down), self._kept(up), scale)
        down, up, scale = self._pairs[key, name]
        return Pair(down.to(device, non_blocking=True), up.to(device, non_blocking=True), strength * scale)

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of a LoRA where it stays; pinned where it travels with every block."""
        kept = tensor.to(*self._place)
        travels = self._streamer is not None and not self.is_beside and self._streamer.to_gpu
        return kept.pin_memory() if travels else kept

    def _dress(self, tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        """The tensors of a block that just arrived, with the current set fused in."""
        for weight in [name for name in tensors if name.endswith(".weight")]:
            name, scale = prefix + weight.removesuffix(".weight"), f"{weight}_scale"
            if loras := self._applied.get(name):
                new = self._with(name, loras, Weight(tensors[weight], tensors.get(scale)))
                tensors |= {weight: new.value} | ({} if new.scale is None else {scale: new.scale})
        return tensors


def file_key(lora: LoraPathStrengthAndSDOps) -> FileKey:
    """What names the file now; of one that is missing, too, for opening it says so better."""
    path = Path(lora.path)
    return FileKey(str(lora.path), lora.sd_ops, path.stat().st_mtime_ns if os.path.exists(path) else 0)


def in_main_memory(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu"
