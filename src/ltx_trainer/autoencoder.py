"""What training a video VAE and an audio VAE have in common."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltx_core.loader import Checkpoint, save_checkpoint, write_tensors
from ltx_core.sd_ops import SDOps
from ltx_trainer.cache import fingerprint
from ltx_trainer.config import WorldRun, require_positive
from ltx_trainer.start import make_part, read_network, version_of
from ltx_trainer.task import WorldTask, weighted

LOG_VARIANCE_RANGE = (-30.0, 20.0)
STATISTICS = "statistics.safetensors"  # beside the file that is written
LEAST_DEVIATION = 1e-4  # of a latent channel that never varies


@dataclass(frozen=True)
class ReconstructionConfig:
    """Weights of the terms. edges: mean absolute error of differences between neighbours; kl: divergence."""

    l1: float = 1.0
    mse: float = 1.0
    edges: float = 0.0
    kl: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(WorldRun):
    """A run of ``video-vae`` or ``audio-vae``; of the latter's stages only frames / fps counts.

    train_encoder: False trains the decoder alone, so that latents keep their meaning. measure_statistics:
    whether the file gets the latents' mean and deviation as measured at the end over `statistics_clips`, or
    keeps those that the run began with; by default the former if the encoder is trained.
    """

    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    train_encoder: bool = True
    measure_statistics: bool | None = None
    evaluation_clips: int = 16
    statistics_clips: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("", self, names=("statistics_clips",))


class Autoencoder(nn.Module):
    """Encoder and decoder with the draw of the latent between them."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(reconstruction of x, divergence of its latent); without a generator, from the means."""
        mean, log_variance = self.encoder.encode_moments(x)
        latent, divergence = mean, mean.new_zeros(())
        if generator is not None:
            latent, divergence = sample_latent(mean, log_variance, generator)
        return self.decoder(self.encoder.per_channel_statistics.normalize(latent)), divergence


def sample_latent(mean: Tensor, log_variance: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(a draw from the normal distribution, its divergence from the standard one, mean over elements)."""
    mean, log_variance = mean.float(), log_variance.float().clamp(*LOG_VARIANCE_RANGE)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return mean + noise * (0.5 * log_variance).exp(), divergence


def edge_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbours along the last two axes."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


class AutoencoderTask(WorldTask):
    """Trains the two halves that a section of the configuration describes."""

    config: AutoencoderRun
    section: str  # of the configuration
    parts: Mapping[str, tuple[Any, SDOps]]  # component of the file -> (configurator, key map), encoder first

    def __init__(self, config: AutoencoderRun) -> None:
        super().__init__(config)
        self.network = read_network(config, self.section)
        encoder, decoder = (make_part(*part, config, self.network) for part in self.parts.values())
        encoder.requires_grad_(config.train_encoder)
        self.model: Autoencoder = Autoencoder(encoder, decoder)

    @abstractmethod
    def prepare(self, clips: Tensor) -> Tensor:
        """From clips to what the encoder takes."""

    @abstractmethod
    def tokens(self, latent: Tensor) -> Tensor:
        """A latent as rows (N, D) with one column for each of the statistics' values."""

    @abstractmethod
    def score(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """How good reconstructions are."""

    def losses(self, model: nn.Module, batch: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        target = self.prepare(batch)
        output, divergence = model(target, generator)
        output = output.float()
        parts = {"l1": F.l1_loss(output, target), "mse": F.mse_loss(output, target), "kl": divergence}
        if self.config.loss.edges:
            parts["edges"] = edge_loss(output, target)
        return weighted(vars(self.config.loss), parts)

    def evaluate(self, stage: int, device: torch.device) -> dict[str, float]:
        """Scores of clips of the "test" split, decoded from the means, at each of the stage's sizes."""
        scores: dict[str, float] = {}
        for scale in self.config.stages[stage].scales:
            clips = self.some(stage, "test", self.config.evaluation_clips, device, scale)
            targets = [self.prepare(batch) for batch in clips]
            outputs = [self.model(target)[0].float() for target in targets]
            found = self.score(torch.cat(outputs), torch.cat(targets))
            scores |= {name if scale == 1 else f"{name}/{scale}": value for name, value in found.items()}
        return scores

    def _statistics(self, folder: Path, device: torch.device) -> dict[str, Tensor]:
        """ "deviation" and "mean" of each latent value over clips of the last stage, in all its sizes.

        They are kept in `folder`, and measured again for another encoder or other clips only.
        """
        last, count, path = len(self.config.stages) - 1, self.config.statistics_clips, folder / STATISTICS
        scales = self.config.stages[last].scales
        worlds = [vars(self.world(last, "cpu", scale=scale).config) for scale in scales]
        of = {"encoder": fingerprint(self.model.encoder), "clips": json.dumps([count, *worlds])}
        if not path.is_file() or Checkpoint(path).metadata != of:
            found = []
            for scale in scales:
                for batch in self.some(last, "train", count, device, scale):
                    mean, _ = self.model.encoder.encode_moments(self.prepare(batch))
                    found.append(self.tokens(mean.float()))
            deviation, mean = torch.std_mean(torch.cat(found), dim=0)
            write_tensors(path, {"deviation": deviation, "mean": mean}, of)
        return {name: Checkpoint(path).read(name) for name in ("deviation", "mean")}

    def export(self, path: Path, device: torch.device) -> None:
        halves, measure = (self.model.encoder, self.model.decoder), self.config.measure_statistics
        if self.config.train_encoder if measure is None else measure:
            found = self._statistics(path.parent, device)
            for half in halves:
                statistics = half.per_channel_statistics
                statistics.get_buffer("mean-of-means").copy_(found["mean"])
                statistics.get_buffer("std-of-means").copy_(found["deviation"].clamp(min=LEAST_DEVIATION))
        save_checkpoint(path, dict(zip(self.parts, halves)), self.network, version_of(self.config))
