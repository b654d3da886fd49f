"""Trains the latent upsampler: from the latent of a clip at half size to that of the same clip in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.loader import Checkpoint, save_checkpoint
from ltx_core.model.upsampler import LatentUpsamplerConfigurator
from ltx_trainer.cache import LatentCache
from ltx_trainer.config import RunConfig
from ltx_trainer.start import make_part, network_of, version_of
from ltx_trainer.task import Batch, Task

STATISTICS = ("vae.per_channel_statistics.mean-of-means", "vae.per_channel_statistics.std-of-means")


@dataclass(frozen=True, kw_only=True)
class UpsamplerRun(RunConfig):
    """A run of ``upsampler``.

    network: the file's configuration itself, without a section. video_vae: the official-format file that the
    latents were made with. caches: two folders of latents of the same clips, the second with twice the height and
    width of the first. evaluation: two more, which are not trained on; `evaluation_clips` of them are scored.
    """

    video_vae: str
    caches: tuple[str, ...]
    evaluation: tuple[str, ...]


class UpsamplerTask(Task):
    """A network that doubles height and width of un-normalised latents."""

    name = "upsampler"
    config: UpsamplerRun

    def __init__(self, config: UpsamplerRun) -> None:
        super().__init__(config)
        self.network = network_of(config)
        if self.network.get("temporal_upsample") or self.network.get("spatial_scale", 2.0) != 2.0:
            raise ConfigError("[network]: only upsamplers that double height and width can be trained.")
        self.pair, self.evaluation = _pair(config.caches, "caches"), _pair(config.evaluation, "evaluation")
        self.model = make_part(LatentUpsamplerConfigurator, None, config, self.network)
        checkpoint = Checkpoint(config.video_vae)
        if STATISTICS[0] not in checkpoint:
            raise ConfigError(f"video_vae: {config.video_vae} holds no video VAE.")
        self.mean, self.deviation = (checkpoint.read(key).float().view(1, -1, 1, 1, 1) for key in STATISTICS)
        channels = self.pair[0].clips([0])["video"].shape[1]
        if channels != self.mean.shape[1]:
            raise ConfigError(
                f"video_vae: latents of {config.video_vae} have {self.mean.shape[1]} channels, those of "
                f"{config.caches[0]} {channels}; give the file that they were made with."
            )

    def batch(self, stage: int, numbers: Sequence[int], device: torch.device, turn: int = 0) -> Batch:
        """Normalised latents "small" and "large", (B, C, F, H, W) each."""
        return _latents(self.pair, numbers)

    def losses(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        error = self._enlarged(model, batch["small"]) - batch["large"].float()
        return {"loss": error.square().mean() + error.abs().mean(), "mse": error.square().mean()}

    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """ "mse" of normalised latents, and "mse_nearest", of repeating each cell."""
        batch = _latents(self.evaluation, range(self.config.evaluation_clips))
        small, large = (batch[name].to(device).float() for name in ("small", "large"))
        repeated = small.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
        ours = self._enlarged(self.model, small)
        return {"mse": float(F.mse_loss(ours, large)), "mse_nearest": float(F.mse_loss(repeated, large))}

    def export(self, path: Path, device: torch.device) -> None:
        save_checkpoint(path, {"upsampler": self.model}, self.network, version_of(self.config))

    def _enlarged(self, model: nn.Module, small: Tensor) -> Tensor:
        """The network's latent, normalised, float32: pipelines un-normalise before it and normalise after."""
        mean, deviation = self.mean.to(small.device), self.deviation.to(small.device)
        return (model(small.float() * deviation + mean).float() - mean) / deviation


def _pair(folders: Sequence[str], where: str) -> tuple[LatentCache, LatentCache]:
    """Two caches of the same clips. Raises `ConfigError` if they are not, or not of one size and twice that."""
    if len(folders) != 2:
        raise ConfigError(f"{where} are {list(folders)}; give two, of clips in half and in full size.")
    small, large = (LatentCache(folder) for folder in folders)
    doubled = replace(small.config, height=2 * small.config.height, width=2 * small.config.width)
    if doubled != large.config or (small.models, small.source) != (large.models, large.source):
        raise ConfigError(
            f"{where}: {large.folder} does not hold the clips of {small.folder} at twice the height and width, "
            "made with the same encoders; make both with the same `cache` configuration but for the size."
        )
    return small, large


def _latents(pair: tuple[LatentCache, LatentCache], numbers: Sequence[int]) -> Batch:
    return {name: cache.clips(numbers)["video"] for name, cache in zip(("small", "large"), pair)}
