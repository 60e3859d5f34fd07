"""Files and folders that are written whole or not at all, and the root of the repository."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesserae.errors import TesseraeError, writing

MARKER = "dvc.yaml"  # the file that marks the root


class RootError(TesseraeError, ValueError):
    """The working folder lies in no clone of the repository."""


def find_root(start: str | Path = ".") -> Path:
    """Return the nearest folder, from `start` upwards, that holds dvc.yaml. Raises RootError."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / MARKER).is_file():
            return folder
    raise RootError(f"{start} lies in no folder that holds {MARKER}: start in a clone of the repository.")


@contextmanager
def replacing(path: str | Path, flush: bool = False) -> Iterator[Path]:
    """Yield a path beside `path`; the file that the block writes there takes the place of `path` at the end.

    A reader finds the old content or the new, never half of it, and after an error the old file is intact. The folder
    is made where it is missing. flush: the content also survives a power cut, which takes a moment longer.
    Raises DiskFullError, TesseraeError.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            if flush:
                flush_to_disk(aside)
            os.replace(aside, path)
            if flush:
                flush_to_disk(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: bytes, flush: bool = False) -> None:
    """Write `content` as the file `path`, whole or not at all, see `replacing`."""
    with replacing(path, flush) as aside:
        aside.write_bytes(content)


def write_table(path: str | Path, rows: list[dict]) -> None:
    """Write rows as CSV with the union of their columns, floats with seven digits, see `replacing`."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.7g}" if isinstance(value, float) else value for name, value in row.items()})
    write_atomically(path, text.getvalue().encode())


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; with what the block writes into it, it takes the place of `path`.

    After an error the old folder is intact. What an earlier kill left is removed.
    Raises DiskFullError, TesseraeError.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}.part")
    with writing(path):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            yield aside
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Put a copy of the folder `source` at `target`, whole or not at all, see `replacing_folder`."""
    with replacing_folder(target) as aside:
        shutil.copytree(source, aside, dirs_exist_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, would survive a power cut."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
