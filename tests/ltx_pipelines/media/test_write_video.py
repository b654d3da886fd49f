"""Frames and sound to a file: rates, lengths, colours, sound, settings."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from tests.ltx_pipelines.media.making_media import moving, numbered, numbers, sine, sound, streams

from ltx_core.errors import InputError
from ltx_core.types import Audio
from ltx_pipelines.media import writer
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.video import decode_video_from_file
from ltx_pipelines.media.writer import encode_video, exact_rate, read_settings, to_int16

RATES = [
    (23.976, Fraction(24000, 1001)),
    (23.98, Fraction(24000, 1001)),
    (24000 / 1001, Fraction(24000, 1001)),
    (29.97, Fraction(30000, 1001)),
    (59.94, Fraction(60000, 1001)),
    (119.88, Fraction(120000, 1001)),
    (12.5, Fraction(25, 2)),
    (24, Fraction(24)),
    (30.0, Fraction(30)),
    (0.5, Fraction(1, 2)),
    (14.4, Fraction(72, 5)),
]


# Rates and lengths


@pytest.mark.parametrize(("decimal", "exact"), RATES)
def test_a_decimal_number_stands_for_an_exact_rate(decimal, exact):
    assert exact_rate(decimal) == exact


@pytest.mark.parametrize("rate", [0, -24, 1e-9, 1e9, float("nan"), float("inf"), "24", None])
def test_a_rate_that_is_none_is_refused_before_any_work(rate, tmp_path):
    with pytest.raises(InputError, match="frame rate"):
        encode_video(untouchable(), rate, None, tmp_path / "out.mp4")


@pytest.mark.parametrize("rate", [23.976, 29.97, 59.94, 12.5, 25])
@pytest.mark.parametrize("count", [1, 2, 3, 9, 26])
def test_picture_and_sound_are_equally_long(rate, count, tmp_path):
    exact = exact_rate(rate)
    encode_video(moving(count), rate, sound(count / rate + 0.1), tmp_path / "out.mp4")
    file = streams(tmp_path / "out.mp4")
    assert file.rate == exact
    assert file.times == [Fraction(i) / exact for i in range(count)]
    assert abs(file.seconds - count / exact) <= Fraction(1, 48000)
    assert abs(file.sound_seconds - count / exact) <= Fraction(1, 48000)


def test_the_length_of_a_silent_video_is_exact(tmp_path):
    encode_video(moving(7), 23.976, None, tmp_path / "out.mp4")
    file = streams(tmp_path / "out.mp4")
    assert file.sound_rate is None
    assert abs(file.seconds - 7 * Fraction(1001, 24000)) < Fraction(1, 24000)


def test_no_frame_is_dropped_though_frames_are_reordered(tmp_path):
    encode_video(numbered(30), 24, None, tmp_path / "out.mp4")
    file = streams(tmp_path / "out.mp4")
    assert "B" in file.kinds
    assert numbers(torch.from_numpy(np.stack(file.frames))) == list(range(30))


def test_chunks_of_any_length_make_one_video(tmp_path):
    frames, calls = numbered(20), []
    pieces = [frames[:1], frames[1:1], frames[1:9], frames[9:12], frames[12:]]
    encode_video(iter(pieces), 8, None, tmp_path / "pieces.mp4", 4, on_chunk=calls.append)
    encode_video(frames, 8, None, tmp_path / "whole.mp4")
    assert numbers(decode_video_from_file(tmp_path / "pieces.mp4")) == list(range(20))
    assert (tmp_path / "pieces.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert calls == [0, 1, 2, 3]


def test_chunks_are_read_one_at_a_time(tmp_path):
    log = []

    def chunks():
        for number in range(3):
            log.append(f"read {number}")
            yield moving(2)

    encode_video(
        chunks(), 24, None, tmp_path / "out.mp4", on_chunk=lambda number: log.append(f"write {number}")
    )
    assert log == ["read 0", "write 0", "read 1", "write 1", "read 2", "write 2"]


def test_picture_and_sound_lie_side_by_side_in_the_file(tmp_path):
    """However long a chunk is: players read from the beginning, and FFmpeg itself sorts 10 s only."""
    encode_video(moving(60, 16, 16), 2, sound(30, 8000), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [(p.pos, p.stream.type, float(p.pts * p.time_base)) for p in container.demux() if p.pos]
    times = {"video": 0.0, "audio": 0.0}
    apart = []
    for _, kind, time in sorted(packets):
        times[kind] = time
        apart.append(abs(times["video"] - times["audio"]))
    assert len(packets) > 100
    # Frames half a second long, up to three of them out of order
    assert max(apart) < 3


def test_the_index_is_at_the_front(tmp_path):
    encode_video(moving(3), 24, sound(1), tmp_path / "out.mp4")
    content = (tmp_path / "out.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def untouchable():
    """Frames that must not be asked for."""
    raise AssertionError("the frames were read")
    yield


# Pixels


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (1, 1), (2, 130)])
def test_odd_sizes_are_continued_by_a_row_or_column(height, width, tmp_path):
    encode_video(moving(3, height, width), 24, sound(1), tmp_path / "out.mp4", crf="1")
    file = streams(tmp_path / "out.mp4")
    assert [frame.shape for frame in file.frames] == [(height + height % 2, width + width % 2, 3)] * 3
    if height > 2:
        assert (
            np.abs(file.frames[0].astype(int)[:height, :width] - moving(1, height, width)[0].numpy()).mean()
            < 3
        )
    if width % 2 and width > 2:
        assert np.abs(file.frames[0][:, -1].astype(int) - file.frames[0][:, -2]).mean() < 3


COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (90, 90, 90), "red": (230, 20, 30)}
COLOURS |= {"green": (20, 200, 40), "blue": (30, 40, 220), "skin": (224, 172, 140)}


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_come_back_within_a_few_levels(colour, tmp_path):
    frames = torch.tensor(COLOURS[colour], dtype=torch.uint8).expand(2, 48, 64, 3)
    encode_video(frames, 24, None, tmp_path / "out.mp4")
    read = next(iter(decode_video_from_file(tmp_path / "out.mp4")))[0]
    assert (read.int() - frames[0].int()).abs().max() <= 4


def test_the_file_says_that_it_is_bt709_limited_and_is(tmp_path):
    frames = torch.tensor((230, 20, 30), dtype=torch.uint8).expand(2, 48, 64, 3)
    encode_video(frames, 24, None, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        tags = context.color_range, context.colorspace, context.color_primaries, context.color_trc
        frame = next(container.decode(video=0))
    assert [int(tag) for tag in tags] == [1, 1, 1, 1]
    assert frame.format.name == "yuv420p"
    red, green, blue = 230 / 255, 20 / 255, 30 / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[10, 10] for plane in frame.planes]
    assert np.abs(np.array(planes, int) - expected).max() <= 2


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv"])
def test_the_same_frames_make_the_same_bytes(ending, tmp_path):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (24, 48, 64, 3), generator=generator, dtype=torch.uint8)
    for name in ("a", "b"):
        encode_video(frames.clone(), 24, sound(1), tmp_path / f"{name}.{ending}", settings='{"seed": 1}')
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_the_encoder_does_not_depend_on_the_processor(tmp_path, monkeypatch):
    """Seen on other machines only, so what x264 is asked for is looked at."""
    seen, original = [], writer._set_up

    def set_up(stream, *arguments):
        original(stream, *arguments)
        seen.append(stream.codec_context.options["x264-params"])

    monkeypatch.setattr(writer, "_set_up", set_up)
    encode_video(moving(1), 24, None, tmp_path / "out.mp4")
    assert seen == ["cpu-independent=1"]


def test_the_encoder_is_told_what_is_asked(tmp_path):
    for crf in (5, "45"):
        encode_video(moving(4), 24, None, tmp_path / f"{crf}.mp4", crf=crf)
        # x264 writes its settings into the stream; rc_lookahead=10 is of the preset
        settings = (tmp_path / f"{crf}.mp4").read_bytes()
        assert f"crf={crf}.0".encode() in settings
        assert b"rc_lookahead=10" in settings
    assert (tmp_path / "5.mp4").stat().st_size > (tmp_path / "45.mp4").stat().st_size


BAD_FRAMES = [
    torch.zeros(2, 48, 64, 3),
    torch.zeros(2, 48, 64, 3, dtype=torch.bfloat16),
    torch.zeros(2, 48, 64, 4, dtype=torch.uint8),
    torch.zeros(48, 64, 3, dtype=torch.uint8),
    torch.zeros(2, 0, 64, 3, dtype=torch.uint8),
    torch.tensor(3),
]


@pytest.mark.parametrize("frames", BAD_FRAMES, ids=lambda frames: str(tuple(frames.shape)))
def test_what_is_no_frames_is_refused(frames, tmp_path):
    with pytest.raises(InputError, match="uint8 \\(frames, height, width, 3\\)"):
        encode_video(iter([frames]), 24, None, tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(32, 32), (96, 128), (47, 64)])
def test_frames_of_another_size_are_refused(size, tmp_path):
    with pytest.raises(InputError, match=f"{size[1]}x{size[0]} pixels follow frames of 64x48"):
        encode_video(iter([moving(3), moving(3, *size)]), 24, None, tmp_path / "out.mp4")
    assert not list(tmp_path.iterdir())


# Sound


def written_sound(path, waveform, rate=48000, count=24) -> np.ndarray:
    """What is heard after writing one second of video with this waveform: (channels, samples)."""
    encode_video(moving(count, 16, 16), 24, Audio(waveform, rate), path)
    return decode_audio_from_file(path).waveform[0].numpy()


def tones(samples: np.ndarray, rate: int = 48000) -> list[float]:
    """The strongest frequency of each channel, in Hz."""
    middle = samples[:, 4096:36864]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.shape[1])))
    return (spectrum.argmax(axis=1) * rate / middle.shape[1]).tolist()


LEFT_RIGHT = sine(1.0)


@pytest.mark.parametrize(
    ("waveform", "left", "right"),
    [
        pytest.param(LEFT_RIGHT, 220, 440, id="stereo"),
        pytest.param(LEFT_RIGHT.T, 220, 440, id="samples first"),
        pytest.param(LEFT_RIGHT[None], 220, 440, id="batch of one"),
        pytest.param(LEFT_RIGHT[1:], 440, 440, id="mono"),
        pytest.param(LEFT_RIGHT[1:].T, 440, 440, id="mono samples first"),
        pytest.param(LEFT_RIGHT[0], 220, 220, id="one axis"),
        pytest.param(LEFT_RIGHT.bfloat16(), 220, 440, id="bfloat16"),
        pytest.param(LEFT_RIGHT.clone().requires_grad_(), 220, 440, id="with gradient"),
    ],
)
def test_sound_comes_back_in_its_channels(waveform, left, right, tmp_path):
    heard = written_sound(tmp_path / "out.mp4", waveform)
    assert heard.shape[0] == 2
    assert tones(heard) == pytest.approx([left, right], abs=2)
    assert np.abs(heard[:, 4096:36864]).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("shape", [(9, 100), (100, 3), (0, 100), (2, 0), (0,), (2, 2, 100), (1, 1, 1, 9)])
def test_other_numbers_of_channels_are_refused_before_any_work(shape, tmp_path):
    with pytest.raises(InputError, match="cannot be written; give"):
        encode_video(untouchable(), 24, Audio(torch.zeros(shape), 48000), tmp_path / "new" / "out.mp4")
    assert not list(tmp_path.iterdir())


def test_surround_sound_is_mixed_down(tmp_path):
    one = sound(1.5).waveform[:1]
    silent = torch.zeros_like(one)
    heard = written_sound(tmp_path / "out.mp4", torch.cat([silent, silent, one, silent, silent, silent]))
    assert heard.shape[0] == 2
    assert np.abs(heard[0] - heard[1]).max() < 1e-3  # the centre is heard from both sides
    assert np.abs(heard).max() > 0.05


@pytest.mark.parametrize("rate", [0, -48000])
def test_a_sampling_rate_that_is_none_is_refused_before_any_work(rate, tmp_path):
    with pytest.raises(InputError, match="sampling rate"):
        encode_video(untouchable(), 24, Audio(torch.zeros(2, 9), rate), tmp_path / "out.mp4")


@pytest.mark.parametrize(
    ("rate", "encoded"),
    [(48000, 48000), (44100, 44100), (16000, 16000), (37800, 44100), (192000, 96000), (10000, 11025)],
)
def test_rates_that_aac_does_not_know_are_resampled(rate, encoded, tmp_path):
    encode_video(moving(24, 16, 16), 23.976, sound(1.5, rate), tmp_path / "out.mp4")
    file = streams(tmp_path / "out.mp4")
    assert file.sound_rate == encoded
    assert abs(file.sound_seconds - Fraction(1001, 1000)) <= Fraction(2, rate)
    heard = decode_audio_from_file(tmp_path / "out.mp4").waveform[0].numpy()[:, 2048 : encoded * 9 // 10]
    crossings = (np.diff(np.sign(heard)) != 0).sum(axis=1) / 2 / (heard.shape[1] / encoded)
    assert crossings == pytest.approx([220, 440], rel=0.02)


def test_short_sound_is_continued_with_silence(tmp_path):
    heard = written_sound(tmp_path / "out.mp4", sine(0.25))
    assert 48000 <= heard.shape[1] < 48000 + 2048
    assert np.abs(heard[:, 4096:10000]).max() > 0.4
    assert np.abs(heard[:, 16000:]).max() < 1e-3
    assert streams(tmp_path / "out.mp4").sound_seconds == 1


def test_long_sound_is_cut(tmp_path):
    ramp = torch.zeros(2, 5 * 48000)
    ramp[:, 2 * 48000 :] = 0.9
    heard = written_sound(tmp_path / "out.mp4", ramp)
    assert heard.shape[1] < 48000 + 2048
    assert np.abs(heard).max() < 1e-3


def test_a_single_sample_is_enough(tmp_path):
    encode_video(moving(1), 24, Audio(torch.ones(1, 1), 48000), tmp_path / "out.mp4")
    assert streams(tmp_path / "out.mp4").sound_seconds == Fraction(1, 24)


def test_samples_that_are_no_number_are_silence():
    samples = to_int16(torch.tensor([[float("nan"), 0.5, float("inf")], [-0.5, -float("inf"), 2.0]]))
    assert samples.tolist() == [[0, -16383], [16383, -32767], [32767, 32767]]
    assert samples.dtype == np.int16


def test_a_waveform_of_no_numbers_is_written_as_silence(tmp_path):
    heard = written_sound(tmp_path / "out.mp4", torch.full((2, 48000), float("nan")))
    assert np.abs(heard).max() < 1e-3


# Settings


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".m4v", ".mkv"])
def test_settings_come_back(ending, tmp_path):
    text = '{"openltx": {"prompt": "Zwölf \\"Boxkämpfer\\"\\n\\u0000 — 雨", "seed": 7, "images": [["a", 0]]}}'
    encode_video(moving(2), 24, None, tmp_path / f"out{ending}", settings=text)
    settings = read_settings(tmp_path / f"out{ending}")
    expected = {"prompt": 'Zwölf "Boxkämpfer"\n\0 — 雨', "seed": 7, "images": [["a", 0]]}
    assert settings == {"openltx": expected}


def test_long_settings_come_back(tmp_path):
    encode_video(moving(1), 24, sound(1), tmp_path / "out.mp4", settings='{"a": "' + "x" * 100_000 + '"}')
    assert read_settings(tmp_path / "out.mp4") == {"a": "x" * 100_000}


@pytest.mark.parametrize("comment", [None, "", "holiday 2019", "12", "[1, 2]", '"text"', "{"])
def test_files_with_another_comment_have_no_settings(comment, tmp_path):
    encode_video(moving(1), 24, None, tmp_path / "out.mp4", settings=comment)
    assert read_settings(tmp_path / "out.mp4") is None
