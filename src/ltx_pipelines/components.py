"""The one owner of weights: which components of a model are loaded, and where there is room for them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx_core.loader.lora import LoraFile
from ltx_core.loader.switch import FileKey, Loras, file_key
from ltx_core.model.common.convolution import with_channels_last
from ltx_pipelines import memory
from ltx_pipelines.utils.model_ledger import ModelLedger

log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A component, and where its blocks wait: "none", "cpu" or "disk"."""

    module: nn.Module
    offload: str


class Components:
    """Loads each component once, keeps it while memory allows, lets go of the least recently used first.

    offload: where blocks of large models wait; None chooses by the memory at hand. fuse_loras: whether the
    transformer has its LoRAs fused, or beside its weights.
    """

    def __init__(self, ledger: ModelLedger, offload: str | None, fuse_loras: bool) -> None:
        self.ledger, self.offload, self.fuse_loras = ledger, offload, fuse_loras
        self.loaded: OrderedDict[str, Loaded] = OrderedDict()  # the most recently used last
        # Of this run: what they take decides where the transformer goes, before it has a `LoraSwitcher` to own them.
        self.lora_files: dict[FileKey, LoraFile] = {}

    def load(self, name: str) -> Any:
        """The component, loaded if it is not."""
        if name not in self.loaded:
            size, offload = self.size_of(name), self.offload_of(name)
            kept = self.bytes_kept() if name == "transformer" and offload == "none" else 0
            for place, needed in self._taken(name, offload, kept).items():
                self.make_room(place, needed)
            if size >= memory.SLOW_TO_LOAD:
                log.info("Loading the %s (%.1f GiB).", name.replace("_", " "), size / 2**30)
            options = {"offload": offload} if name in memory.STREAMABLE else {}
            module = with_channels_last(getattr(self.ledger, name)(**options))
            self.loaded[name] = Loaded(module, offload)
        self.loaded.move_to_end(name)
        return self.loaded[name].module

    def check(self, name: str) -> nn.Module | None:
        """Raise what loading the component would, from its files' headers; nothing for one that is loaded.

        Returns the component, on the meta device if it is not loaded; None for a text encoder that is not.
        """
        return self.loaded[name].module if name in self.loaded else self.ledger.check(name)

    def expect(self, loras: Loras) -> None:
        """Open the LoRA files of a run, and let go of a resident transformer that with them has to be streamed."""
        used = {file_key(lora): lora for lora in loras if lora.strength != 0}
        self.lora_files = {key: self.lora_files.get(key) or self.ledger.open_lora(used[key]) for key in used}
        name = "transformer"
        is_more = self._is_resident(name) and self.bytes_kept() > self._kept_by(name)
        if is_more and self.policy([name]).offload[name] != "none":
            self._let_go([name])

    def let_go_of_idle(self, busy: str) -> list[str]:
        """Let go of all components but one. Returns their names."""
        idle = [name for name in self.loaded if name != busy]
        self._let_go(idle)
        return idle

    def clear(self) -> None:
        """Let go of all components, and of the LoRA files."""
        self.lora_files.clear()
        self._let_go(list(self.loaded))

    # -- memory ------------------------------------------------------------------------------------------

    def policy(self, names: Sequence[str]) -> memory.MemoryPolicy:
        """Where the components of these names would rest, if nothing else were loaded."""
        sizes = {name: self.size_of(name) for name in names}
        free, main = map(self._available, (self.ledger.device, memory.MAIN))
        kept = {"transformer": self.bytes_kept()}
        return memory.choose_policy(sizes, self.ledger.device, free, main, self.offload, kept)

    def offload_of(self, name: str) -> str:
        """Where the blocks of a component wait, or would if it were loaded now."""
        return self.loaded[name].offload if name in self.loaded else self.policy([name]).offload[name]

    def size_of(self, name: str, streamed: bool = False) -> int:
        """Bytes that a component takes on the device, LoRAs beside a transformer's weights included.

        streamed: its blocks rest elsewhere.
        """
        beside = self.lora_files.values() if name == "transformer" and not self.fuse_loras else ()
        weights = self.ledger.size_of(name) // (memory.STREAMED_SHARE if streamed else 1)
        return weights + sum(file.bytes_in(self.ledger.dtype) for file in beside)

    def bytes_kept(self) -> int:
        """Bytes of main memory that a resident transformer takes besides for the LoRAs of this run.

        That is another weight of each layer that they are fused into: see `LoraSwitcher`.
        """
        files = self.lora_files.values() if self.fuse_loras else ()
        touched = {f"{module}.weight" for file in files for module in file.match.modules}
        return sum(self.ledger.bytes_of("transformer")[name] for name in touched)

    def make_room(self, device: torch.device, size: int, busy: str | None = None) -> None:
        """Let go of what was used least recently on `device`, until `size` more bytes fit there.

        busy: what is not let go of.
        """
        for name in [name for name in self.loaded if name != busy and self._held(name, device)]:
            free = memory.available_bytes(device)
            if free is None or free >= size * memory.HEADROOM:
                return
            self._let_go([name])

    def make_room_for_loras(self) -> None:
        """Let go of others, if the loaded transformer needs main memory for LoRAs that it does not have yet."""
        if self._is_resident("transformer"):
            needed = self.bytes_kept() - self._kept_by("transformer")
            self.make_room(memory.MAIN, needed, busy="transformer")

    def _is_resident(self, name: str) -> bool:
        return name in self.loaded and self.loaded[name].offload == "none"

    def _available(self, device: torch.device) -> int | None:
        """Bytes that there would be for components on `device` if none were loaded; None if it is not told."""
        free = memory.available_bytes(device)
        return None if free is None else free + sum(self._held(name, device) for name in self.loaded)

    def _held(self, name: str, device: torch.device) -> int:
        """Bytes that a loaded component takes on `device`: the engine's, or main memory."""
        return self._taken(name, self.loaded[name].offload, self._kept_by(name))[device]

    def _kept_by(self, name: str) -> int:
        """Bytes of main memory that a loaded component holds for its LoRAs."""
        switcher = getattr(self.loaded[name].module, "switcher", None)
        return switcher.bytes_kept if switcher else 0

    def _taken(self, name: str, offload: str, kept: int) -> dict[torch.device, int]:
        """Bytes that a component takes, by place; kept: those in main memory beside its own weights."""
        taken = {memory.MAIN: kept + (self.ledger.size_of(name) if offload == "cpu" else 0)}
        on_device = self.size_of(name, streamed=offload != "none")
        return taken | {self.ledger.device: taken.get(self.ledger.device, 0) + on_device}

    def _let_go(self, names: Sequence[str]) -> None:
        for name in names:
            del self.loaded[name]
        memory.cleanup_memory()
