"""Opened weights files: the header at once, tensors when asked for; errors in one sentence."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Any

import torch

from ltx_core.errors import CheckpointError, InputError, MissingFileError

# The dtype codes of the safetensors format, as far as this version of PyTorch has them.
_CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, n) for code, n in _CODES.items() if hasattr(torch, n)}

# What files that are often taken for safetensors files begin with.
FOREIGN_STARTS = {
    b"PK\x03\x04": "is a PyTorch pickle (.ckpt, .pt or .bin); convert it to .safetensors first",
    b"\x80": "is a pickle (.ckpt, .pt or .bin); convert it to .safetensors first",
    b"GGUF": "is a GGUF file, which is not supported; use the .safetensors file",
    b"version ": "is a Git LFS pointer and not the file itself; download it with `git lfs pull`",
}
CAST_BYTES = 1 << 20  # read at a time where tensors are cast
HEADER_LIMIT = 100_000_000  # bytes, of the format


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header states it, and where it lies: `nbytes` from `offset` on in `file`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    file: Path
    offset: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Checkpoint:
    """One safetensors file, or several that together hold one model (later files override earlier ones).

    Opening reads headers only; `read` takes single tensors straight into memory of their own, so that
    building a model never holds more of the file than one tensor. `bytes_read` counts what it has taken.
    Raises `MissingFileError` or `CheckpointError`, naming the file, for anything that is no such file.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path]) -> None:
        given = listed(paths)
        if not given:
            raise CheckpointError("No weights file was given; pass the path of a .safetensors file.")
        self.paths = tuple(Path(path).expanduser() for path in given)
        self.bytes_read = 0
        headers = [read_header(path) for path in self.paths]
        self.metadata: dict[str, str] = headers[0].metadata
        self._infos = {key: info for header in headers for key, info in header.tensors.items()}

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
            config = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: its config is not valid JSON ({error}).") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{self.path}: its config is {text[:40]!r}, expected a JSON object.")
        return config

    @property
    def model_version(self) -> str | None:
        return self.metadata.get("model_version")

    def keys(self) -> Iterable[str]:
        return self._infos.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._infos

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def info(self, key: str) -> TensorInfo:
        """Dtype, shape and place of a tensor, from the header."""
        if key not in self._infos:
            raise CheckpointError(f"{self.path} has no tensor {key!r}.")
        return self._infos[key]

    def read(
        self, key: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """One tensor on `device`; a floating one is cast to `dtype` if given. Owns its memory."""
        info = self.info(key)
        target = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
        self.bytes_read += info.nbytes
        if torch.device(device).type != "cpu":  # a GPU casts faster than the CPU does
            return _read(key, info, info.dtype).to(device).to(target)
        return _read(key, info, target)


def listed(paths: str | Path | Iterable[str | Path]) -> list[str | Path]:
    """One path or several as a list. Raises `InputError` for what is no path."""
    given = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str | bytes) else [paths]
    for path in given:
        if not isinstance(path, str | Path):
            raise InputError(f"{path!r} is no path; give that of a .safetensors file, as a text or a Path.")
    return given


def _read(key: str, info: TensorInfo, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in memory of its own; what is cast on the way is read through a small buffer."""
    result = torch.empty(info.numel, dtype=dtype, device="cpu")
    buffer, step = result, info.numel
    if dtype is not info.dtype and info.numel:
        step = min(CAST_BYTES // info.dtype.itemsize, info.numel)
        # Pages of its own: in the C library's heap every buffer could leave a hole between two weights.
        buffer = torch.frombuffer(mmap(-1, step * info.dtype.itemsize), dtype=info.dtype)
    try:
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.offset)
            for start in range(0, info.numel, step or 1):
                part = buffer[: info.numel - start]
                _fill(part, file, f"{info.file} ends inside {key!r}; it has changed since it was opened.")
                if buffer is not result:
                    result[start : start + step].copy_(part)
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot read {key!r} ({error.strerror}).") from None
    return result.reshape(info.shape)


def _fill(part: torch.Tensor, file: Any, complaint: str) -> None:
    rest = part.view(torch.uint8).numpy().data
    while rest:  # one call of the system reads 2 GiB at most
        taken = file.readinto(rest)
        if not taken:
            raise CheckpointError(complaint)
        rest = rest[taken:]


@dataclass(frozen=True)
class Header:
    """What stands before the tensors of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against itself and against the file's length."""
    size, start, text = _read_start(path)
    data_start = 8 + len(text)
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", None) or {}
        texts = {str(key): str(value) for key, value in metadata.items()}
        tensors = {key: _info(path, key, entry, data_start) for key, entry in entries.items()}
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(_foreign(path, start)) from None
    _check_places(path, tensors, data_start, size)
    return Header(texts, tensors)


def _check_places(path: Path, tensors: Mapping[str, TensorInfo], data_start: int, size: int) -> None:
    """Raise `CheckpointError` unless the tensors fill the file: else others' bytes could be taken for weights."""
    expected = data_start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != expected:
            raise CheckpointError(
                f"{path} is damaged: its tensors do not lie one after the other; download it again."
            )
        expected += info.nbytes
    if size != expected:
        how = "truncated" if size < expected else "damaged"
        raise CheckpointError(
            f"{path} is {how}: {size} bytes, its header promises {expected}; download it again."
        )


def _read_start(path: Path) -> tuple[int, bytes, bytes]:
    """Size of a file, its first 8 bytes, and the header text whose length they state."""
    if not os.path.exists(path):  # Path.exists raises an error of its own for a name that is too long
        raise MissingFileError(f"{path} does not exist; check the path.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the .safetensors file in it.")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            text = file.read(length) if 2 <= length <= min(size - 8, HEADER_LIMIT) else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    if size == 0:
        raise CheckpointError(f"{path} is empty; download it again.")
    return size, start, text


def _info(path: Path, key: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    """One entry of a header; TypeError, KeyError or ValueError if it is not of the format's form."""
    code, shape, (start, end) = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
    if code not in DTYPES:
        raise CheckpointError(f"{path}: {key!r} has dtype {code}, which is not supported.")
    dtype = DTYPES[code]
    if start < 0 or min(shape, default=0) < 0 or end - start != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path} is damaged: {key!r} of shape {shape} in {code} cannot take {end - start} bytes."
        )
    return TensorInfo(dtype, shape, end - start, path, data_start + start)


def _foreign(path: Path, start: bytes) -> str:
    for begin, what in FOREIGN_STARTS.items():
        if start.startswith(begin):
            return f"{path} {what}."
    return f"{path} is not a safetensors file, or is damaged; download it again."
