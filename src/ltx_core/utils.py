"""Small mathematics shared by the networks and the samplers; files and folders that are whole or not there."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.nn.functional as F

from ltx_core.errors import ConfigError, InputError, MissingFileError

NORM_ROWS = 64  # of some thousand channels: what a core's cache holds with a float32 copy or two


@contextmanager
def whole_file(path: str | Path, ending: str = "") -> Iterator[Path]:
    """A name beside `path` to write to; what was written gets the name `path` unless an error comes first.

    ending: of the name to write to, where `path` has none. Raises what `replaceable` raises.
    """
    target = replaceable(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(target if target.suffix else target.with_suffix(ending))
    try:
        yield partial
        os.replace(partial, target)
    finally:
        with suppress(OSError):  # or the error that came first would not be told
            partial.unlink(missing_ok=True)


def replaceable(path: str | Path) -> Path:
    """The file that is written under the name `path`: behind a link, the one that it leads to.

    Raises `InputError` for what cannot be replaced by a file: a folder, a device, a pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file.")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is a device or a pipe; give the name of a file.")
    return target


def partial_name(target: Path) -> Path:
    """A name beside `target` for a file or folder that is not whole yet; no other writer has it."""
    # Part of the name only: long names must not become too long. The ending tells FFmpeg the format, and the whole
    # path that it is one: "take:2.mp4" would be a protocol.
    return target.absolute().with_name(f".{target.stem[:20]}.{uuid4().hex}.partial{target.suffix}")


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill, which takes the place of `path` unless an error comes first."""
    target = Path(path)
    partial = partial_name(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, times `weight` if given. Same shape and dtype as x."""
    width = x.shape[-1:]
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.shape[:-1].numel() <= _norm_rows():
        return F.rms_norm(x, width, weight, eps)
    # A CPU does this by several operations with float32 copies between, which stay in its cache if they are small.
    pieces = x.reshape(-1, *width).split(_norm_rows())
    return torch.cat([F.rms_norm(piece, width, weight, eps) for piece in pieces]).view(x.shape)


def _norm_rows() -> int:
    """Rows that are normed at once on a CPU."""
    return NORM_ROWS * torch.get_num_threads()


def linspace(start: float, end: float, count: int) -> torch.Tensor:
    """(count,) float32 on the CPU: the bits that `torch.linspace` gives on CPUs with fused multiplication, on all."""
    first, last = (
        torch.tensor(number, dtype=torch.float32, device="cpu").double() for number in (start, end)
    )
    step = ((last - first).float() / max(count - 1, 1)).double()
    index = torch.arange(count, dtype=torch.float64, device="cpu")
    return torch.where(
        index < max(count // 2, 1), first + step * index, last - step * (count - 1 - index)
    ).float()


def to_denoised(
    sample: torch.Tensor,
    velocity: torch.Tensor,
    sigma: float | torch.Tensor,
    calc_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Rectified flow: x0 = x - v * sigma, computed in `calc_dtype`, returned in the dtype of `sample`.

    `sigma` is a number, a 0-dim tensor, or per-token timesteps (B, T, 1).
    """
    if isinstance(sigma, torch.Tensor):
        sigma = sigma.to(calc_dtype)
    return (sample.to(calc_dtype) - velocity.to(calc_dtype) * sigma).to(sample.dtype)


def to_velocity(
    sample: torch.Tensor,
    sigma: float | torch.Tensor,
    denoised_sample: torch.Tensor,
    calc_dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Rectified flow: v = (x - x0) / sigma, computed in `calc_dtype`, returned in the dtype of `sample`.

    Raises ValueError where sigma is 0: a clean sample has no velocity.
    """
    level = sigma.to(calc_dtype).item() if isinstance(sigma, torch.Tensor) else float(sigma)
    if level == 0:
        raise ValueError("sigma is 0: the velocity of a fully denoised sample is undefined.")
    return ((sample.to(calc_dtype) - denoised_sample.to(calc_dtype)) / level).to(sample.dtype)


def check_config_value(config: Mapping[str, Any], key: str, expected: Any) -> None:
    """Raise `ConfigError` (a ValueError) unless ``config[key]`` equals `expected`; a missing key counts as None."""
    actual = config.get(key)
    if actual != expected:
        raise ConfigError(f"Config value {key} is {actual}, expected {expected}")


def find_matching_file(root_path: str | Path, pattern: str) -> Path:
    """The first file under `root_path` (recursive, sorted) whose name matches `pattern`.

    Raises `MissingFileError` (a FileNotFoundError) if there is none.
    """
    matches = sorted(Path(root_path).rglob(pattern))
    if not matches:
        raise MissingFileError(f"No file matching {pattern!r} under {root_path}.")
    return matches[0]


def check_prompt(name: str, text: str) -> None:
    """Raise `InputError` for what is no text, or holds bytes that were no UTF-8."""
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"{name} is {text!r}; give a text in UTF-8.") from None
