"""What the exchangeable parts of a sampler have to offer."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ltx_core.types import AudioLatentShape, VideoLatentShape


class Patchifier(Protocol):
    """Turns a latent grid into a sequence of tokens and back."""

    @property
    def patch_size(self) -> tuple[int, int, int]: ...

    def patchify(self, latents: torch.Tensor) -> torch.Tensor: ...

    def unpatchify(self, latents: torch.Tensor, output_shape: Any) -> torch.Tensor: ...

    def get_token_count(self, tgt_shape: Any) -> int: ...

    def get_patch_grid_bounds(
        self, output_shape: AudioLatentShape | VideoLatentShape, device: torch.device | None = None
    ) -> torch.Tensor: ...


class SchedulerProtocol(Protocol):
    """Makes a schedule: descending noise levels (steps + 1,), float32, the last one 0."""

    def execute(self, steps: int, **kwargs: Any) -> torch.Tensor: ...


class GuiderProtocol(Protocol):
    """Guidance with one scale: `delta` is what to add to the conditional estimate."""

    def enabled(self) -> bool: ...

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor: ...


class DiffusionStepProtocol(Protocol):
    """Moves a sample from noise level ``sigmas[step_index]`` to the next one."""

    def step(
        self,
        sample: torch.Tensor,
        denoised_sample: torch.Tensor,
        sigmas: torch.Tensor,
        step_index: int,
        **kwargs: Any,
    ) -> torch.Tensor: ...
