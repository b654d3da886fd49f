"""State dicts as the official loaders hand them out, and registries that keep them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ltx_core.errors import LTXError
from ltx_core.loader.checkpoint import Checkpoint, listed
from ltx_core.sd_ops import SDOps

Paths = str | Path | Iterable[str | Path]


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, where they are, how many bytes they take, and which dtypes occur."""

    sd: dict[str, torch.Tensor]
    device: torch.device
    size: int
    dtype: set[torch.dtype]

    @classmethod
    def of(cls, sd: dict[str, torch.Tensor], device: torch.device | str | None = None) -> StateDict:
        """A state dict whose bookkeeping is read off its tensors."""
        first = next(iter(sd.values())).device if sd else "cpu"
        place = torch.device(device if device is not None else first)
        return cls(sd, place, sum(t.nbytes for t in sd.values()), {t.dtype for t in sd.values()})

    def footprint(self) -> tuple[int, torch.device]:
        return self.size, self.device


class StateDictLoader(Protocol):
    """Reads a state dict, and the configuration that goes with it."""

    def metadata(self, path: str) -> dict[str, Any]: ...

    def load(self, path: Paths, sd_ops: SDOps | None = None, device: Any = None) -> StateDict: ...


class SafetensorsStateDictLoader:
    """Reads safetensors files; tensors keep the file's dtype."""

    def metadata(self, path: str) -> dict[str, Any]:
        raise NotImplementedError("State dicts have no configuration; use SafetensorsModelStateDictLoader.")

    def load(self, path: Paths, sd_ops: SDOps | None = None, device: Any = None) -> StateDict:
        """The tensors that `sd_ops` keeps, renamed, on `device` (default CPU); later files override."""
        place = torch.device(device if device is not None else "cpu")
        checkpoint = Checkpoint(path)
        sd: dict[str, torch.Tensor] = {}
        for key in checkpoint:
            name = key if sd_ops is None else sd_ops.apply_to_key(key)
            if name is None:
                continue
            value = checkpoint.read(key, place)
            sd |= {name: value} if sd_ops is None else dict(sd_ops.apply_to_key_value(name, value))
        return StateDict.of(sd, place)


class SafetensorsModelStateDictLoader(SafetensorsStateDictLoader):
    """The same for model files, which carry their configuration."""

    def metadata(self, path: str) -> dict[str, Any]:
        """The parsed ``config``, or an empty dict."""
        return Checkpoint(path).config


class DuplicateError(LTXError):
    """A state dict was added to a registry that has it already."""


class Registry(Protocol):
    """Keeps state dicts between builds."""

    def add(self, paths: Paths, sd_ops: SDOps | None, state_dict: StateDict) -> str | None: ...

    def pop(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None: ...

    def get(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None: ...

    def clear(self) -> None: ...


class DummyRegistry:
    """Keeps nothing."""

    def add(self, paths: Paths, sd_ops: SDOps | None, state_dict: StateDict) -> None:
        return None

    def pop(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None:
        return None

    def get(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None:
        return None

    def clear(self) -> None:
        return None


class StateDictRegistry:
    """Keeps state dicts in memory, by files and key map; safe to share between threads."""

    def __init__(self) -> None:
        self._kept: dict[str, StateDict] = {}
        self._lock = threading.Lock()

    def add(self, paths: Paths, sd_ops: SDOps | None, state_dict: StateDict) -> str:
        """Keep a state dict; returns what it is known by. Raises `DuplicateError` if there is one already."""
        key = _identity(paths, sd_ops)
        with self._lock:
            if key in self._kept:
                named = ", ".join(map(str, listed(paths)))
                raise DuplicateError(f"The registry already has {named} under this key map.")
            self._kept[key] = state_dict
        return key

    def pop(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None:
        with self._lock:
            return self._kept.pop(_identity(paths, sd_ops), None)

    def get(self, paths: Paths, sd_ops: SDOps | None) -> StateDict | None:
        with self._lock:
            return self._kept.get(_identity(paths, sd_ops))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def _identity(paths: Paths, sd_ops: SDOps | None) -> str:
    parts = [str(Path(path).resolve()) for path in listed(paths)]
    if sd_ops is not None:
        parts.append(sd_ops.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
