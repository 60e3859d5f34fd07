"""Files are written whole or not at all; the root is the nearest folder with dvc.yaml."""

from pathlib import Path

import pytest

from tesserae.errors import DiskFullError
from tesserae.files import RootError, find_root, replacing, replacing_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def half_written(path: Path) -> None:
    path.write_bytes(b"half")
    raise FileNotFoundError("something odd")


@pytest.mark.parametrize("flush", [False, True])
def test_a_file_takes_the_place_of_the_old_one(tmp_path, flush):
    path = tmp_path / "new folder/metrics.json"
    write_atomically(path, b"old", flush)
    write_atomically(path, b"new", flush)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["metrics.json"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_atomically(path, b"old")
    with pytest.raises(FileNotFoundError, match="something odd"), replacing(path) as aside:
        half_written(aside)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["metrics.json"]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, full_disk, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, b"old")
    full_disk(tmp_path)
    with pytest.raises(DiskFullError, match="could not be written: free some space"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["metrics.json"]


def test_a_folder_takes_the_place_of_the_old_one_or_leaves_it(tmp_path):
    path = tmp_path / "samples"
    with replacing_folder(path) as aside:
        (aside / "old").touch()
    (tmp_path / "samples.part").mkdir()  # a kill left it
    (tmp_path / "samples.part/rest").touch()
    with pytest.raises(FileNotFoundError), replacing_folder(path) as aside:
        half_written(aside / "new")
    assert (names(path), names(tmp_path)) == (["old"], ["samples"])
    with replacing_folder(path) as aside:
        (aside / "new").touch()
    assert (names(path), names(tmp_path)) == (["new"], ["samples"])


def test_find_root_takes_the_nearest(tmp_path):
    inner = tmp_path / "a/b/c"
    inner.mkdir(parents=True)
    with pytest.raises(RootError, match=r"holds dvc.yaml: start in a clone"):
        find_root(inner)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "a/dvc.yaml").touch()
    assert find_root(inner) == tmp_path / "a"
