"""The video VAE: pixels to latents and back, whole or in tiles."""

from ltx_core.model.video_vae.configurators import VideoDecoderConfigurator, VideoEncoderConfigurator
from ltx_core.model.video_vae.decoder import VideoDecoder, decode_video
from ltx_core.model.video_vae.encoder import VideoEncoder
from ltx_core.model.video_vae.tiling import (
    AUTO_TILING,
    SOURCE_TILING,
    AnyTiling,
    AutoTiling,
    DimensionSizeConfig,
    SpatialTilingConfig,
    TemporalTilingConfig,
    TileSizeConfig,
    TilingConfig,
    get_video_chunks_number,
)
from ltx_core.sd_ops import VAE_DECODER_COMFY_KEYS_FILTER, VAE_ENCODER_COMFY_KEYS_FILTER

__all__ = [
    "AUTO_TILING",
    "SOURCE_TILING",
    "VAE_DECODER_COMFY_KEYS_FILTER",
    "VAE_ENCODER_COMFY_KEYS_FILTER",
    "AnyTiling",
    "AutoTiling",
    "DimensionSizeConfig",
    "SpatialTilingConfig",
    "TemporalTilingConfig",
    "TileSizeConfig",
    "TilingConfig",
    "VideoDecoder",
    "VideoDecoderConfigurator",
    "VideoEncoder",
    "VideoEncoderConfigurator",
    "decode_video",
    "get_video_chunks_number",
]
