"""The official import path of the media functions."""

from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.images import (
    decode_image,
    decode_single_frame,
    encode_single_frame,
    load_image_conditioning,
    normalize_latent,
    normalize_pixels,
    preprocess,
    resize_and_center_crop,
    resize_aspect_ratio_preserving,
)
from ltx_pipelines.media.video import (
    decode_video_from_file,
    get_videostream_metadata,
    load_video_conditioning,
)
from ltx_pipelines.media.writer import encode_video

__all__ = [
    "decode_audio_from_file",
    "decode_image",
    "decode_single_frame",
    "decode_video_from_file",
    "encode_single_frame",
    "encode_video",
    "get_videostream_metadata",
    "load_image_conditioning",
    "load_video_conditioning",
    "normalize_latent",
    "normalize_pixels",
    "preprocess",
    "resize_and_center_crop",
    "resize_aspect_ratio_preserving",
]
