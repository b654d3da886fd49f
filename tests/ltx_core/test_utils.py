"""Files that are found, folders that are whole or not there, numbers at equal distances."""

import pytest
import torch

from ltx_core.errors import MissingFileError
from ltx_core.utils import find_matching_file, linspace, whole_folder


def test_the_first_of_matching_files_is_found_however_deep(tmp_path):
    for name in ("b.json", "sub/deep/a.json", "sub/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_matching_file(str(tmp_path), "model*.safetensors") == tmp_path / "sub" / "model.safetensors"
    assert find_matching_file(tmp_path, "*.json") == tmp_path / "b.json"
    with pytest.raises(MissingFileError, match=r"No file matching 'tokenizer\.model' under ") as caught:
        find_matching_file(tmp_path, "tokenizer.model")
    assert isinstance(caught.value, FileNotFoundError)


def test_a_folder_is_replaced_whole_or_stays_as_it_was(tmp_path):
    target = tmp_path / "folder"
    for content in ("first", "second"):
        with whole_folder(target) as partial:
            (partial / f"{content}.txt").write_text(content)
        assert [path.name for path in target.iterdir()] == [f"{content}.txt"]
    with pytest.raises(FileNotFoundError), whole_folder(target) as partial:
        (partial / "no such folder" / "third.txt").touch()
    assert [path.name for path in target.iterdir()] == ["second.txt"]
    assert list(tmp_path.iterdir()) == [target]


def test_each_writer_of_a_folder_has_one_of_its_own(tmp_path):
    with whole_folder(tmp_path / "made") as last, whole_folder(tmp_path / "made") as first:
        (last / "last").touch()
        (first / "first").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["last", "made"]


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.0), (0.0, 1.0), (0, 8000), (0.0, 45.245640471924965)])
def test_numbers_at_equal_distances(start, end):
    for count in (1, 2, 3, 16, 257, 1024):
        got = linspace(start, end, count)
        assert got.dtype is torch.float32
        torch.testing.assert_close(
            got, torch.linspace(start, end, count), rtol=0, atol=1e-7 * max(start, end)
        )


def test_numbers_are_rounded_once():
    assert linspace(1.0, 0.0, 16)[3].item() == (1 - 3 * torch.tensor(1 / 15).double()).float().item()
