"""Which attentions a pass leaves out, per sample and block, for guidance to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch


class PerturbationType(Enum):
    """The attentions of a block that can be left out."""

    SKIP_A2V_CROSS_ATTN = "skip_a2v_cross_attn"
    SKIP_V2A_CROSS_ATTN = "skip_v2a_cross_attn"
    SKIP_VIDEO_SELF_ATTN = "skip_video_self_attn"
    SKIP_AUDIO_SELF_ATTN = "skip_audio_self_attn"


@dataclass(frozen=True)
class Perturbation:
    """One kind of perturbation in the given blocks; None means every block, an empty list none."""

    type: PerturbationType
    blocks: Sequence[int] | None

    def is_perturbed(self, perturbation_type: PerturbationType, block: int) -> bool:
        return self.type == perturbation_type and (self.blocks is None or block in self.blocks)


@dataclass(frozen=True)
class PerturbationConfig:
    """The perturbations of one sample; None or an empty list leaves it as it is."""

    perturbations: Sequence[Perturbation] | None

    @staticmethod
    def empty() -> PerturbationConfig:
        return PerturbationConfig([])

    def is_perturbed(self, perturbation_type: PerturbationType, block: int) -> bool:
        return any(p.is_perturbed(perturbation_type, block) for p in self.perturbations or ())


@dataclass(frozen=True)
class BatchedPerturbationConfig:
    """The perturbations of a batch, one entry per sample; a single entry holds for all of them.

    num_blocks, device, dtype: of the official 1.2.0, which makes its masks beforehand; here without effect.
    """

    perturbations: Sequence[PerturbationConfig]
    num_blocks: int | None = field(default=None, compare=False)
    device: torch.device | str | None = field(default=None, compare=False)
    dtype: torch.dtype | None = field(default=None, compare=False)

    @staticmethod
    def empty(
        batch_size: int = 1,
        num_blocks: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> BatchedPerturbationConfig:
        return BatchedPerturbationConfig([PerturbationConfig.empty()] * batch_size, num_blocks, device, dtype)

    def batch_slice(self, start: int, end: int) -> BatchedPerturbationConfig:
        """The perturbations of the samples from `start` up to `end`."""
        is_shared = len(self.perturbations) == 1
        return self if is_shared else replace(self, perturbations=self.perturbations[start:end])

    def any_in_batch(self, perturbation_type: PerturbationType, block: int) -> bool:
        return any(sample.is_perturbed(perturbation_type, block) for sample in self.perturbations)

    def all_in_batch(self, perturbation_type: PerturbationType, block: int) -> bool:
        return all(sample.is_perturbed(perturbation_type, block) for sample in self.perturbations)

    def mask(
        self,
        perturbation_type: PerturbationType,
        block: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """(n,) with 1 for samples to keep and 0 for perturbed ones."""
        keep = [float(not sample.is_perturbed(perturbation_type, block)) for sample in self.perturbations]
        return torch.tensor(keep, device=device, dtype=dtype)

    def mask_like(
        self, perturbation_type: PerturbationType, block: int, values: torch.Tensor
    ) -> torch.Tensor:
        """`mask` with the device and dtype of `values`, shaped (n, 1, ..., 1) to multiply it."""
        mask = self.mask(perturbation_type, block, values.device, values.dtype)
        return mask.view(-1, *[1] * (values.ndim - 1))

    def keeps(self, num_blocks: int, like: torch.Tensor) -> list[dict[PerturbationType, bool | torch.Tensor]]:
        """What each block keeps of each kind of attention.

        True if no sample is perturbed, False if all are (nothing to compute), else `mask_like` (n, 1, 1): one
        tensor for all masks of the same values, since making one waits for the device.
        """
        masks: dict[tuple[bool, ...], torch.Tensor] = {}

        def keep(kind: PerturbationType, block: int) -> bool | torch.Tensor:
            kept = tuple(not sample.is_perturbed(kind, block) for sample in self.perturbations)
            if all(kept) or not any(kept):
                return all(kept)
            if kept not in masks:
                masks[kept] = self.mask_like(kind, block, like)
            return masks[kept]

        return [{kind: keep(kind, block) for kind in PerturbationType} for block in range(num_blocks)]
