"""From a checkpoint's configuration to the two halves of the video VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltx_core.config import Configurator
from ltx_core.model.video_vae.config import VideoVAEConfig
from ltx_core.model.video_vae.decoder import VideoDecoder
from ltx_core.model.video_vae.encoder import VideoEncoder


class VideoEncoderConfigurator(Configurator[VideoEncoder]):
    """Makes a `VideoEncoder` from a checkpoint's whole configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoEncoder:
        return VideoEncoder(VideoVAEConfig.from_config(config))


class VideoDecoderConfigurator(Configurator[VideoDecoder]):
    """Makes a `VideoDecoder` from a checkpoint's whole configuration."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], bottleneck_channels: int | None = None) -> VideoDecoder:
        """bottleneck_channels: the first width, where the file is known to have another than 8 x base."""
        return VideoDecoder(VideoVAEConfig.from_config(config), bottleneck_channels)
