"""Opened weights files: the header at once, tensors when asked for, memory-mapped; errors in one sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ltx_core.errors import CheckpointError, MissingFileError

# The dtype codes of the safetensors format.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FOREIGN_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pickle", ".gguf")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header states it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: Path

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


class Checkpoint:
    """One safetensors file, or several that together hold one model (later files override earlier ones).

    Opening reads headers only. `bytes_read` counts what `read` has taken from disk.
    Raises `MissingFileError` or `CheckpointError`, naming the file, for anything that is no such file.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        given = [paths] if isinstance(paths, str | Path) else list(paths)
        self.paths = tuple(Path(path).expanduser() for path in given)
        self.bytes_read = 0
        headers = [read_header(path) for path in self.paths]
        self.metadata: dict[str, str] = dict(headers[0].get("__metadata__") or {})
        self._infos = {
            key: _info(path, key, entry)
            for path, header in zip(self.paths, headers)
            for key, entry in header.items()
            if key != "__metadata__"
        }

    def __repr__(self) -> str:
        return f"Checkpoint({', '.join(map(str, self.paths))})"

    @property
    def path(self) -> Path:
        """The first file, the one that carries the metadata."""
        return self.paths[0]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed ``config`` of the metadata; empty where there is none."""
        text = self.metadata.get("config")
        if text is None:
            return {}
        try:
            return json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: its config is not valid JSON ({error}).") from None

    @property
    def model_version(self) -> str | None:
        return self.metadata.get("model_version")

    def keys(self) -> Iterable[str]:
        return self._infos.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def info(self, key: str) -> TensorInfo:
        """Dtype and shape of a tensor, from the header."""
        if key not in self._infos:
            raise CheckpointError(f"{self.path} has no tensor {key!r}.")
        return self._infos[key]

    def read(
        self, key: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """One tensor on `device`; a floating one is cast to `dtype` if given. Owns its memory."""
        info = self.info(key)
        try:
            tensor = self._open(info.file).get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{info.file}: cannot read {key!r} ({error}).") from None
        self.bytes_read += info.nbytes
        target = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
        moved = tensor.to(device=device, dtype=target)
        # On the CPU without a cast this is still the file's mapped memory.
        return moved.clone() if moved.data_ptr() == tensor.data_ptr() and moved.numel() else moved

    def _open(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = safe_open(str(path), framework="pt", device="cpu")
        return self._handles[path]

    @cached_property
    def _handles(self) -> dict[Path, Any]:
        return {}


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file, checked against the file's length."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .safetensors file in it.")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path} is empty; download it again.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= size - 8:
            raise CheckpointError(_foreign(path))
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise CheckpointError(_foreign(path)) from None
    if not isinstance(header, dict):
        raise CheckpointError(_foreign(path))
    ends = (e["data_offsets"][1] for k, e in header.items() if k != "__metadata__")
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise CheckpointError(
            f"{path} is truncated: {size} bytes, its header promises {expected}; download it again."
        )
    return header


def _info(path: Path, key: str, entry: dict[str, Any]) -> TensorInfo:
    start, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {key!r} has dtype {entry['dtype']}, which is not supported.")
    return TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"]), end - start, path)


def _foreign(path: Path) -> str:
    if path.suffix.lower() in FOREIGN_ENDINGS:
        return f"{path} is a {path.suffix} file; only .safetensors files are read. Convert it first."
    return f"{path} is not a safetensors file, or is damaged; download it again."
