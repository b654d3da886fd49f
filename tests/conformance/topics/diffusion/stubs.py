"""Analytic stand-ins for the transformer in the diffusion goldens, from the formulas in their json files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ltx_core.guidance import BatchedPerturbationConfig, PerturbationType
from ltx_core.types import LatentState, Modality

BLOCKS = 4
Tensors = Mapping[str, torch.Tensor]


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.float().mean(dim=1, keepdim=True)


class AnalyticDenoiser:
    """The denoising function of `loops`; records the schedule position of every call."""

    def __init__(self, constants: dict[str, Any], tensors: Tensors) -> None:
        self.constants, self.tensors = constants, tensors
        self.calls: list[dict[str, Any]] = []

    def __call__(
        self, video_state: LatentState, audio_state: LatentState, sigmas: torch.Tensor, step_index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = sigmas[step_index]
        self.calls.append(
            {
                "sigma": sigma.item(),
                "step_index": step_index,
                "n_sigmas": len(sigmas),
                "sigma_dtype": str(sigmas.dtype),
            }
        )
        v, a = video_state.latent, audio_state.latent
        return self._stream("v", v, a, sigma.float()), self._stream("a", a, v, sigma.float())

    def _stream(self, s: str, own: torch.Tensor, other: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        c = self.constants
        w, cross = (
            self.tensors[f"denoiser.W{s}"],
            self.tensors["denoiser.Wav" if s == "v" else "denoiser.Wva"],
        )
        x = c[f"a_{s}"] * torch.tanh(own.float() @ w) + c[f"b_{s}"] * sigma
        return (x + c[f"c_{s}"] * torch.tanh(_mean(other) @ cross)).to(own.dtype)


class StubTransformer:
    """The x0 transformer of all other files."""

    num_blocks = BLOCKS

    def __init__(self, constants: dict[str, Any], tensors: Tensors) -> None:
        self.constants = constants
        self.weights = {k.removeprefix("stub."): t for k, t in tensors.items() if k.startswith("stub.")}

    def __call__(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        kinds, w = PerturbationType, self.weights
        v = self._stream(
            video,
            audio,
            (w["Wv"], w["Uv"], w["Wav"]),
            (kinds.SKIP_VIDEO_SELF_ATTN, kinds.SKIP_A2V_CROSS_ATTN),
            perturbations,
        )
        a = self._stream(
            audio,
            video,
            (w["Wa"], w["Ua"], w["Wva"]),
            (kinds.SKIP_AUDIO_SELF_ATTN, kinds.SKIP_V2A_CROSS_ATTN),
            perturbations,
        )
        return v, a

    def _stream(
        self,
        own: Modality | None,
        other: Modality | None,
        weights: tuple[torch.Tensor, ...],
        kinds: tuple[PerturbationType, PerturbationType],
        perturbations: BatchedPerturbationConfig | None,
    ) -> torch.Tensor | None:
        if own is None:
            return None
        if not own.enabled:
            return 0.5 * own.latent
        c, (w, u, cross) = self.constants, weights
        keep_self, keep_cross = (_kept(kind, perturbations, own.latent) for kind in kinds)
        x = c["a"] * keep_self * torch.tanh(own.latent.float() @ w) + c["b"] * own.timesteps.float()
        x = x + c["e"] * torch.tanh(_mean(own.context) @ u)
        if other is not None:
            x = x + c["c"] * keep_cross * torch.tanh(_mean(other.latent) @ cross)
        return x.to(own.latent.dtype)


def _kept(
    kind: PerturbationType, perturbations: BatchedPerturbationConfig | None, like: torch.Tensor
) -> torch.Tensor | float:
    """The share of blocks in which an attention is kept, per batch item."""
    if perturbations is None:
        return 1.0
    masks = [perturbations.mask(kind, b, like.device, torch.float32).flatten() for b in range(BLOCKS)]
    return torch.stack(masks).mean(dim=0).view(-1, 1, 1)
