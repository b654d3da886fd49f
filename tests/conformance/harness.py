"""What every topic of the conformance run shares: cases, comparisons, verdicts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

CUDA_TOLERANCE = 1e-4  # float32 on a GPU with TF32 off, as the goldens' READMEs state it


@dataclass(frozen=True)
class Context:
    """Where the implementation runs. `relax` widens a float32 CPU tolerance to what a GPU can meet."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def relax(self, tolerance: float) -> float:
        return tolerance if self.device.type == "cpu" else max(tolerance, CUDA_TOLERANCE)


@dataclass(frozen=True)
class Check:
    """One output held against its golden."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Case:
    """One golden case: `key` as in semantics.json, `run` computes and compares every output."""

    key: str
    run: Callable[[], Iterable[Check]]


def errors(got: torch.Tensor, want: torch.Tensor) -> tuple[float, float]:
    """(relative L2, max absolute error), in float64 on the CPU. NaN where NaN was not expected counts as inf."""
    a, b = got.detach().cpu().double(), want.detach().cpu().double()
    if a.numel() == 0:
        return 0.0, 0.0
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, torch.zeros_like(a), a - b)
    norm = torch.where(b.isfinite(), b, torch.zeros_like(b)).norm().item()
    rel, top = difference.norm().item() / max(norm, 1e-30), difference.abs().max().item()
    return (rel if math.isfinite(rel) else math.inf), (top if math.isfinite(top) else math.inf)


def _check(
    name: str, got: torch.Tensor, want: torch.Tensor, verdict: Callable[[float, float], bool], rule: str
) -> Check:
    if tuple(got.shape) != tuple(want.shape):
        return Check(name, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    rel, top = errors(got, want)
    return Check(name, verdict(rel, top), f"rel {rel:.1e} max {top:.1e} ({rule})")


def near_max(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> Check:
    """max|got - want| <= tolerance * max|want|"""
    limit = tolerance * (want.abs().max().item() if want.numel() else 0.0)
    return _check(name, got, want, lambda _, top: top <= limit, f"max <= {tolerance:g} of maximum")


def near_abs(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> Check:
    """max|got - want| <= tolerance"""
    return _check(name, got, want, lambda _, top: top <= tolerance, f"max <= {tolerance:g}")


def near_norm(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> Check:
    """||got - want|| <= tolerance * ||want||"""
    return _check(name, got, want, lambda rel, _: rel <= tolerance, f"rel <= {tolerance:g}")


def exact(name: str, got: torch.Tensor, want: torch.Tensor) -> Check:
    """Equal element by element."""
    return _check(name, got, want, lambda _, top: top == 0, "exact")


def frames(name: str, got: torch.Tensor, want: torch.Tensor) -> Check:
    """uint8 pixels: none off by more than 1, at most 0.1 % of them off."""
    if tuple(got.shape) != tuple(want.shape):
        return Check(name, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    off = (got.cpu().int() - want.cpu().int()).abs()
    share, top = (off > 0).float().mean().item(), off.max().item()
    return Check(name, top <= 1 and share <= 1e-3, f"max {top} differ {share:.1e} (max 1, differ <= 1e-3)")


def equal(name: str, got: Any, want: Any) -> Check:
    """Python values that must be equal."""
    ok = got == want
    return Check(name, ok, "equal" if ok else f"got {got!r}, expected {want!r}")


def raises(name: str, call: Callable[[], Any], exception: str) -> Check:
    """`call` raises an exception whose class, or a base of it, is named `exception`."""
    try:
        call()
    except Exception as error:
        names = [c.__name__ for c in type(error).__mro__]
        return Check(name, exception in names, f"raised {names[0]}: {error}")
    return Check(name, False, f"raised nothing, expected {exception}")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    with safe_open(str(path), framework="pt", device=str(device)) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
