"""Files and folders that are there whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
from pathlib import Path

from tesserae.errors import is_full, writing


def write_atomically(path: Path, content: bytes, flush: bool = False) -> None:
    """Write beside the file, then rename: a reader finds the old content or the new, never half of it.

    flush: also after a power cut, which takes a moment longer. Raises DiskFullError, TesseraeError.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            aside.write_bytes(content)
            if flush:
                flush_to_disk(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a folder is on the disk, so that it is there after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_table(path: Path, rows: list[dict]) -> None:
    """Write rows as CSV with the union of their columns. Raises DiskFullError."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow({name: f"{value:.7g}" if isinstance(value, float) else value for name, value in row.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def replace_folder(source: Path, target: Path) -> None:
    """Put a copy of `source` at `target`. Raises DiskFullError, with `target` as it was."""
    part = target.with_name(target.name + ".part")
    with writing(target):
        shutil.rmtree(part, ignore_errors=True)
        try:
            shutil.copytree(source, part)
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            if any(is_full(each) for each in (error, *_copy_errors(error))):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)


def _copy_errors(error: Exception) -> list[str]:
    """What shutil gathers: (source, target, message) of each file."""
    return [each[2] for each in error.args[0]] if isinstance(error, shutil.Error) else []
