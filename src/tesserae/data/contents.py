"""What a folder of raw pictures holds, as one hash: equal names and equal bytes, equal hash, wherever it lies."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tesserae.data.listing import CLUTTER

UNREADABLE = "cannot be read"  # in a hash's place
BATCH = 1000  # files whose hashes are written together
_TABLE = "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, mark TEXT, hash TEXT)"


@dataclass(frozen=True)
class Contents:
    """files: how many there are; digest: 32 hexadecimal digits of their names and bytes; new: whether a file was read
    that was not known already."""

    files: int
    digest: str
    new: bool


def contents_of(folder: str | Path, known: str | Path,
                progress: Callable[[int, int], None] | None = None) -> Contents:
    """Hash every file below `folder`, links followed; what `prepare` passes over by name is left out.

    known: a file that keeps the hashes by size, time and number of each file, so that a second call reads none; where
    it cannot be kept, all are read. progress(done, count) is called as files are read. Raises OSError where `folder`
    cannot be listed.
    """
    folder = Path(folder)
    paths = sorted(_files(folder))
    digest, new = hashlib.blake2b(digest_size=16), False
    with closing(_opened(Path(known))) as memory:
        fresh: list[tuple[str, str, str]] = []
        for done, path in enumerate(paths, 1):
            full = os.path.join(folder, path)
            mark = _mark(full)
            row = memory.execute("SELECT mark, hash FROM files WHERE path = ?", (_utf8(full),)).fetchone()
            if row is None or row[0] != mark:
                new = True
                fresh.append((_utf8(full), mark, _hash(full)))
                row = fresh[-1][1:]
            digest.update(f"{_utf8(path)}\0{row[1]}\0".encode())
            if len(fresh) >= BATCH or (fresh and done == len(paths)):
                _keep(memory, fresh)
                fresh = []
            if progress and new:
                progress(done, len(paths))
    return Contents(len(paths), digest.hexdigest(), new)


def _files(folder: Path) -> Iterator[str]:
    """The files below, relative to the folder; no folder is entered twice, though links may lead there."""
    os.listdir(folder)  # os.walk passes over a folder that cannot be listed
    entered = set()
    for place, inside, files in os.walk(folder, followlinks=True):
        about = os.stat(place)
        if (about.st_dev, about.st_ino) in entered:
            inside.clear()
            continue
        entered.add((about.st_dev, about.st_ino))
        inside[:] = sorted(name for name in inside if not _left_out(name))
        for name in files:
            if not _left_out(name):
                yield os.path.relpath(os.path.join(place, name), folder)


def _left_out(name: str) -> bool:
    return name.startswith(".") or CLUTTER.fullmatch(name) is not None


def _mark(path: str) -> str:
    try:
        about = os.stat(path)
    except OSError:
        return ""
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"


def _hash(path: str) -> str:
    try:
        if not os.path.isfile(path):  # a pipe would be waited for
            return UNREADABLE
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return UNREADABLE


def _opened(known: Path) -> sqlite3.Connection:
    """The hashes that are known; in memory alone where the file can be neither read nor made."""
    for attempt in (1, 2):
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            memory = sqlite3.connect(known, timeout=30)
            memory.execute(_TABLE)
            return memory
        except sqlite3.DatabaseError as error:
            if attempt == 1 and not isinstance(error, sqlite3.OperationalError):
                known.unlink(missing_ok=True)  # no store of hashes
        except OSError:
            break
    memory = sqlite3.connect(":memory:")
    memory.execute(_TABLE)
    return memory


def _keep(memory: sqlite3.Connection, rows: list[tuple[str, str, str]]) -> None:
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", rows)
    except sqlite3.Error:  # a full disk: these files are read once more next time
        pass


def _utf8(path: str) -> str:
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")
