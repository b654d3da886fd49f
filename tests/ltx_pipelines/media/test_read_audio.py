"""Sound files to waveforms: sample formats, channels, rates, windows, late and broken streams."""

import struct

import av
import numpy as np
import pytest
import torch
from tests.ltx_pipelines.media.making_media import (
    clip_with_late_sound,
    moving,
    sound,
    write_sound,
    write_steady,
)

from ltx_core.errors import InputError, MediaError
from ltx_pipelines.media.audio import decode_audio_from_file
from ltx_pipelines.media.writer import encode_video

RATE = 16000


def signal(channels: int, seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    """float64 (channels, samples) in (-0.5, 0.5): another noise in each channel, smooth enough for any codec."""
    count = round(seconds * rate)
    white = np.random.default_rng(channels).standard_normal((channels, count + 60))
    smooth = np.stack([np.convolve(row, np.hanning(61), "valid") for row in white])
    return 0.49 * smooth / np.abs(smooth).max()


def heard(path, *arguments) -> np.ndarray:
    return decode_audio_from_file(path, "cpu", *arguments).waveform[0].numpy()


# Ending, codec, sample format, full scale to stored numbers, largest error
EXACT = {
    "u8": ("wav", "pcm_u8", "u8", lambda x: np.round(x * 128 + 128).astype(np.uint8), 0.5 / 128),
    "s16": ("wav", "pcm_s16le", "s16", lambda x: np.round(x * 2**15).astype(np.int16), 0.5 / 2**15),
    "s24": ("wav", "pcm_s24le", "s32", lambda x: np.round(x * 2**31).astype(np.int32), 1 / 2**23),
    "s32": ("wav", "pcm_s32le", "s32", lambda x: np.round(x * 2**31).astype(np.int32), 1e-7),
    "flt": ("wav", "pcm_f32le", "flt", lambda x: x.astype(np.float32), 1e-7),
    "dbl": ("wav", "pcm_f64le", "dbl", lambda x: x, 1e-7),
    "flac": ("flac", "flac", "s16", lambda x: np.round(x * 2**15).astype(np.int16), 0.5 / 2**15),
    "alac (planar)": ("m4a", "alac", "s16p", lambda x: np.round(x * 2**15).astype(np.int16), 0.5 / 2**15),
}
# Ending, codec, and the delay in samples that the file does not tell the reader of
LOSSY = {"mp3": ("mp3", "libmp3lame", 0), "aac": ("m4a", "aac", 0), "aac in mkv": ("mkv", "aac", 0)}
LOSSY |= {"bare aac": ("aac", "aac", 1024)}


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("kind", EXACT)
def test_exact_formats(kind, channels, tmp_path):
    ending, codec, sample_format, stored, error = EXACT[kind]
    wanted = signal(channels)
    path = write_sound(tmp_path / f"sound.{ending}", codec, sample_format, stored(wanted))
    audio = decode_audio_from_file(path)
    assert audio.sampling_rate == RATE
    assert audio.waveform.shape == (1, channels, 8000)
    assert audio.waveform.dtype == torch.float32
    assert np.abs(audio.waveform[0].numpy() - wanted).max() <= error * 1.01


def test_silence_and_full_scale_of_bytes(tmp_path):
    path = write_sound(tmp_path / "sound.wav", "pcm_u8", "u8", np.array([[128, 0, 255, 192]], np.uint8))
    assert heard(path)[0].tolist() == [0.0, -1.0, 127 / 128, 0.5]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_lie_where_they_should(kind, channels, tmp_path):
    ending, codec, delay = LOSSY[kind]
    wanted = signal(channels, 1.0)
    path = write_sound(tmp_path / f"sound.{ending}", codec, "fltp", wanted.astype(np.float32))
    samples = heard(path)
    assert samples.shape[0] == channels
    assert RATE <= samples.shape[1] - delay < RATE + 1024
    # An MP4 is read as the reference does, whose decoder misses what came before its first packet.
    start = 1024 if ending == "m4a" else 0
    apart = np.abs(samples[:, delay + start : delay + RATE] - wanted[:, start:])
    assert apart.mean() < 0.05 * np.abs(wanted).mean() + 2e-3


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_the_rate_is_kept(rate, tmp_path):
    stored = np.zeros((1, rate // 10), np.int16)
    audio = decode_audio_from_file(write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", stored, rate))
    assert audio.sampling_rate == rate
    assert audio.waveform.shape == (1, 1, rate // 10)


# Windows

WINDOWS = [
    (0.0, None),
    (0.25, None),
    (0.25, 0.1),
    (0.0, 0.1),
    (0.313, 0.2),
    (0.7, 0.25),
    (0.9, 5.0),
    (1 / 3, 1 / 7),
]


@pytest.mark.parametrize(("start", "duration"), WINDOWS)
def test_a_window_of_an_exact_format(start, duration, tmp_path):
    stored = np.arange(RATE, dtype=np.int16)[None]
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", stored)
    first = round(start * RATE)
    last = RATE if duration is None else min(first + round(duration * RATE), RATE)
    assert (heard(path, start, duration)[0] * 32768).tolist() == list(range(first, last))


@pytest.mark.parametrize(("start", "first"), [(0.03, 661), (0.25, 5513), (0.45, 9923)])
def test_a_window_that_begins_between_two_samples(start, first, tmp_path):
    """The reference counts from the whole sample before: which one of the two it takes is its rounding's choice."""
    stored = np.arange(11025, dtype=np.int16)[None]
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", stored, 22050)
    assert heard(path, start)[0, 0] * 32768 == first


@pytest.mark.parametrize("start", [0.1, 0.6, 1.3, 1.35, 1.8, 1.85])
def test_a_window_near_the_end_of_flac(start, tmp_path):
    """FFmpeg cannot go to the last fifth of a second of such a file: it has to be read from the beginning."""
    stored = np.round(signal(2, 1.5) * 2**15).astype(np.int16)
    path = write_sound(tmp_path / "sound.flac", "flac", "s16", stored)
    audio = decode_audio_from_file(path, "cpu", start, 0.1)
    if start > 1.5:
        assert audio is None
    else:
        first = round(start * RATE)
        assert (audio.waveform[0].numpy() * 2**15 == stored[:, first : first + RATE // 10]).all()


@pytest.mark.parametrize(("start", "duration"), WINDOWS)
@pytest.mark.parametrize("kind", LOSSY)
def test_a_window_of_a_lossy_format_is_a_part_of_the_whole(kind, start, duration, tmp_path):
    ending, codec, _ = LOSSY[kind]
    path = write_sound(tmp_path / f"sound.{ending}", codec, "fltp", signal(2, 1.0).astype(np.float32))
    whole, part = heard(path), heard(path, start, duration)
    first = round(start * RATE)
    last = whole.shape[1] if duration is None else min(first + round(duration * RATE), whole.shape[1])
    expected = whole[:, first:last]
    # Times are stored in milliseconds in some containers.
    assert abs(part.shape[1] - expected.shape[1]) <= RATE // 1000
    common = min(part.shape[1], expected.shape[1])
    best = min(
        np.abs(
            part[:, max(lag, 0) : common + min(lag, 0)] - expected[:, max(-lag, 0) : common - max(lag, 0)]
        ).max()
        for lag in range(-8, 9)
    )
    assert best < 0.02


def test_a_window_late_in_a_long_file(tmp_path):
    """Far from the beginning the file is searched, not read: what is heard is the same."""
    path = write_sound(tmp_path / "long.mp3", "libmp3lame", "fltp", signal(1, 20.0).astype(np.float32))
    whole, part = heard(path), heard(path, 15.0, 2.0)
    assert part.shape == (1, 2 * RATE)
    assert np.abs(part - whole[:, 15 * RATE : 17 * RATE]).max() < 0.02


@pytest.mark.parametrize("ending", ["wav", "mp3", "m4a", "flac"])
def test_nothing_beyond_the_end(ending, tmp_path):
    codec, kind = {"wav": ("pcm_f32le", "flt"), "mp3": ("libmp3lame", "fltp"), "m4a": ("aac", "fltp")}.get(
        ending, ("flac", "s16")
    )
    samples = (signal(2) * (1 if kind != "s16" else 32767)).astype(np.float32 if kind != "s16" else np.int16)
    path = write_sound(tmp_path / f"sound.{ending}", codec, kind, samples)
    assert decode_audio_from_file(path, "cpu", 30.0) is None
    assert decode_audio_from_file(path, "cpu", 30.0, 1.0) is None
    assert decode_audio_from_file(path, "cpu", 0.0, 0) is None


@pytest.mark.parametrize(
    ("start", "duration"),
    [(-0.1, None), (float("nan"), None), (0, -1), (0, float("nan")), (None, 1), ("1", None), (0, "1")],
)
def test_times_that_are_none(start, duration, tmp_path):
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", np.zeros((1, 100), np.int16))
    with pytest.raises(InputError, match="number of seconds from 0 on"):
        decode_audio_from_file(path, "cpu", start, duration)


# Files with more than sound


def test_a_clip_without_sound(tmp_path):
    assert decode_audio_from_file(write_steady(tmp_path / "silent.mp4", moving(2))) is None


def test_the_sound_of_a_written_clip(tmp_path):
    wanted = sound(1.0, 24000)
    encode_video(moving(24), 24, wanted, tmp_path / "clip.mp4")
    audio = decode_audio_from_file(tmp_path / "clip.mp4", "cpu", 0.0, 1.0)
    assert audio.sampling_rate == 24000
    assert audio.waveform.shape == (1, 2, 24000)
    assert (audio.waveform[0] - wanted.waveform)[:, 1024:].abs().max() < 0.08


@pytest.mark.parametrize(("start", "silent"), [(0.0, 0.5), (0.2, 0.3), (0.5, 0.0), (0.6, 0.0)])
def test_sound_that_begins_late_follows_silence(start, silent, tmp_path):
    clip_with_late_sound(tmp_path / "late.mkv", 0.5)
    samples = heard(tmp_path / "late.mkv", start)[0]
    assert abs(len(samples) - (0.75 - start) * RATE) <= 16
    loud = np.flatnonzero(samples)
    assert abs(loud[0] - silent * RATE) <= 16
    assert (samples[loud[0] :] == 0.5).all()


def test_sound_in_a_container_whose_clock_does_not_begin_at_zero(tmp_path):
    """Transport streams begin at some 1.4 s."""
    wanted = sound(1.0, 48000)
    encode_video(moving(24), 24, wanted, tmp_path / "clip.ts")
    with av.open(str(tmp_path / "clip.ts")) as container:
        assert container.start_time > 0
    samples = heard(tmp_path / "clip.ts", 0.0, 0.5)
    assert samples.shape == (2, 24000)
    assert np.abs(samples).max() > 0.4


# Broken files


def test_tags_in_another_encoding(tmp_path):
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", np.ones((1, 8), np.int16))
    title = "K\xe4se".encode("latin-1")
    tags = b"INFO" + struct.pack("<4sI", b"INAM", len(title)) + title
    content = path.read_bytes() + struct.pack("<4sI", b"LIST", len(tags)) + tags
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    assert heard(path).shape == (1, 8)


def test_a_pyav_that_takes_no_choice_of_tags(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", np.ones((1, 8), np.int16))
    real = av.open
    monkeypatch.setattr(av, "open", lambda name: real(name))
    assert heard(path).shape == (1, 8)


def test_files_that_are_no_sound(tmp_path):
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, why in (
        ("text.wav", "cannot be decoded"),
        ("empty.wav", "cannot be decoded"),
        ("folder", "is a folder"),
    ):
        with pytest.raises(MediaError, match=f"{name} {why}"):
            decode_audio_from_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.wav does not exist"):
        decode_audio_from_file(tmp_path / "missing.wav")


def test_a_truncated_wave_file_gives_what_is_there(tmp_path):
    stored = np.arange(RATE, dtype=np.int16)[None]
    path = write_sound(tmp_path / "sound.wav", "pcm_s16le", "s16", stored)
    path.write_bytes(path.read_bytes()[:-RATE])
    samples = heard(path)[0] * 32768
    assert samples.tolist() == list(range(RATE // 2))


def test_a_compressed_file_without_its_index(tmp_path):
    path = write_sound(tmp_path / "sound.m4a", "aac", "fltp", signal(1).astype(np.float32))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MediaError, match="is it complete"):
        decode_audio_from_file(path)
