"""A folder's hash changes with names and bytes, and with nothing else."""

import os
import shutil

import pytest

from tesserae.data.contents import contents_of


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my pictures"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats/1.png").write_bytes(b"one")
    (folder / "2.png").write_bytes(b"two")
    return folder


def digest(folder, tmp_path, known="known"):
    return contents_of(folder, tmp_path / known).digest


def test_equal_bytes_give_equal_hashes_wherever_and_whenever(folder, tmp_path):
    first = contents_of(folder, tmp_path / "known")
    assert (first.files, first.new) == (2, True)
    again = contents_of(folder, tmp_path / "known")
    assert (again.digest, again.new) == (first.digest, False)
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(folder / "2.png", (1, 1))
    (folder / ".DS_Store").touch()
    assert digest(tmp_path / "copy", tmp_path, "other") == digest(folder, tmp_path) == first.digest


@pytest.mark.parametrize("change", [
    lambda folder: (folder / "3.png").write_bytes(b"three"),
    lambda folder: (folder / "2.png").write_bytes(b"owt"),
    lambda folder: (folder / "2.png").rename(folder / "cats/2.png"),
    lambda folder: (folder / "2.png").unlink(),
    lambda folder: (folder / "link").symlink_to("gone"),
], ids=["one more", "as long, other bytes", "moved", "removed", "a broken link"])
def test_every_change_is_seen(folder, tmp_path, change):
    before = digest(folder, tmp_path)
    change(folder)
    assert digest(folder, tmp_path) != before


def test_links_and_pipes_and_strange_names_do_not_stop_it(folder, tmp_path):
    (folder / "cats/again").symlink_to(folder)
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/5.png").write_bytes(b"five")
    assert contents_of(folder, tmp_path / "known").files == 5
    before = digest(folder, tmp_path)
    (tmp_path / "elsewhere/5.png").write_bytes(b"5")
    assert digest(folder, tmp_path) != before


def test_a_damaged_store_of_hashes_is_made_anew(folder, tmp_path):
    before = digest(folder, tmp_path)
    (tmp_path / "known").write_bytes(b"no database" * 1000)
    assert digest(folder, tmp_path) == before
    (tmp_path / "blocked").touch()
    assert digest(folder, tmp_path, "blocked/known") == before
    with pytest.raises(OSError, match="No such file"):
        contents_of(tmp_path / "gone", tmp_path / "known")
