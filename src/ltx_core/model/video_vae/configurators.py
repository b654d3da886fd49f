"""From a checkpoint's configuration to the two halves of the video VAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltx_core.config import Configurator, section_of
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
    def from_config(cls, config: Mapping[str, Any]) -> VideoDecoder:
        return VideoDecoder(VideoVAEConfig.from_config(config))

    @classmethod
    def completed(cls, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> Mapping[str, Any]:
        """The first width is the file's: no key of the configuration states it."""
        width, *_ = shapes.get("conv_in.conv.weight") or (None,)
        return {**config, "vae": {**section_of(config, "vae"), "decoder_bottleneck_channels": width}}
