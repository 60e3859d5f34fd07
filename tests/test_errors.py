"""A fault of the disk is one sentence, whoever met it."""

import errno

import pytest

from tesserae.errors import DiskFullError, TesseraeError, is_full, writing


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
])
def test_a_full_disk(error):
    with pytest.raises(DiskFullError) as caught, writing("models/vqgan-image"):
        raise error
    assert str(caught.value) == (
        "The disk is full, models/vqgan-image could not be written: free some space, then run again.")


def test_what_was_half_written_goes(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    (tmp_path / "history.csv.part").write_text("half")
    with pytest.raises(DiskFullError), writing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [each.name for each in tmp_path.iterdir()] == ["history.csv"]


def test_a_disk_that_may_not_be_written():
    sentence = r"^reports/x\.csv cannot be written \(Read-only file system\): see to"
    with pytest.raises(TesseraeError, match=sentence), writing("a/reports/x.csv"):
        raise OSError(errno.EROFS, "Read-only file system")


def test_what_is_no_fault_of_the_disk_passes():
    for error in (ValueError("no such key"), TesseraeError("a sentence"), OSError("without a number")):
        with pytest.raises(type(error)) as caught, writing("x/y"):
            raise error
        assert caught.value is error


def test_full_is_told_from_other_faults():
    assert is_full("OSError: [Errno 28] No space left on device")
    assert not is_full(FileNotFoundError(errno.ENOENT, "No such file or directory"))
