"""Opening weights files: what the header tells, what a read takes, and one sentence for every bad file."""

import json
import os
import random
import struct

import pytest
import torch
from safetensors.torch import save

from ltx_core.errors import CheckpointError, InputError, MissingFileError
from ltx_core.loader import Checkpoint

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_opening_reads_the_header_and_no_tensor(files):
    path = files.model()
    checkpoint = Checkpoint(path)
    assert checkpoint.config == {"width": 16}
    assert checkpoint.metadata == {"config": '{"width": 16}', "model_version": "2.3.1"}
    assert checkpoint.model_version == "2.3.1"
    info = checkpoint.info(files.PREFIX + "patchify_proj.weight")
    assert (info.dtype, info.shape, info.numel, info.nbytes) == (torch.bfloat16, (16, 16), 256, 512)
    assert len(checkpoint) == len(list(checkpoint)) == len(list(checkpoint.keys())) == len(files.tensors())
    assert checkpoint.bytes_read == 0
    assert str(checkpoint.path) == path
    assert path in repr(checkpoint)


def test_metadata_may_be_absent(files):
    checkpoint = Checkpoint(files.write("bare.safetensors", {"a": torch.ones(1)}))
    assert checkpoint.config == checkpoint.metadata == {}
    assert checkpoint.model_version is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 5)], ids=str)
def test_every_dtype_and_shape_is_read_as_it_was_written(files, dtype, shape):
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    got = Checkpoint(
        files.write("x.safetensors", {"pad": torch.ones(3, dtype=torch.uint8), "x": value})
    ).read("x")
    assert got.dtype is dtype
    assert got.shape == value.shape
    assert torch.equal(got.float(), value.float())


def test_a_read_casts_floating_tensors_only_and_counts_bytes(files):
    values = {"f": torch.tensor([1.5, -2.0]).bfloat16(), "i": torch.tensor([1, 2])}
    checkpoint = Checkpoint(files.write("x.safetensors", values))
    assert checkpoint.read("f", dtype=torch.float32).dtype is torch.float32
    assert checkpoint.bytes_read == 4
    assert checkpoint.read("i", dtype=torch.float32).dtype is torch.int64
    assert checkpoint.bytes_read == 20


def test_what_is_read_owns_its_memory(files):
    checkpoint = Checkpoint(files.write("x.safetensors", {"x": torch.ones(4)}))
    checkpoint.read("x").zero_()
    assert torch.equal(checkpoint.read("x"), torch.ones(4))


def test_later_shards_override_and_the_first_carries_the_metadata(files):
    first = files.write("1.safetensors", {"a": torch.zeros(1), "b": torch.zeros(1)}, model_version="1")
    second = files.write("2.safetensors", {"b": torch.ones(1), "c": torch.ones(1)}, model_version="2")
    checkpoint = Checkpoint([first, second])
    assert {key: checkpoint.read(key).item() for key in checkpoint} == {"a": 0, "b": 1, "c": 1}
    assert checkpoint.model_version == "1"
    assert checkpoint.info("b").file.name == "2.safetensors"


WHOLE = save({"x": torch.ones(4)})
HEADER = struct.unpack("<Q", WHOLE[:8])[0]
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD_FILES = {
    "empty": (b"", "empty"),
    "short": (b"abc", "not a safetensors file"),
    "truncated": (WHOLE[:-3], "truncated"),
    "too long": (WHOLE + bytes(4), "damaged"),
    "another header length": (struct.pack("<Q", HEADER - 1) + WHOLE[8:], "damaged"),  # without its last space
    "text": (b"these are not weights at all", "not a safetensors file"),
    "pickle": (b"\x80\x02}q\x00.", "convert it to .safetensors"),
    "torch.save": (b"PK\x03\x04" + bytes(64), "convert it to .safetensors"),
    "GGUF": (b"GGUF" + bytes(64), "GGUF"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "no JSON": (with_header(b"{nonsense}"), "not a safetensors file"),
    "a list": (with_header([1, 2]), "not a safetensors file"),
    "entry no object": (with_header({"x": 3}), "not a safetensors file"),
    "entry without offsets": (with_header({"x": {"dtype": "F32", "shape": [1]}}), "not a safetensors file"),
    "metadata no object": (with_header({"__metadata__": [1]}), "not a safetensors file"),
    "wrong size": (with_header({"x": ONE | {"shape": [3]}}, bytes(4)), "damaged"),
    "nested without end": (with_header(b"[" * 200_000), "not a safetensors file"),
    "a hole": (with_header({"x": ONE | {"data_offsets": [4, 8]}}, bytes(8)), "one after the other"),
    "an overlap": (with_header({"x": ONE, "y": ONE}, bytes(4)), "one after the other"),
    "negative shape": (with_header({"x": ONE | {"shape": [-1, -1]}}, bytes(4)), "damaged"),
    "unknown dtype": (with_header({"x": ONE | {"dtype": "F3"}}, bytes(4)), "dtype F3"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_named_in_one_sentence(tmp_path, kind):
    content, words = BAD_FILES[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint(path)
    assert str(path) in str(caught.value)


def test_missing_files_folders_and_no_file_at_all(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors does not exist"):
        Checkpoint(tmp_path / "nowhere.safetensors")
    assert issubclass(MissingFileError, FileNotFoundError)
    with pytest.raises(CheckpointError, match="is a folder"):
        Checkpoint(tmp_path)
    with pytest.raises(MissingFileError, match="does not exist"):
        Checkpoint("a prompt in its place " * 20)
    with pytest.raises(CheckpointError, match="No weights file"):
        Checkpoint([])


@pytest.mark.parametrize("path", [None, 3, b"model.safetensors", [None], ("a", 3)])
def test_what_is_no_path_is_named(path):
    with pytest.raises(InputError, match=r"is no path; give that of a \.safetensors file"):
        Checkpoint(path)


@pytest.mark.parametrize(("config", "words"), [("{", "not valid JSON"), ("[1]", "expected a JSON object")])
def test_a_bad_config_is_only_an_error_when_it_is_asked_for(files, config, words):
    checkpoint = Checkpoint(files.write("x.safetensors", {"x": torch.ones(1)}, config=config))
    assert checkpoint.read("x").item() == 1
    with pytest.raises(CheckpointError, match=words):
        _ = checkpoint.config


def test_unknown_keys_and_files_that_change_under_the_reader(files):
    path = files.write("x.safetensors", {"x": torch.ones(8)})
    checkpoint = Checkpoint(path)
    with pytest.raises(CheckpointError, match="has no tensor 'y'"):
        checkpoint.read("y")
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 4)
    with pytest.raises(CheckpointError, match="changed since"):
        checkpoint.read("x")


def test_damage_in_a_header_is_never_another_kind_of_error(tmp_path):
    rng, path = random.Random(0), tmp_path / "x.safetensors"
    whole = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.int64)}, {"config": "{}"})
    end = len(whole) - 6 * 4 - 4 * 8
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint = Checkpoint(path)
            for key in checkpoint:
                checkpoint.read(key)
        except CheckpointError:
            pass
