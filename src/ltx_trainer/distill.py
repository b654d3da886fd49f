"""Distils guided sampling into few unguided steps, as a LoRA over the model that it samples from.

Progressive distillation of a guided teacher (Salimans & Ho 2022, arXiv:2202.00512; Meng et al. 2023,
arXiv:2210.03142) on a fixed schedule: from a sample noised to one level of the schedule, the frozen model walks to
the next level in small guided steps, and the student learns the one straight step that ends at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_pipelines.utils.constants import DISTILLED_SIGMA_VALUES, check_schedule
from ltx_trainer.flow import Drawn, NoiseConfig, draw, mean_over
from ltx_trainer.lora import without_lora
from ltx_trainer.task import Batch, weighted
from ltx_trainer.transformer import STREAMS, LatentStage, TransformerRun, TransformerTask


@dataclass(frozen=True, kw_only=True)
class DistillStage(LatentStage):
    """schedules: one for each of `caches`, as for sizes that are only refined; none takes the run's for all."""

    schedules: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedules and len(self.schedules) != len(self.caches):
            raise ConfigError(
                f"stages: there are {len(self.schedules)} schedules for {len(self.caches)} caches; give one for each."
            )
        for schedule in self.schedules:
            check_schedule(schedule, "schedules")


@dataclass(frozen=True, kw_only=True)
class DistillRun(TransformerRun):
    """A run of ``distill``, which needs `start` and a LoRA rank.

    sigmas: the schedule to learn, falling to 0. teacher_steps: of the teacher from one level to the next.
    video_guidance, audio_guidance: the teacher's scale of classifier-free guidance; 1 is none.
    """

    stages: tuple[DistillStage, ...]
    sigmas: tuple[float, ...] = tuple(DISTILLED_SIGMA_VALUES)
    teacher_steps: int = 4
    video_guidance: float = 3.0
    audio_guidance: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lora.rank:
            raise ConfigError("Distillation trains a LoRA; give lora.rank.")
        if self.noise != NoiseConfig():
            raise ConfigError("A distillation draws its levels from sigmas and schedules; leave [noise] out.")
        check_schedule(self.sigmas, "sigmas")
        if self.teacher_steps < 1:
            raise ConfigError(f"teacher_steps is {self.teacher_steps}; it must be 1 or more.")


class _Schedule:
    """Draws levels of a schedule, all but the last alike."""

    def __init__(self, sigmas: tuple[float, ...]) -> None:
        self.sigmas = torch.tensor(sigmas)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float32."""
        last = len(self.sigmas) - 1
        steps = torch.randint(last, (count,), generator=generator, device=generator.device)
        return self.sigmas.to(steps.device)[steps]

    def after(self, level: Tensor) -> Tensor:
        """The levels that follow; 0 stays 0, which is a stream that is given."""
        sigmas = self.sigmas.to(level.device)
        place = (sigmas - level[:, None]).abs().argmin(dim=1)
        return sigmas[(place + 1).clamp(max=len(sigmas) - 1)]


class DistillTask(TransformerTask):
    """The student is the model with the LoRA, the teacher the one without."""

    name = "distilled_lora"
    config: DistillRun

    def batch(self, stage: int, numbers: Sequence[int], device: torch.device, turn: int = 0) -> Batch:
        schedules = self.config.stages[stage].schedules or (self.config.sigmas,)
        return super().batch(stage, numbers, device, turn) | {"sigmas": schedules[turn % len(schedules)]}

    def losses(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        config, schedule = self.config, _Schedule(batch.get("sigmas", self.config.sigmas))
        keyframes = batch["keyframe_indices"]
        drawn = draw(batch, keyframes, batch["fps"], config.tasks, schedule, generator)
        count = len(batch["video"])
        cond, uncond = slice(count), slice(count, None)
        with torch.no_grad(), without_lora(self.model.transformer):
            end = self._walk(batch, drawn, schedule, cond, uncond)
        velocities = model(batch["ids"][cond], batch["mask"][cond], drawn)
        parts = {}
        for name, velocity in zip(STREAMS, velocities):
            begin, stop = drawn.timesteps(name), end.timesteps(name)
            target = (end.noisy(name) - drawn.noisy(name)) / (stop - begin).clamp(max=-1e-6)
            parts[name] = mean_over((velocity.float() - target).square(), begin > 0)
        return weighted(config.loss_weights, parts)

    def _walk(self, batch: Batch, drawn: Drawn, schedule: _Schedule, cond: slice, uncond: slice) -> Drawn:
        """Where the teacher arrives at each sample's next level."""
        scales = {"video": self.config.video_guidance, "audio": self.config.audio_guidance}
        first = drawn.sigma
        last = {name: schedule.after(level) for name, level in first.items()}
        now = drawn
        for step in range(self.config.teacher_steps):
            positive = self.model(batch["ids"][cond], batch["mask"][cond], now)
            negative = self.model(batch["ids"][uncond], batch["mask"][uncond], now)
            share = (step + 1) / self.config.teacher_steps
            sigma = {name: torch.lerp(first[name], last[name], share) for name in STREAMS}
            after = replace(now, sigma=sigma)
            latents = {}
            for name, with_text, without in zip(STREAMS, positive, negative):
                velocity = without.float() + scales[name] * (with_text.float() - without.float())
                step_size = after.timesteps(name) - now.timesteps(name)
                latents[name] = now.noisy(name) + step_size * velocity
            now = replace(after, latents=latents)
        return now
