"""Dirty input of every kind: no traceback, nothing lost in silence, and a sentence that helps."""

import os
import re
import signal
import sys
from pathlib import Path

import datasets
import dirty
import pytest

from tesserae.data import listing
from tesserae.data.prepare import prepare
from tesserae.errors import TesseraeError
from tesserae.params import PrepareParams


def forbidding(monkeypatch):
    """A function after which a path may not be opened or entered, not even by root."""

    def forbid(path: Path) -> None:
        def checked(function):
            def call(place, *rest, **options):
                if str(place) == str(path):
                    raise PermissionError(13, "Permission denied", str(place))
                return function(place, *rest, **options)
            return call

        monkeypatch.setattr(listing.os, "scandir", checked(os.scandir))
        monkeypatch.setattr(Path, "read_bytes", checked(Path.read_bytes))

    return forbid


@pytest.fixture(autouse=True)
def _hang_is_a_failure():
    """Who opens a pipe waits for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def outcome(folder: Path, kind: dirty.Kind, forbid) -> tuple[str, int | None]:
    """What is to be read, and how many pictures are kept."""
    data = dirty.good_folder(folder / "data")
    changes = kind.spoil(data) or {}
    if "forbidden" in changes:
        forbid(changes.pop("forbidden"))
    values = {"source": "data", "image_size": 16, "fit": "cover", "holdout": 0.3, "min_side": 8, "max_rejected": 0.5}
    try:
        report = prepare(data, folder / "out", PrepareParams(**values | changes), 0)
    except TesseraeError as error:
        return str(error), None
    messages = [f"{path}: {reason}" for path, reason in report.rejected]
    messages += [f"{path} is the same picture as {other}" for path, other in report.duplicates]
    messages += ["not pictures: " + ", ".join(report.ignored)] if report.ignored else []
    return "\n".join(messages + report.notes) or "everything is kept", sum(report.counts.values())


@pytest.mark.skipif(sys.platform != "linux", reason="names and links as Linux has them")
@pytest.mark.filterwarnings("ignore:Image size", "ignore:Palette images")
@pytest.mark.parametrize("kind", dirty.KINDS, ids=lambda kind: kind.name)
def test_dirty_input(tmp_path, kind, monkeypatch, capfd):
    messages, kept = outcome(tmp_path, kind, forbidding(monkeypatch))
    monkeypatch.undo()
    assert re.search(kind.says, messages), messages
    assert kept == kind.keeps
    assert "Traceback" not in "".join(capfd.readouterr())
    if kept is None:
        assert "\n" not in messages, "one sentence"
        assert messages.endswith(".")
        assert not (tmp_path / "out").exists()
    else:
        stored = [path for split in ("train", "validation")
                  for path in datasets.load_from_disk(str(tmp_path / "out" / split))["path"]]
        assert len(stored) == kept
        account_for_everything(tmp_path / "data", messages, stored)


def account_for_everything(data: Path, messages: str, stored: list[str]) -> None:
    """Each file is kept, named with a reason, paired, or clutter."""
    if any(data.glob("*.parquet")):
        return
    for path in data.rglob("*"):
        name = listing.readable(path.relative_to(data).as_posix())
        parts = Path(name).parts
        clutter = any(listing.CLUTTER.fullmatch(part) for part in parts) or path.name.startswith("metadata.")
        if path.is_dir() or clutter or name in stored or name in messages:
            continue
        if any("/".join(parts[:depth]) in messages for depth in range(1, len(parts))):
            continue  # its folder is named
        assert parts[0] in ("masks", "m"), f"{name} is lost"


def test_there_are_many_kinds():
    assert len(dirty.KINDS) >= 80
    assert len({kind.name for kind in dirty.KINDS}) == len(dirty.KINDS)
