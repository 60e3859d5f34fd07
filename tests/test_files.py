"""Files are there whole or not at all."""

import pytest

from tesserae import files
from tesserae.files import write_table


class KilledError(Exception):
    """In the place of a power cut."""


def test_tables_are_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    write_table(path, [{"step": 1, "a": 0.123456789}, {"step": 2, "b": 1}])
    assert path.read_text().splitlines() == ["step,a,b", "1,0.1234568,", "2,,1"]

    def killed(*_):
        raise KilledError

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KilledError):
        write_table(path, [{"step": 9}])
    assert path.read_text().startswith("step,a,b")
