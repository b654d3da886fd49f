"""Models larger than the device: blocks wait in main memory or on disk and come to the device in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn

from ltx_core.errors import InputError
from ltx_core.loader.build import Filling
from ltx_core.module_ops import assign

Tensors = dict[str, torch.Tensor]

MODES = ("none", "cpu", "disk")


def check_mode(mode: str) -> str:
    """`mode`, if it is one of `MODES`; else raises `InputError`."""
    if mode not in MODES:
        raise InputError(f"offload is {mode!r}; choose none, cpu or disk.")
    return mode


def stream_model(filling: Filling, device: torch.device | str, *, blocks: str, rest: str) -> nn.Module:
    """Fill a module all but whose `blocks` (the name of an ``nn.ModuleList``) stay on `device`.

    rest: "cpu" keeps the blocks' tensors in main memory (pinned for a GPU); "disk" keeps none of them and
    reads each block from the file whenever it computes. Results are those of a resident model.
    """
    device, model = torch.device(device), filling.model
    modules: nn.ModuleList = model.get_submodule(blocks)  # type: ignore[assignment]
    inside = f"{blocks}."
    outside = tuple(name for name in filling.keys if not name.startswith(inside))
    for name, tensor in filling.tensors(device, outside):
        assign(model, name, tensor)
    for name, buffer in model.named_buffers():
        if not name.startswith(inside) and not buffer.is_meta:
            assign(model, name, buffer.to(device))
    if rest == "cpu":
        for name, tensor in filling.tensors("cpu", (inside,)):
            with torch.inference_mode(False):  # a pinned copy takes other LoRAs outside of it, too
                assign(model, name, tensor.pin_memory() if device.type == "cuda" else tensor)

    def load(index: int) -> Tensors:
        prefix = f"{inside}{index}."
        if rest == "disk":
            return {name.removeprefix(prefix): t for name, t in filling.tensors(device, (prefix,))}
        resting = modules[index].state_dict(keep_vars=True)
        return {name: t.detach().to(device, non_blocking=True) for name, t in resting.items()}

    model.streamer = BlockStreamer(modules, load, device, inside)  # type: ignore[assignment]
    return model.eval().requires_grad_(False)


def _new_worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="block-streamer")


class BlockStreamer:
    """Has the weights of the computing block on the device, and those of the next on their way meanwhile.

    load: index of a block -> its tensors on the device. `dress` may change a block's tensors, named within
    the model, on arrival: so LoRAs get into them.
    """

    def __init__(
        self, blocks: nn.ModuleList, load: Callable[[int], Tensors], device: torch.device, prefix: str
    ) -> None:
        self._blocks, self._load, self._device, self._prefix = blocks, load, device, prefix
        self.dress: Callable[[Tensors, str], Tensors] = lambda tensors, prefix: tensors
        self._worker, self._process = _new_worker(), os.getpid()
        self._coming: tuple[int, Future[tuple[Tensors, Any]]] | None = None
        self._computing: tuple[nn.Module, Tensors] | None = None  # a block, and its tensors at rest
        self._gpu = torch.get_device_module(device) if device.type == "cuda" else None
        self._copies: Any = self._gpu.Stream(device) if self._gpu else None
        self._computed: Any = None  # event of a GPU: the last block that was taken away has been computed
        self.serve(blocks)

    @property
    def to_gpu(self) -> bool:
        return self._gpu is not None

    def brings(self, name: str) -> bool:
        """Whether the module of this name within the model is in one of the blocks."""
        return name.startswith(self._prefix)

    def serve(self, blocks: nn.ModuleList) -> None:
        """Bring the weights to these, too: others of the same number and names that rest where the first ones do."""
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._bring, index))
            block.register_forward_hook(self._take_away, always_call=True)

    def _fetch(self, index: int, after: Any) -> tuple[Tensors, Any]:
        """The block's tensors, and what tells when they have arrived. Runs in the worker.

        after: an event to wait for, so that copies run no further ahead of the GPU than one block.
        """
        with torch.inference_mode(False), torch.no_grad():
            if self._gpu is None:
                return self._dressed(index), None
            if after is not None:
                after.synchronize()
            with self._gpu.stream(self._copies):
                tensors = self._dressed(index)
                return tensors, self._copies.record_event()

    def _submit(self, index: int) -> Future[tuple[Tensors, Any]]:
        if self._process != os.getpid():  # a forked process inherits no threads
            self._worker, self._process = _new_worker(), os.getpid()
        return self._worker.submit(self._fetch, index, self._computed)

    def _dressed(self, index: int) -> Tensors:
        return self.dress(self._load(index), f"{self._prefix}{index}.")

    def _bring(self, index: int, block: nn.Module, arguments: Any) -> None:
        self._let_rest()  # one that was interrupted: PyTorch calls hooks after an `Exception` only
        coming, self._coming = self._coming, None
        at_hand = coming is not None and coming[0] == index
        future = coming[1] if coming and at_hand else self._submit(index)
        # Not round to the first one: another LoRA set may be put in between two passes.
        if index + 1 < len(self._blocks):
            self._coming = (index + 1, self._submit(index + 1))
        tensors, arrived = future.result()
        if self._gpu is not None:
            stream = self._gpu.current_stream(self._device)
            stream.wait_event(arrived)
            for tensor in tensors.values():
                tensor.record_stream(stream)
        self._computing = block, dict(block.state_dict(keep_vars=True))
        for name, tensor in tensors.items():
            assign(block, name, tensor)

    def _take_away(self, block: nn.Module, arguments: Any, output: Any) -> None:
        self._let_rest()
        if self._gpu is not None:
            self._computed = self._gpu.current_stream(self._device).record_event()

    def _let_rest(self) -> None:
        """Give the block that was computing, if there is one, its resting tensors back."""
        if self._computing is None:
            return
        block, resting = self._computing
        for name, tensor in resting.items():
            path, _, leaf = name.rpartition(".")
            owner = block.get_submodule(path)
            (owner._parameters if leaf in owner._parameters else owner._buffers)[leaf] = tensor  # type: ignore
        self._computing = None
