"""When writing fails: what is raised, and that nothing stays behind."""

import os
import resource
from contextlib import contextmanager

import av
import pytest
import torch
from tests.ltx_pipelines.media.making_media import moving, sound, streams

from ltx_core.errors import InputError, MediaError
from ltx_pipelines.media import writer
from ltx_pipelines.media.video import probe_video
from ltx_pipelines.media.writer import encode_video
from ltx_pipelines.utils.validation import check_output_path


class Stopped(Exception):
    """Raised by the tests' own code."""


def breaking(error: BaseException, after: int):
    """Chunks, and then an error."""
    for _ in range(after):
        yield moving(9)
    raise error


def stop_at(number: int):
    def on_chunk(current: int) -> None:
        if current == number:
            raise Stopped

    return on_chunk


@pytest.fixture(params=["new", "existing"])
def target(request, tmp_path):
    """A path to write to; after the test nothing, or what was there before, is at it, and nothing beside it."""
    path = tmp_path / "folder" / "out.mp4"
    path.parent.mkdir()
    if request.param == "existing":
        path.write_bytes(b"precious")
    yield path
    assert [entry.name for entry in path.parent.iterdir()] == (
        ["out.mp4"] if request.param == "existing" else []
    )
    if request.param == "existing":
        assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize(
    "error", [Stopped(), KeyboardInterrupt(), GeneratorExit(), torch.OutOfMemoryError("no")]
)
def test_an_error_while_frames_are_made_passes_through(after, error, target):
    with pytest.raises(type(error)) as caught:
        encode_video(breaking(error, after), 24, sound(1), target, after + 1)
    assert caught.value is error


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_callback_stops_the_work(number, target):
    with pytest.raises(Stopped):
        encode_video(iter([moving(9)] * 3), 24, sound(1), target, on_chunk=stop_at(number))


@pytest.mark.parametrize(
    "nothing", [[], [moving(0)], moving(0)], ids=["no chunk", "empty chunk", "empty tensor"]
)
def test_no_frames(nothing, target):
    with pytest.raises(InputError, match="no frames"):
        encode_video(nothing, 24, sound(1), target)


def test_a_wrong_chunk_in_the_middle(target):
    with pytest.raises(InputError, match="one size"):
        encode_video(iter([moving(9), moving(9), moving(9, 64, 64)]), 24, sound(1), target)


@contextmanager
def small_disk(size: int):
    """Files grow to `size` bytes only: writing beyond fails as on a full disk. Ends before pytest reports."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (20, 48, 64, 3), generator=generator, dtype=torch.uint8)


# At once, in the middle, in the index at the end, and when the index is moved to the front
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.95, 0.9999])
def test_a_full_disk(share, noise, target, tmp_path):
    encode_video(noise, 24, sound(1), tmp_path / "whole.mp4")
    room = int((tmp_path / "whole.mp4").stat().st_size * share)
    refused = pytest.raises(MediaError, match=r"Cannot write .*out\.mp4 \(File too large\)")
    with refused, small_disk(room):
        encode_video(iter(noise.split(5)), 24, sound(1), target)


def test_a_disk_with_just_enough_room(noise, tmp_path):
    encode_video(noise, 24, sound(1), tmp_path / "whole.mp4")
    with small_disk((tmp_path / "whole.mp4").stat().st_size):
        encode_video(noise, 24, sound(1), tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(MediaError, match="Cannot make the folder"):
        encode_video(breaking(AssertionError(), 0), 24, None, tmp_path / "file" / "out.mp4")
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made_by_permission(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer.Path, "mkdir", refuse)
    with pytest.raises(MediaError, match="Permission denied"):
        encode_video(breaking(AssertionError(), 0), 24, None, tmp_path / "new" / "out.mp4")


def test_folders_are_made(tmp_path):
    encode_video(moving(2), 24, None, tmp_path / "a" / "b" / "out.mp4")
    assert len(streams(tmp_path / "a" / "b" / "out.mp4").frames) == 2
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["out.mp4"]


def test_a_target_that_is_a_folder(tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(MediaError, match="is a folder"):
        encode_video(breaking(AssertionError(), 0), 24, None, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_leads_to_the_file(tmp_path, there):
    target, link = tmp_path / "disk" / "out.mp4", tmp_path / "out.mp4"
    if there:
        target.parent.mkdir()
        target.write_bytes(b"old")
    link.symlink_to("disk/out.mp4")
    encode_video(moving(2), 24, None, link)
    assert link.is_symlink()
    assert len(streams(target).frames) == 2
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("linked", [True, False])
def test_a_pipe_is_refused_before_any_work_and_stays(tmp_path, linked):
    pipe, link = tmp_path / "pipe.mp4", tmp_path / "link.mp4"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    target = link if linked else pipe
    with pytest.raises(MediaError, match="is a device or a pipe"):
        encode_video(breaking(AssertionError(), 0), 24, None, target)
    with pytest.raises(InputError, match="is a device or a pipe"):
        check_output_path(target)
    assert pipe.is_fifo()


def test_a_finished_file_that_cannot_be_moved_into_place(target, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MediaError, match="Permission denied"):
        encode_video(moving(2), 24, None, target)


@pytest.mark.parametrize("ending", ["xyz", "webm", "gif", "png", "wav"])
def test_endings_that_cannot_hold_it_are_refused_before_any_work(ending, tmp_path):
    with pytest.raises(MediaError, match=r"\.mp4"):
        encode_video(breaking(AssertionError(), 0), 24, sound(1), tmp_path / f"out.{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out", "out.mov", "out.MKV", ".mp4", "a:b %03d ü.mp4", "x" * 240 + ".mp4"])
def test_unusual_names(name, tmp_path):
    encode_video(moving(2), 24, sound(1), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(tmp_path / name)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2


def test_a_colon_in_a_relative_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode_video(moving(2), 24, sound(1), "take:2.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["take:2.mp4"]
    assert probe_video("take:2.mp4").frames == 2


def test_an_existing_file_is_replaced_when_all_went_well(tmp_path):
    encode_video(moving(2), 24, None, tmp_path / "out.mp4")
    encode_video(moving(5), 24, None, tmp_path / "out.mp4")
    assert len(streams(tmp_path / "out.mp4").frames) == 5


def test_the_file_is_not_there_before_it_is_complete(tmp_path):
    seen = []
    chunks = iter([moving(3)] * 3)
    encode_video(
        chunks,
        24,
        None,
        tmp_path / "out.mp4",
        on_chunk=lambda _: seen.append((tmp_path / "out.mp4").exists()),
    )
    assert seen == [False] * 3
    assert (tmp_path / "out.mp4").exists()


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    """The one that ends last wins; both files are whole."""
    path, inner = tmp_path / "out.mp4", []

    def chunks():
        # So many that the encoder has put some into the file before the other writer begins.
        yield moving(60, 16, 16)
        assert len(list(tmp_path.iterdir())) == 1
        encode_video(moving(2), 24, None, path)
        inner.append(len(streams(path).frames))
        yield moving(4, 16, 16)

    encode_video(chunks(), 24, None, path)
    assert inner == [2]
    file = streams(path)
    assert len(file.frames) == 64
    assert file.frames[0].shape == (16, 16, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
