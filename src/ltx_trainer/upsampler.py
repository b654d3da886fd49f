"""Trains the latent upsampler: from the latent of a clip at half size to that of the same clip in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, build_model, save_checkpoint
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_core.model.video_vae import VAE_ENCODER_COMFY_KEYS_FILTER, VideoEncoderConfigurator
from ltx_core.sd_ops import SDOps
from ltx_trainer.config import RunConfig
from ltx_trainer.start import make_part
from ltx_trainer.task import Batch, Task
from ltx_trainer.video_vae import SPACE, to_pixels
from ltx_trainer.world import World

EVERYTHING = SDOps("upsampler").with_matching()


@dataclass(frozen=True, kw_only=True)
class UpsamplerRun(RunConfig):
    """A run of ``upsampler``; the sides of its stages are those of the larger clips.

    network: the file's configuration itself, without a section. video_vae: an official-format file.
    """

    video_vae: str
    evaluation_clips: int = 16


class UpsamplerTask(Task):
    """A network that doubles height and width of un-normalised latents."""

    name = "upsampler"
    config: UpsamplerRun

    def __init__(self, config: UpsamplerRun) -> None:
        for stage in config.stages:
            if stage.height % (2 * SPACE) or stage.width % (2 * SPACE):
                raise ConfigError(
                    f"stages: {stage.width}x{stage.height} pixels cannot be halved; sides must be multiples of "
                    f"{2 * SPACE}."
                )
        super().__init__(config)
        self.network = config.network if config.start is None else Checkpoint(config.start).config
        if self.network.get("temporal_upsample") or self.network.get("spatial_scale", 2.0) != 2.0:
            raise ConfigError("[network]: only upsamplers that double height and width can be trained.")
        self.model = make_part(LatentUpsamplerConfigurator, EVERYTHING, config, self.network)
        checkpoint = Checkpoint(config.video_vae)
        if "vae" not in checkpoint.config:
            raise ConfigError(f"video_vae: {config.video_vae} holds no video VAE.")
        self.encoder: Any = build_model(
            VideoEncoderConfigurator, checkpoint, VAE_ENCODER_COMFY_KEYS_FILTER, "cpu", torch.float32
        )

    def clips(self, world: World, numbers: Sequence[int]) -> Batch:
        """uint8 "large" (B, F, H, W, 3), and "small", the same scenes drawn at half the size."""
        half = world.resized(world.config.height // 2, world.config.width // 2)
        truths = [world.truth(number) for number in numbers]
        return {"large": world.frames(truths), "small": half.frames(truths)}

    def losses(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        small, large = (self._latent(batch[name]) for name in ("small", "large"))
        scale = self._deviation(large)
        error = (model(small).float() - large) / scale
        return {"loss": error.square().mean() + error.abs().mean(), "mse": error.square().mean()}

    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """ "mse" of normalised latents, and "mse_nearest", of repeating each cell."""
        ours, nearest = [], []
        for batch in self.some(stage, "test", self.config.evaluation_clips, device):
            small, large = (self._latent(batch[name]) for name in ("small", "large"))
            scale = self._deviation(large)
            ours.append(F.mse_loss(self.model(small).float() / scale, large / scale))
            repeated = small.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
            nearest.append(F.mse_loss(repeated / scale, large / scale))
        return {"mse": float(torch.stack(ours).mean()), "mse_nearest": float(torch.stack(nearest).mean())}

    def export(self, path: Path, device: torch.device) -> None:
        save_checkpoint(path, {"upsampler": self.model}, self.network, self.config.model_version)

    @torch.no_grad()
    def _latent(self, frames: Tensor) -> Tensor:
        """Un-normalised means."""
        return self.encoder.to(frames.device).encode_moments(to_pixels(frames))[0]

    def _deviation(self, latent: Tensor) -> Tensor:
        return self.encoder.per_channel_statistics.get_buffer("std-of-means").view(1, -1, 1, 1, 1).to(latent)
