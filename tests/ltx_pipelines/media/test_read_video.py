"""Video files to frames: turned, uneven, capped, resampled, broken; clips made to fit the model."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from tests.ltx_pipelines.media.making_media import (
    clip_with_late_sound,
    cut_without_encoding,
    moving,
    numbered,
    numbers,
    sound,
    turn,
    write_clip,
    write_sound,
    write_steady,
)

from ltx_core.errors import InputError, MediaError, MissingMediaError
from ltx_pipelines.media.images import resize_and_center_crop
from ltx_pipelines.media.video import (
    decode_video_from_file,
    fitted_clip,
    get_videostream_metadata,
    load_fitted_clip,
    load_video_conditioning,
    picture_start,
    probe_video,
)
from ltx_pipelines.media.writer import encode_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Even: 24 numbered frames at 24 a second. Uneven: a frame that stays for 0.4 s in the middle."""
    folder = tmp_path_factory.mktemp("clips")
    write_steady(folder / "even.mp4", numbered(24))
    write_steady(folder / "even.mkv", numbered(24))
    times = [0, 40, 80, 120, 160, 200, 600, 640, 680, 720, 760]
    write_clip(folder / "uneven.mp4", numbered(11), times)
    write_clip(folder / "uneven.mkv", numbered(11), times)
    write_clip(folder / "late.mkv", numbered(11), [time + 1500 for time in times])
    write_steady(folder / "one.mp4", numbered(1))
    return folder


# What a clip is


def test_a_picture_may_begin_after_its_file(clips, tmp_path):
    for late, start in ((-0.2, 0.2), (0, 0), (0.3, 0)):
        assert picture_start(clip_with_late_sound(tmp_path / "clip.mkv", late)) == pytest.approx(
            start, abs=2e-3
        )
    cut = cut_without_encoding(clips / "even.mp4", tmp_path / "cut.mp4", 5)
    assert picture_start(clips / "late.mkv") == picture_start(cut) == 0  # nothing plays before it


@pytest.mark.parametrize("rate", [23.976, 29.97, 12.5, 60])
def test_a_written_clip_is_what_was_written(rate, tmp_path):
    encode_video(moving(10, 34, 50), rate, sound(1), tmp_path / "clip.mp4")
    clip = probe_video(tmp_path / "clip.mp4")
    assert (clip.frames, clip.height, clip.width) == (10, 34, 50)
    assert abs(clip.fps - rate) < 1e-3
    assert clip.rate in (Fraction(24000, 1001), Fraction(30000, 1001), Fraction(25, 2), 60)
    assert clip.duration == pytest.approx(10 / rate, rel=1e-4)
    assert get_videostream_metadata(tmp_path / "clip.mp4") == (clip.fps, 10, 50, 34)


def test_frames_are_counted_where_the_file_does_not_say(clips):
    assert probe_video(clips / "even.mkv").frames == 24
    assert probe_video(clips / "uneven.mkv").frames == 11


def test_frames_that_are_cut_off_but_stored_do_not_count(clips, tmp_path):
    path = cut_without_encoding(clips / "even.mp4", tmp_path / "cut.mp4", frames=10)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 24
    assert probe_video(path).frames == 14
    clip = fitted_clip(path, "crop")
    assert load_fitted_clip(path, clip, "crop", torch.float32, "cpu").shape == (1, 3, 9, 32, 64)


def test_odd_sizes(tmp_path):
    frames = moving(2, 37, 53)
    write_steady(tmp_path / "odd.mkv", frames)
    read = torch.cat(list(decode_video_from_file(tmp_path / "odd.mkv")))
    assert read.shape == frames.shape
    assert (read.int() - frames.int()).abs().float().mean() < 4
    assert probe_video(tmp_path / "odd.mkv").width == 53


CORNERS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "white": (250, 250, 250)}


def corners(frame: torch.Tensor) -> list[str]:
    """The colours at the top left, top right, bottom left and bottom right."""
    found = [frame[y, x].int() for y in (6, -7) for x in (6, -7)]
    return [min(CORNERS, key=lambda name: (c - torch.tensor(CORNERS[name])).abs().sum()) for c in found]


@pytest.mark.parametrize(
    ("clockwise", "expected"),
    [
        (0, ["red", "green", "blue", "white"]),
        (90, ["blue", "red", "white", "green"]),
        (180, ["white", "blue", "green", "red"]),
        (270, ["green", "white", "red", "blue"]),
    ],
)
def test_turned_clips_stand_upright(clockwise, expected, tmp_path):
    frame = torch.zeros(48, 64, 3, dtype=torch.uint8)
    for name, rows, columns in (
        ("red", slice(24), slice(32)),
        ("green", slice(24), slice(32, 64)),
        ("blue", slice(24, 48), slice(32)),
        ("white", slice(24, 48), slice(32, 64)),
    ):
        frame[rows, columns] = torch.tensor(CORNERS[name], dtype=torch.uint8)
    path = tmp_path / "phone.mp4"
    encode_video(frame.expand(9, -1, -1, -1), 24, None, path)
    if clockwise:
        turn(path, clockwise)
    size = (64, 48) if clockwise % 180 else (48, 64)
    clip = probe_video(path)
    assert (clip.height, clip.width) == size
    read = next(iter(decode_video_from_file(path)))
    assert read.shape == (1, *size, 3)
    assert corners(read[0]) == expected
    pixels = load_video_conditioning(path, *size, 1, torch.float32, "cpu")
    assert corners((pixels[0, :, 0].permute(1, 2, 0) + 1) * 127.5) == expected


# Which frames


@pytest.mark.parametrize(("cap", "count"), [(-1, 24), (0, 24), (1, 1), (9, 9), (24, 24), (99, 24)])
def test_the_cap(cap, count, clips):
    frames = list(decode_video_from_file(clips / "even.mp4", cap))
    assert numbers(frames) == list(range(count))
    assert all(frame.shape == (1, 48, 64, 3) and frame.dtype == torch.uint8 for frame in frames)


def test_frames_can_be_taken_one_by_one(clips):
    frames = decode_video_from_file(clips / "even.mp4")
    assert numbers([next(frames), next(frames)]) == [0, 1]
    frames.close()


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv", "late.mkv"])
def test_uneven_clips_keep_all_frames_unless_a_rate_is_asked_for(name, clips):
    assert numbers(decode_video_from_file(clips / name)) == list(range(11))
    even = numbers(decode_video_from_file(clips / name, fps=25))
    assert even == [0, 1, 2, 3, 4, *[5] * 5, *[6] * 6, 7, 8, 9, 10]


def test_resampling_keeps_the_length(clips):
    path = clips / "even.mp4"
    assert numbers(decode_video_from_file(path, fps=24)) == list(range(24))
    assert numbers(decode_video_from_file(path, fps=12)) == list(range(0, 24, 2))
    for rate in (10, 25, 30, 48, 60):
        read = numbers(decode_video_from_file(path, fps=rate))
        assert len(read) == rate
        apart = [abs(tick / rate - number / 24) for tick, number in enumerate(read) if number < 23]
        assert max(apart) <= 0.5 / 24 + 2e-3


def test_resampling_of_one_frame_is_one_frame(clips):
    assert numbers(decode_video_from_file(clips / "one.mp4", fps=50)) == [0]


def test_resampling_and_the_cap(clips):
    assert numbers(decode_video_from_file(clips / "even.mp4", 3, fps=12)) == [0, 2, 4]


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_rates_that_are_none(rate, clips):
    with pytest.raises(InputError, match="fps"):
        next(decode_video_from_file(clips / "even.mp4", fps=rate))


# Broken files


def test_files_without_video(tmp_path):
    path = write_sound(tmp_path / "tone.wav", "pcm_s16le", "s16", np.zeros((1, 100), np.int16))
    for read in (probe_video, lambda path: next(decode_video_from_file(path))):
        with pytest.raises(MediaError, match="has no video; give a video file"):
            read(path)


def test_formats_without_a_decoder(clips, tmp_path):
    path = tmp_path / "unknown.mp4"
    path.write_bytes((clips / "even.mp4").read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(
        MediaError, match=r"unknown\.mp4 has video in a format that cannot be decoded; convert it"
    ):
        probe_video(path)


def test_files_that_are_no_media(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(os.urandom(3000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    for name, why in (("noise", "decoded"), ("empty", "decoded"), ("text", "decoded")):
        with pytest.raises(MediaError, match=rf"{name}\.mp4 cannot be {why}"):
            probe_video(tmp_path / f"{name}.mp4")
    with pytest.raises(MediaError, match="is a folder"):
        probe_video(tmp_path / "folder.mp4")
    with pytest.raises(MissingMediaError, match="does not exist; check the path"):
        probe_video(tmp_path / "missing.mp4")


@pytest.fixture
def cut(tmp_path):
    """A function that cuts a clip of 41 frames, whose index is at the front, down to a share of its bytes."""
    encode_video(moving(41, 32, 64), 24, sound(2), tmp_path / "cut.mp4")
    content = (tmp_path / "cut.mp4").read_bytes()

    def make(share: float):
        (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * share)])
        return tmp_path / "cut.mp4"

    return make


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("fit", [None, "crop", "pad"])
def test_a_truncated_clip_is_not_taken_for_a_short_one(share, fit, cut):
    path = cut(share)
    with pytest.raises(MediaError, match="is it complete"):
        load_fitted_clip(path, fitted_clip(path, fit), fit, torch.float32, "cpu")


def test_a_clip_without_its_index(cut):
    path = cut(1.0)
    content = path.read_bytes()
    path.write_bytes(content[: content.find(b"moov") + 200])
    with pytest.raises(MediaError, match=r"cannot be decoded|has no video"):
        probe_video(path)


def test_a_clip_without_any_frame(cut):
    path = cut(1.0)
    content = path.read_bytes()
    path.write_bytes(content[: content.find(b"mdat") + 4])
    with pytest.raises(MediaError, match="is it complete"):
        load_fitted_clip(path, fitted_clip(path, "trim"), "trim", torch.float32, "cpu")
    with pytest.raises(MediaError, match=r"no video frames|cannot be decoded"):
        load_video_conditioning(path, 32, 32, 9, torch.float32, "cpu")


def test_a_clip_that_was_never_begun(clips, tmp_path):
    content = (clips / "even.mkv").read_bytes()
    (tmp_path / "bare.mkv").write_bytes(
        content[: content.find(bytes.fromhex("1f43b675"))]
    )  # before the frames
    with pytest.raises(MediaError, match=r"no video frames|is it complete"):
        probe_video(tmp_path / "bare.mkv")


# Conditioning


def test_conditioning_pixels(clips):
    pixels = load_video_conditioning(clips / "even.mp4", 32, 64, 9, torch.float32, "cpu")
    assert pixels.shape == (1, 3, 9, 32, 64)
    levels = (pixels.mean(dim=(0, 1, 3, 4)) + 1) * 127.5
    assert levels.tolist() == pytest.approx([20 + 6 * i for i in range(9)], abs=2)
    assert (
        load_video_conditioning(clips / "even.mp4", 32, 64, 2, torch.bfloat16, "cpu").dtype == torch.bfloat16
    )


def test_conditioning_is_scaled_like_pictures(tmp_path):
    write_steady(tmp_path / "clip.mkv", moving(2, 37, 53))
    frames = torch.cat(list(decode_video_from_file(tmp_path / "clip.mkv")))
    expected = resize_and_center_crop(frames.float(), 32, 64) / 127.5 - 1
    pixels = load_video_conditioning(tmp_path / "clip.mkv", 32, 64, 9, torch.float32, "cpu")
    assert torch.allclose(pixels, expected, atol=1e-6)


# Clips that fit


def make(path, count, height, width):
    write_steady(path, moving(count, height, width))
    return path


@pytest.mark.parametrize(
    ("size", "fit", "expected"),
    [
        ((9, 32, 64), None, (9, 32, 64)),
        ((9, 32, 64), "trim", (9, 32, 64)),
        ((9, 32, 64), "pad", (9, 32, 64)),
        ((1, 32, 64), "crop", (1, 32, 64)),
        ((12, 32, 64), "trim", (9, 32, 64)),
        ((8, 32, 64), "trim", (1, 32, 64)),
        ((12, 48, 70), "crop", (9, 32, 64)),
        ((9, 48, 70), "crop", (9, 32, 64)),
        ((12, 48, 70), "pad", (17, 64, 96)),
        ((2, 20, 30), "pad", (9, 32, 32)),
        ((9, 33, 64), "pad", (9, 64, 64)),
    ],
)
def test_clips_are_made_to_fit(size, fit, expected, tmp_path):
    path = make(tmp_path / "clip.mkv", *size)
    source = torch.cat(list(decode_video_from_file(path))).float() / 127.5 - 1
    clip = fitted_clip(path, fit)
    assert (clip.frames, clip.height, clip.width) == expected
    pixels = load_fitted_clip(path, clip, fit, torch.float32, "cpu")
    assert pixels.shape == (1, 3, *expected)
    frames, height, width = (min(have, want) for have, want in zip(size, expected, strict=True))
    top, left = (size[1] - height) // 2, (size[2] - width) // 2
    kept = source[:frames, top : top + height, left : left + width].permute(3, 0, 1, 2)
    assert torch.allclose(pixels[0, :, :frames, :height, :width], kept, atol=1e-6)
    # Padding repeats the last frame, column and row.
    assert torch.equal(
        pixels[:, :, frames:], pixels[:, :, frames - 1 : frames].expand_as(pixels[:, :, frames:])
    )
    assert torch.equal(pixels[..., width:], pixels[..., width - 1 : width].expand_as(pixels[..., width:]))
    below = pixels[..., height:, :]
    assert torch.equal(below, pixels[..., height - 1 : height, :].expand_as(below))


def test_uneven_clips_keep_their_frames_when_trimmed(clips):
    clip = fitted_clip(clips / "uneven.mp4", "crop")
    pixels = load_fitted_clip(clips / "uneven.mp4", clip, "crop", torch.float32, "cpu")
    assert numbers((pixels[0].permute(1, 2, 3, 0) + 1) * 127.5) == list(range(9))


def test_bfloat16_pixels(tmp_path):
    path = make(tmp_path / "clip.mkv", 1, 32, 32)
    assert load_fitted_clip(path, fitted_clip(path), None, torch.bfloat16, "cpu").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("size", "fit", "sentence"),
    [
        ((12, 32, 64), None, r"12 frames of 64x32; .* e\.g\. 9 of 64x32\. .* \(--fit\) trim, crop or pad"),
        ((9, 48, 64), None, r"9 frames of 64x48; .* e\.g\. 9 of 64x32\. .* \(--fit\) crop or pad"),
        ((12, 48, 64), "trim", r"\(--fit\) crop or pad"),
        ((9, 20, 64), "crop", r"64x20 pixels, .* at least 32x32; use fit \(--fit\) pad"),
        ((9, 64, 20), None, r"20x64 pixels, .* at least 32x32; use fit \(--fit\) pad"),
        ((9, 32, 64), "stretch", "fit is 'stretch'; choose trim, crop or pad"),
    ],
)
def test_clips_that_do_not_fit_say_what_would(size, fit, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        fitted_clip(make(tmp_path / "clip.mkv", *size), fit)


def test_turned_clips_fit_as_they_stand(tmp_path):
    encode_video(moving(9, 32, 64), 24, None, tmp_path / "phone.mp4")
    turn(tmp_path / "phone.mp4", 90)
    clip = fitted_clip(tmp_path / "phone.mp4")
    assert (clip.height, clip.width) == (64, 32)
    assert load_fitted_clip(tmp_path / "phone.mp4", clip, None, torch.float32, "cpu").shape == (
        1,
        3,
        9,
        64,
        32,
    )
