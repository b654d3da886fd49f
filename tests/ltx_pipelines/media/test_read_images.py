"""Pictures to tensors: every kind of file the right way up in RGB, re-compression, scaling."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from ltx_core.errors import InputError, MediaError, MissingMediaError
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

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
PICTURE = np.stack([COLUMNS * 4, ROWS * 5, 255 - COLUMNS * 2], axis=-1).astype(np.uint8)
RGB = Image.fromarray(PICTURE)
GREY = np.array(RGB.convert("L"))


def near(picture, expected, levels) -> None:
    assert picture.dtype == np.uint8
    assert picture.shape == np.shape(expected)
    assert np.abs(picture.astype(int) - expected).max() <= levels


# Kinds of files


# What the first row and the first column of the upright picture are in the stored one, as Exif defines it
ORIENTED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_pictures_stand_upright(orientation, ending, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENTED[orientation](PICTURE)))
    stored.save(tmp_path / f"picture.{ending}", exif=exif, **({"quality": 97} if ending == "jpg" else {}))
    near(decode_image(tmp_path / f"picture.{ending}"), PICTURE, 0 if ending == "png" else 12)


def test_transparency_is_dropped_and_not_blended(tmp_path):
    alpha = np.zeros((48, 64, 1), np.uint8)
    Image.fromarray(np.concatenate([PICTURE, alpha], axis=-1)).save(tmp_path / "clear.png")
    near(decode_image(tmp_path / "clear.png"), PICTURE, 0)


def test_grey_with_transparency(tmp_path):
    grey = Image.fromarray(GREY)
    Image.merge("LA", (grey, Image.new("L", grey.size, 0))).save(tmp_path / "grey.png")
    near(decode_image(tmp_path / "grey.png"), np.repeat(GREY[..., None], 3, axis=-1), 0)


@pytest.mark.parametrize("ending", ["png", "gif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palettes(ending, transparent, tmp_path):
    palette = RGB.quantize(64)
    palette.save(tmp_path / f"few.{ending}", **({"transparency": 3} if transparent else {}))
    near(decode_image(tmp_path / f"few.{ending}"), np.array(palette.convert("RGB")), 0)


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_grey(ending, tmp_path):
    RGB.convert("L").save(tmp_path / f"grey.{ending}")
    near(
        decode_image(tmp_path / f"grey.{ending}"),
        np.repeat(GREY[..., None], 3, -1),
        0 if ending != "jpg" else 4,
    )


def test_black_and_white(tmp_path):
    Image.fromarray(COLUMNS > 20).save(tmp_path / "lines.png")
    near(decode_image(tmp_path / "lines.png"), np.repeat(255 * (COLUMNS > 20)[..., None], 3, -1), 0)


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits(ending, tmp_path):
    deep = (GREY.astype(np.uint16) * 257) + np.where(GREY < 255, 100, 0).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    near(decode_image(tmp_path / f"deep.{ending}"), np.repeat(GREY[..., None], 3, -1), 0)


def test_sixteen_bits_are_rounded(tmp_path):
    Image.fromarray(np.array([[256, 129, 128, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert decode_image(tmp_path / "deep.png")[0, :, 0].tolist() == [1, 1, 0, 255]


def test_floating_point(tmp_path):
    Image.fromarray((GREY / 255).astype(np.float32)).save(tmp_path / "float.tiff")
    near(decode_image(tmp_path / "float.tiff"), np.repeat(GREY[..., None], 3, -1), 0)


@pytest.mark.parametrize("ending", ["jpg", "tiff"])
def test_four_inks(ending, tmp_path):
    inks = RGB.convert("CMYK")
    inks.save(tmp_path / f"print.{ending}", **({"quality": 97} if ending == "jpg" else {}))
    near(
        decode_image(tmp_path / f"print.{ending}"),
        np.array(inks.convert("RGB")),
        0 if ending == "tiff" else 8,
    )


def test_colour_profiles_are_applied(tmp_path):
    swapped = Image.fromarray(np.full((8, 8, 3), (250, 120, 60), np.uint8))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    swapped.save(tmp_path / "srgb.png", icc_profile=lab.tobytes())
    near(decode_image(tmp_path / "srgb.png"), np.array(swapped), 0)
    swapped.save(tmp_path / "wide.png", icc_profile=wide_profile())
    wide = decode_image(tmp_path / "wide.png")[0, 0].astype(int)
    # In a wider space the same numbers mean a more colourful red: more of it, less blue in sRGB.
    assert wide[0] == 255
    assert wide[2] < 50
    swapped.convert("RGBA").save(tmp_path / "transparent.png", icc_profile=wide_profile())
    assert decode_image(tmp_path / "transparent.png")[0, 0].tolist() == wide.tolist()


def wide_profile() -> bytes:
    """sRGB with the primaries of Display P3 under another name."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189)}
    primaries |= {b"bXYZ": (0.1571, 0.06657, 0.78407)}
    for name, values in primaries.items():
        entry = content.find(name)
        offset = int.from_bytes(content[entry + 4 : entry + 8], "big")
        for i, value in enumerate(values):
            content[offset + 8 + 4 * i : offset + 12 + 4 * i] = round(value * 65536).to_bytes(
                4, "big", signed=True
            )
    return bytes(content.replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be")))


def test_a_broken_colour_profile_is_ignored(tmp_path):
    RGB.save(tmp_path / "broken.png", icc_profile=b"nonsense" * 40)
    near(decode_image(tmp_path / "broken.png"), PICTURE, 0)


# Broken files


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_truncated_files(ending, share, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(
        buffer, {"jpg": "jpeg"}.get(ending, ending)
    )
    content = buffer.getvalue()
    (tmp_path / f"cut.{ending}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(MediaError, match=rf"cut\.{ending} cannot be read as an image"):
        decode_image(tmp_path / f"cut.{ending}")


def test_broken_headers_never_raise_anything_else(tmp_path):
    RGB.save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    failures = 0
    for length in range(60):
        (tmp_path / "cut.png").write_bytes(content[:length])
        with pytest.raises(MediaError):
            decode_image(tmp_path / "cut.png")
        failures += 1
    assert failures == 60


@pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF")
def test_a_broken_avif(tmp_path):
    RGB.save(tmp_path / "whole.avif")
    content = (tmp_path / "whole.avif").read_bytes()
    (tmp_path / "broken.avif").write_bytes(content.replace(b"iloc", b"free"))
    with pytest.raises(MediaError, match=r"broken\.avif cannot be read as an image"):
        decode_image(tmp_path / "broken.avif")


def test_a_broken_exif_block(tmp_path):
    RGB.save(tmp_path / "picture.png", exif=b"Exif\0\0MM\0*\0")
    with pytest.raises(MediaError, match=r"picture\.png cannot be read as an image"):
        decode_image(tmp_path / "picture.png")


def test_a_header_that_asks_for_too_much(tmp_path):
    header = (
        b"BM" + (0).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    )
    header += (
        (400_000).to_bytes(4, "little") * 2
        + (1).to_bytes(2, "little")
        + (24).to_bytes(2, "little")
        + bytes(24)
    )
    (tmp_path / "bomb.bmp").write_bytes(header)
    with pytest.raises(MediaError, match="cannot be read as an image"):
        decode_image(tmp_path / "bomb.bmp")


def test_what_is_no_picture(tmp_path):
    (tmp_path / "notes.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    for name in ("notes.png", "folder.png"):
        with pytest.raises(MediaError, match=f"{name} cannot be read as an image"):
            decode_image(tmp_path / name)
    with pytest.raises(MissingMediaError, match="does not exist; check the path"):
        decode_image(tmp_path / "missing.png")


# Re-compression


def test_crf_0_leaves_the_picture(tmp_path):
    assert preprocess(PICTURE, 0) is PICTURE


def test_higher_crf_changes_more():
    errors = [np.abs(preprocess(PICTURE, crf).astype(int) - PICTURE).mean() for crf in (1, 18, 33, 51)]
    assert errors[0] > 0
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[1]


@pytest.mark.parametrize(("size", "expected"), [((47, 63), (46, 62)), ((2, 2), (2, 2)), ((3, 64), (2, 64))])
def test_re_compressed_pictures_have_even_sides(size, expected):
    picture = PICTURE[: size[0], : size[1]]
    compressed = preprocess(picture, 10)
    assert compressed.shape == (*expected, 3)
    assert np.abs(compressed.astype(int) - picture[: expected[0], : expected[1]]).mean() < 12


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux, to take cores from a process")
def test_re_compression_does_not_depend_on_the_number_of_cores():
    picture = np.tile(PICTURE, (4, 4, 1))
    cores = os.sched_getaffinity(0)
    if len(cores) == 1:
        pytest.skip("needs two cores")
    with_all = preprocess(picture, 33)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with_one = preprocess(picture, 33)
    finally:
        os.sched_setaffinity(0, cores)
    assert np.array_equal(with_one, with_all)


@pytest.mark.parametrize("size", [(1, 64), (48, 1), (1, 1), (16, 20000)])
def test_pictures_that_cannot_be_compressed(size):
    with pytest.raises(InputError, match="use crf 0"):
        preprocess(np.zeros((*size, 3), np.uint8), 33)


@pytest.mark.parametrize("crf", [-1, 52, float("nan"), "33", None])
def test_crf_out_of_range(crf):
    with pytest.raises(InputError, match=r"0 .* to 51"):
        preprocess(PICTURE, crf)


def test_a_file_is_compressed_before_it_is_scaled(tmp_path):
    RGB.save(tmp_path / "picture.png")
    sharp = load_image_conditioning(tmp_path / "picture.png", 32, 32, torch.float32, "cpu", crf=0)
    default = load_image_conditioning(tmp_path / "picture.png", 32, 32, torch.float32, "cpu")
    unset = load_image_conditioning(tmp_path / "picture.png", 32, 32, torch.float32, "cpu", crf=None)
    by_hand = torch.from_numpy(preprocess(PICTURE, 33).copy()).float()
    expected = normalize_pixels(resize_and_center_crop(by_hand, 32, 32), torch.float32, "cpu")
    assert torch.equal(default, expected)
    assert torch.equal(unset, default)
    assert not torch.equal(sharp, default)
    assert sharp.shape == (1, 3, 1, 32, 32)
    assert -1 <= sharp.min() < -0.9
    assert 0.8 < sharp.max() <= 1


def test_a_picture_as_a_file_of_one_frame(tmp_path):
    encode_single_frame(str(tmp_path / "one.mp4"), PICTURE[:31, :45], 1)
    near(decode_single_frame(str(tmp_path / "one.mp4")), PICTURE[:30, :44], 24)
    pixels = torch.arange(0, 256, 51)
    levels = torch.tensor([-1.0, -0.6, -0.2, 0.2, 0.6, 1.0], dtype=torch.float64)
    assert torch.allclose(normalize_latent(pixels, "cpu", torch.float64), levels, atol=1e-7)


# Scaling


@pytest.mark.parametrize("target", [(24, 32), (32, 32), (96, 20), (20, 96), (48, 64), (49, 65), (1, 1)])
def test_scaled_pictures_cover_the_target_and_keep_their_aspect(target):
    """On a ramp of x and y, what is cut and how far the picture was scaled can be read off."""
    height, width = target
    ramp = torch.stack([torch.from_numpy(v).float() for v in (ROWS, COLUMNS, ROWS * 0)], dim=-1)
    scaled = resize_and_center_crop(ramp, height, width)
    assert scaled.shape == (1, 3, 1, height, width)
    assert scaled.dtype == torch.float32
    rows, columns = scaled[0, 0, 0], scaled[0, 1, 0]
    scale = max(height / 48, width / 64)
    # Bilinear: away from the borders one pixel is 1 / scale source pixels on.
    if height > 8 and width > 8:
        middle = slice(height // 2 - 2, height // 2 + 3), slice(width // 2 - 2, width // 2 + 3)
        assert torch.allclose(rows[middle].diff(dim=0), torch.tensor(1 / scale), rtol=0.03)
        assert torch.allclose(columns[middle].diff(dim=1), torch.tensor(1 / scale), rtol=0.03)
    # The middle stays the middle, to half a target pixel or so.
    assert abs(rows.mean() - 23.5) <= 1.1 / scale
    assert abs(columns.mean() - 31.5) <= 1.1 / scale


def test_video_is_scaled_like_its_frames():
    frames = torch.randint(0, 256, (3, 17, 23, 3), generator=torch.Generator().manual_seed(0)).float()
    together = resize_and_center_crop(frames, 32, 32)
    alone = torch.cat([resize_and_center_crop(frame, 32, 32) for frame in frames], dim=2)
    assert torch.equal(together, alone)
    assert together.shape == (1, 3, 3, 32, 32)


def test_bytes_are_scaled_to_the_nearest_byte():
    """Not cut off, which would make pictures darker by half a level."""
    picture = torch.from_numpy(PICTURE)
    scaled = resize_and_center_crop(picture, 30, 30)
    assert scaled.dtype == torch.uint8
    off = scaled - resize_and_center_crop(picture.double(), 30, 30)
    assert off.dtype == torch.float64
    assert off.abs().max() < 0.6
    assert abs(off.mean()) < 0.05


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 2, 4, 4, 3)])
def test_other_numbers_of_axes(shape):
    with pytest.raises(InputError, match="3 axes and a video 4"):
        resize_and_center_crop(torch.zeros(shape), 4, 4)


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((48, 64), 32, (24, 32)),
        ((64, 48), 96, (96, 72)),
        ((37, 53), 40, (27, 40)),
        ((100, 2), 20, (20, 1)),
        # 896 / 1280 in floating point is a little less than 0.7, and 720 times it less than 504
        ((720, 1280), 896, (503, 896)),
        ((65, 97), 896, (600, 895)),
    ],
)
def test_the_long_side_decides(size, long_side, expected):
    picture = torch.rand(*size, 3)
    assert resize_aspect_ratio_preserving(picture, long_side).shape == (*expected, 3)
    video = resize_aspect_ratio_preserving(picture.expand(2, -1, -1, -1), long_side)
    assert video.shape == (2, *expected, 3)
    assert torch.equal(video[1], resize_aspect_ratio_preserving(picture, long_side))
