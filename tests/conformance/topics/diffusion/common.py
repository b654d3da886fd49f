"""What the parts of the diffusion topic share: cases, states, tolerances."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from ltx_core.components.patchifiers import VideoLatentPatchifier
from ltx_core.guidance import BatchedPerturbationConfig, Perturbation, PerturbationConfig, PerturbationType
from ltx_core.tools import VideoLatentTools
from ltx_core.types import LatentState, VideoLatentShape
from tests.conformance.harness import Check, equal, near_abs, near_max

Tensors = Mapping[str, torch.Tensor]

CPU = torch.device("cpu")
FLOAT, LOOP_BF16 = 1e-5, 2e-2
STATE_TENSORS = [f.name for f in fields(LatentState) if f.name not in ("generated_keyframe_layout", "frozen")]


@dataclass(frozen=True)
class Golden:
    """One case of a file; `shared` are all tensors of the file, `tensors` those named after the case."""

    case: dict[str, Any]
    file: dict[str, Any]
    shared: Tensors

    @property
    def tensors(self) -> Tensors:
        prefix = f"{self.case['id']}."
        return {k.removeprefix(prefix): t for k, t in self.shared.items() if k.startswith(prefix)}

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.case["dtype"])


def state_from(tensors: Tensors, prefix: str) -> LatentState | None:
    """The state stored under `prefix`, None if there is none."""
    given = {name: tensors[f"{prefix}.{name}"] for name in STATE_TENSORS if f"{prefix}.{name}" in tensors}
    return LatentState(**given) if given else None


def video_tools(shape: Iterable[int], fps: float) -> VideoLatentTools:
    return VideoLatentTools(VideoLatentPatchifier(1), VideoLatentShape(*shape), fps)


def perturbation_config(samples: list[list[dict] | None]) -> BatchedPerturbationConfig:
    def of_sample(entries: list[dict] | None) -> PerturbationConfig:
        if entries is None:
            return PerturbationConfig(None)
        return PerturbationConfig([Perturbation(PerturbationType[e["type"]], e["blocks"]) for e in entries])

    return BatchedPerturbationConfig([of_sample(sample) for sample in samples])


def near(name: str, got: torch.Tensor, want: torch.Tensor, loop: bool = False) -> Check:
    """As the README has it: float32 by the maximum; bfloat16 to an ulp, after a loop to 2 % of that."""
    if got.dtype != want.dtype:
        return Check(name, False, f"dtype {got.dtype}, expected {want.dtype}")
    if want.dtype != torch.bfloat16:
        return near_max(name, got, want, FLOAT)
    if loop:
        return near_max(name, got, want, LOOP_BF16)
    if got.shape != want.shape:
        return Check(name, False, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    ulp = torch.exp2(torch.floor(torch.log2(want.double().abs().clamp(min=1e-30))) - 7)
    off = ((got.double() - want.double()).abs() / ulp).max().item()
    return Check(name, off <= 1, f"{off:.2g} ulp (at most 1)")


def same_state(name: str, got: LatentState, want: Tensors) -> Iterator[Check]:
    """Every tensor stored under `name`, held against the state's."""
    for field in STATE_TENSORS:
        tensor, value = want.get(f"{name}.{field}"), getattr(got, field)
        if tensor is None:
            continue
        if value is None:
            yield Check(f"{name}.{field}", False, "missing")
        elif field == "positions":
            yield near_abs(f"{name}.{field}", value, tensor, 1e-6)
            yield equal(f"{name}.{field} dtype", value.dtype, tensor.dtype)
        else:
            yield near(f"{name}.{field}", value, tensor)
