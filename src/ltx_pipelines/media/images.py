"""Images to tensors: reading, re-compression, resizing."""

from __future__ import annotations

import io
import math
import struct
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from ltx_core.errors import InputError, MediaError, MissingMediaError
from ltx_pipelines.utils.constants import DEFAULT_IMAGE_CRF

if TYPE_CHECKING:
    from PIL import Image

# Pillow's readers raise whatever they stumble over in a broken file, or in its EXIF block.
STUMBLES = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, RuntimeError, struct.error)


def decode_image(image_path: str | Path) -> np.ndarray:
    """A picture as uint8 (H, W, 3) in sRGB, upright by its EXIF orientation. Transparency is dropped, not blended.

    Raises `MediaError` for a file that is no picture, `MissingMediaError` (a FileNotFoundError) for a missing one.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(image_path) as image:
            upright = _without_alpha(ImageOps.exif_transpose(image))
            return np.array(_in_srgb(upright) or _to_rgb(upright))
    except FileNotFoundError:
        raise MissingMediaError(f"{image_path} does not exist; check the path.") from None
    except (*STUMBLES, Image.DecompressionBombError) as error:
        raise MediaError(f"{image_path} cannot be read as an image ({error}).") from None


def _without_alpha(image: Image.Image) -> Image.Image:
    """The colours of an RGBA picture as they stand, also where it is transparent; others as they are."""
    from PIL import Image as PILImage

    if image.mode != "RGBA":
        return image
    opaque = PILImage.merge("RGB", image.split()[:3])
    opaque.info = image.info
    return opaque


def _in_srgb(image: Image.Image) -> Image.Image | None:
    """The picture converted by the colour profile it carries; None without one that applies."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK"):
        return None
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImportError, OSError, ImageCms.PyCMSError):  # a Pillow without LittleCMS, or a broken profile
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scaled = values / 257 if image.mode != "F" else values * 255
        from PIL import Image as PILImage

        image = PILImage.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))
    return image.convert("RGBA").convert("RGB") if image.mode in ("P", "LA", "PA") else image.convert("RGB")


def preprocess(image: np.ndarray, crf: float = DEFAULT_IMAGE_CRF) -> np.ndarray:
    """The picture after one H.264 intra frame at `crf`, as video frames in training were; crf 0 leaves it.

    image: uint8 (H, W, 3), cropped to even sides. Raises `InputError` for another crf than 0 to 51, and for a
    picture that is too thin or too large.
    """
    if crf == 0:
        return image
    if not (isinstance(crf, Real) and 0 < crf <= 51):
        raise InputError(f"crf is {crf}; give 0 (the picture stays) to 51 (coarsest).")
    import av

    height, width = image.shape[:2]
    refusal = f"A picture of {width}x{height} pixels cannot be compressed"
    if min(height, width) < 2:
        raise InputError(f"{refusal}; use crf 0.")
    try:
        with io.BytesIO() as file:
            encode_single_frame(file, image, crf)
            file.seek(0)
            return decode_single_frame(file)
    except av.FFmpegError as error:
        raise InputError(f"{refusal} ({error.strerror}); use crf 0.") from None


def encode_single_frame(output_file: str | BinaryIO, image_array: np.ndarray, crf: float) -> None:
    """Write a picture, uint8 (H, W, 3), as an MP4 of one H.264 frame; without an odd last row or column."""
    import av

    height, width = (side // 2 * 2 for side in image_array.shape[:2])
    with av.open(output_file, "w", format="mp4") as container:
        # A slice for each thread: with as many as there are cores, another machine would give other pixels.
        options = {"crf": str(crf), "preset": "veryfast", "threads": "2"}
        stream = container.add_stream("libx264", rate=1, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_array[:height, :width]), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode_single_frame(video_file: str | BinaryIO) -> np.ndarray:
    """The first frame of a video, uint8 (H, W, 3)."""
    import av

    with av.open(video_file, "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def resize_and_center_crop(tensor: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale to cover height x width, crop the middle: (H, W, C) or (F, H, W, C) to (1, C, F, h, w).

    Bilinear without antialiasing, as in training; in the dtype of `tensor`, which is uint8 or a floating one.
    Raises `InputError` for another number of axes.
    """
    if tensor.dim() not in (3, 4):
        raise InputError(f"An image has 3 axes and a video 4, not {tensor.dim()}.")
    frames = tensor[None] if tensor.dim() == 3 else tensor
    frames = frames.permute(0, 3, 1, 2)
    source_height, source_width = frames.shape[-2:]
    scale = max(height / source_height, width / source_width)
    size = (math.ceil(source_height * scale), math.ceil(source_width * scale))
    frames = torch.nn.functional.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return frames[:, :, top : top + height, left : left + width].transpose(0, 1)[None]


def resize_aspect_ratio_preserving(image: torch.Tensor, long_side: int) -> torch.Tensor:
    """An image (H, W, C) or video (F, H, W, C), its long side scaled to `long_side`; same layout and dtype."""
    height, width = image.shape[-3:-1]
    scale = long_side / max(height, width)  # by this number, or the sides are cut to whole pixels differently
    target = max(int(height * scale), 1), max(int(width * scale), 1)
    resized = resize_and_center_crop(image, *target)[0].permute(1, 2, 3, 0)
    return resized[0] if image.dim() == 3 else resized


def normalize_latent(latent: torch.Tensor, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """`normalize_pixels`, as it was called in v1.0.0."""
    return normalize_pixels(latent, dtype, device)


def normalize_pixels(pixels: torch.Tensor, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """0..255 to [-1, 1]."""
    return (pixels / 127.5 - 1.0).to(device=device, dtype=dtype)


def load_image_conditioning(
    image_path: str | Path,
    height: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device | str,
    crf: float | None = DEFAULT_IMAGE_CRF,
) -> torch.Tensor:
    """A picture as pixels (1, 3, 1, height, width) in [-1, 1]: re-compressed, scaled to cover, cropped."""
    compressed = preprocess(decode_image(image_path), DEFAULT_IMAGE_CRF if crf is None else crf)
    pixels = torch.from_numpy(np.ascontiguousarray(compressed)).float()
    return normalize_pixels(resize_and_center_crop(pixels, height, width), dtype, device)
