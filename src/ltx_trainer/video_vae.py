"""Trains the video VAE: pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltx_core.errors import ConfigError
from ltx_core.model.video_vae import (
    VAE_DECODER_COMFY_KEYS_FILTER,
    VAE_ENCODER_COMFY_KEYS_FILTER,
    VideoDecoderConfigurator,
    VideoEncoderConfigurator,
)
from ltx_core.model.video_vae.tiling import SPACE, TIME
from ltx_trainer.autoencoder import AutoencoderRun, AutoencoderTask
from ltx_trainer.world import World


class VideoVAETask(AutoencoderTask):
    """Encoder and decoder of the configuration's ``vae`` section."""

    name, section = "video_vae", "vae"
    parts = {
        "video_encoder": (VideoEncoderConfigurator, VAE_ENCODER_COMFY_KEYS_FILTER),
        "video_decoder": (VideoDecoderConfigurator, VAE_DECODER_COMFY_KEYS_FILTER),
    }

    def __init__(self, config: AutoencoderRun) -> None:
        for stage in config.stages:
            sides = [side / scale for scale in stage.scales for side in (stage.height, stage.width)]
            if any(side % SPACE for side in sides) or stage.frames % TIME != 1:
                raise ConfigError(
                    f"stages: clips of {stage.width}x{stage.height} pixels and {stage.frames} frames do not "
                    f"fit; sides must be multiples of {SPACE}, at all scales, and frames {TIME}k + 1."
                )
        super().__init__(config)

    def clips(self, world: World, numbers: Sequence[int]) -> Tensor:
        """uint8 (B, F, H, W, 3)."""
        return world.frames([world.truth(number) for number in numbers])

    def prepare(self, clips: Tensor) -> Tensor:
        """float32 (B, 3, F, H, W) in [-1, 1]."""
        return to_pixels(clips)

    def tokens(self, latent: Tensor) -> Tensor:
        """(B, C, F, H, W) to (B F H W, C)."""
        return latent.movedim(1, -1).flatten(0, -2)

    def score(self, output: Tensor, target: Tensor) -> dict[str, float]:
        """ "psnr": dB, of the mean squared error over all clips."""
        return {"psnr": float(10 * torch.log10(4 / F.mse_loss(output.clamp(-1, 1), target)))}


def to_pixels(frames: Tensor) -> Tensor:
    """uint8 (B, F, H, W, 3) to float32 (B, 3, F, H, W) in [-1, 1]."""
    return frames.movedim(-1, 1).float().div_(127.5).sub_(1)
