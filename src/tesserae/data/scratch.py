"""Lists of pictures in a file: of a set of millions no list is held in memory.

The file is SQLite's, belongs to one object, and is worthless afterwards: nothing in it outlives a crash.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tesserae.data.near import groups_of
from tesserae.data.raw_metadata import Row
from tesserae.data.splitting import hold_out
from tesserae.errors import TesseraeError

SPLIT = ("train", "validation")
_GIVEN = {name: number for number, name in enumerate(SPLIT)}


class Listing:
    """What a raw folder holds, in the order it was found; and the rows of its metadata, by picture.

    Paths are relative to the folder and may be no UTF-8.
    """

    def __init__(self, place: str | Path = "") -> None:
        """place: the file, "" for one that the system keeps where it keeps temporary files."""
        self._tables = _opened(place, "file (number INTEGER PRIMARY KEY, path BLOB, fault TEXT)",
                               "row (path BLOB PRIMARY KEY, said TEXT, found INTEGER) WITHOUT ROWID",
                               "paired (path BLOB PRIMARY KEY) WITHOUT ROWID",
                               "picture (number INTEGER PRIMARY KEY, path BLOB, fault TEXT, said TEXT, lost INTEGER)")

    def add_file(self, path: str, fault: str | None) -> None:
        """One more; fault: why it cannot be read."""
        self._tables.execute("INSERT INTO file (path, fault) VALUES (?, ?)", (_encoded(path), fault))

    def files(self) -> Iterator[tuple[str, str | None]]:
        """Path and fault of each."""
        for path, fault in self._tables.execute("SELECT path, fault FROM file ORDER BY number"):
            yield _decoded(path), fault

    def add_row(self, path: str, row: Row) -> Row | None:
        """What the metadata says of a picture; returns what they had said of it before."""
        before = self.row(path)
        if before is None:
            said = json.dumps([row.label, row.pairs, row.where])
            self._tables.execute("INSERT INTO row VALUES (?, ?, 0)", (_encoded(path), said))
            self._tables.executemany("INSERT OR IGNORE INTO paired VALUES (?)",
                                     [(_encoded(file),) for file in row.pairs.values()])
        return before

    def row(self, path: str) -> Row | None:
        """What the metadata say of a picture."""
        found = self._tables.execute("SELECT said FROM row WHERE path = ?", (_encoded(path),)).fetchone()
        return _row(found[0]) if found else None

    def is_paired(self, path: str) -> bool:
        """Whether a row names this file beside its picture."""
        return bool(self._tables.execute("SELECT 1 FROM paired WHERE path = ?", (_encoded(path),)).fetchone())

    def add_picture(self, path: str, fault: str | None) -> None:
        """A file that is taken for a picture, with its row."""
        key = _encoded(path)
        self._tables.execute("INSERT INTO picture (path, fault, said, lost) VALUES (?1, ?2, "
                             "(SELECT said FROM row WHERE path = ?1), 0)", (key, fault))
        self._tables.execute("UPDATE row SET found = 1 WHERE path = ?", (key,))

    def add_lost(self) -> None:
        """What rows name, sorted, where there is no picture; after all pictures."""
        self._tables.execute("INSERT INTO picture (path, lost) SELECT path, 1 FROM row WHERE NOT found ORDER BY path")

    def pictures(self, numbers: range) -> Iterator[tuple[str, str | None, Row | None, bool]]:
        """Path, fault and row of those with these numbers, counted from 0 as they came; whether they are lost."""
        found = self._tables.execute("SELECT path, fault, said, lost FROM picture WHERE number BETWEEN ? AND ? "
                                     "ORDER BY number", (numbers.start + 1, numbers.stop))
        for path, fault, said, lost in found:
            yield _decoded(path), fault, said and _row(said), bool(lost)

    def folders(self) -> Iterator[list[str]]:
        """The folders that each picture lies in, the outermost first."""
        for path, in self._tables.execute("SELECT path FROM picture ORDER BY number"):
            yield _decoded(path).split("/")[:-1]

    def counts(self) -> tuple[int, int]:
        """How many pictures there are, and how many of them are lost."""
        return self._tables.execute("SELECT count(*), coalesce(sum(lost), 0) FROM picture").fetchone()


class Kept:
    """The pictures that come into a set, no two the same, in the order they came.

    Known once they are split: with_copies: how many have near-copies among them; leaked: held-out ones that have some
    in training; own_splits: whether they came with splits.
    """

    def __init__(self, place: str | Path = "") -> None:
        """place: as a Listing's."""
        self._tables = _opened(place, "kept (number INTEGER PRIMARY KEY, sha TEXT UNIQUE, path TEXT, label TEXT, "
                                      "given TEXT, width INTEGER, height INTEGER, split TEXT)")
        self._count = 0
        self.with_copies, self.leaked, self.own_splits = 0, 0, False
        self._copies: dict[str, tuple[int, str, str]] = {}  # by label: how many, the first and what it is a copy of

    def __len__(self) -> int:
        return self._count

    def add(self, number: int, sha: str, path: str, label: str | None = None, given: str | None = None,
            size: tuple[int, int] = (0, 0)) -> str | None:
        """One more, with a number above those before it, the hash of its content and its own split.

        Returns the path of the same picture, where it is kept already.
        """
        done = self._tables.execute("INSERT OR IGNORE INTO kept (number, sha, path, label, given, width, height) "
                                    "VALUES (?, ?, ?, ?, ?, ?, ?)", (number, sha, path, label, given, *size))
        self._count += done.rowcount
        if done.rowcount:
            return None
        same = self._tables.execute("SELECT path FROM kept WHERE sha = ?", (sha,)).fetchone()[0]
        if label is not None:
            count, *first = self._copies.get(label, (0, path, same))
            self._copies[label] = (count + 1, *first)
        return same

    def copied_classes(self) -> list[tuple[str, int, str, str]]:
        """Labels that no kept picture has, most copies first: label, copies, one of them, the picture kept for it."""
        there = {label for label, in self._tables.execute("SELECT DISTINCT label FROM kept")}
        lost = [] if None in there else [(name, *said) for name, said in self._copies.items() if name not in there]
        return sorted(lost, key=lambda item: -item[1])

    def split(self, holdout: float, seed: int, pairs: np.ndarray | None = None,
              sure: np.ndarray | None = None) -> None:
        """Say of each whether it is to train on, by its content; see `hold_out` of the module splitting.

        pairs, sure: near-copies, as `near.near_copies` gives them, counted from 0 in the order of addition. Pictures
        with a split of their own keep it, where both occur. Raises TesseraeError with fewer than two pictures.
        """
        if len(self) < 2:
            raise TesseraeError("A split needs two pictures at least: add some.")
        pairs = np.zeros((0, 2), np.int64) if pairs is None else pairs
        sure = np.zeros(len(pairs), bool) if sure is None else sure
        names: dict[str | None, int] = {}
        rows = self._tables.execute("SELECT number, sha, label, given FROM kept ORDER BY sha")  # not by file names
        values = ((number, _place(sha, seed), names.setdefault(label, len(names)), _GIVEN.get(given, -1))
                  for number, sha, label, given in rows)
        found = np.fromiter(values, [("number", "i8"), ("place", "f8"), ("class", "i8"), ("given", "i8")])
        one, other = np.argsort(found["number"])[pairs].T  # now counted in the order of hashes
        self.own_splits = {0, 1} <= set(np.unique(found["given"]))
        if self.own_splits:
            held = np.where(found["given"] < 0, found["place"] < holdout, found["given"] == 1)
        else:
            classes = found["class"] * (None not in names)  # labels that not all have are left out
            held = hold_out(found["place"], classes, groups_of(len(found), np.stack([one, other], 1), sure), holdout)
        self.with_copies = len(np.unique(pairs))
        self.leaked = len(np.unique(np.where(held[one], one, other)[held[one] != held[other]]))
        chosen = ((SPLIT[own], number) for own, number in zip(held.astype(int), map(int, found["number"])))
        self._tables.executemany("UPDATE kept SET split = ? WHERE number = ?", chosen)

    def splits(self, numbers: range) -> list[str | None]:
        """Which split each of these numbers is in, None where nothing is kept."""
        found = dict(self._tables.execute("SELECT number, split FROM kept WHERE number BETWEEN ? AND ?",
                                          (numbers.start, numbers.stop - 1)))
        return [found.get(number) for number in numbers]

    def first_path(self) -> str:
        """Of the first one."""
        return self._tables.execute("SELECT path FROM kept ORDER BY number LIMIT 1").fetchone()[0]

    def paths(self) -> Iterator[str]:
        """Of all."""
        return (path for path, in self._tables.execute("SELECT path FROM kept"))

    def shas(self, split: str) -> Iterator[str]:
        """The hashes of a split's pictures."""
        found = self._tables.execute("SELECT sha FROM kept WHERE split = ? ORDER BY number", (split,))
        return (sha for sha, in found)

    def labels(self) -> Counter[tuple[str, str | None]]:
        """(split, label) -> pictures."""
        found = self._tables.execute("SELECT split, label, count(*) FROM kept GROUP BY split, label")
        return Counter({(split, label): count for split, label, count in found})

    def sizes(self) -> Counter[tuple[int, int]]:
        """(width, height) -> pictures, those that came first before others."""
        found = self._tables.execute("SELECT width, height, count(*) FROM kept GROUP BY width, height "
                                     "ORDER BY min(number)")
        return Counter({(width, height): count for width, height, count in found})


def _place(sha: str, seed: int) -> float:
    """Where in [0,1] a picture stands, by its content and the seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{sha}".encode(), digest_size=8).digest()) / 2**64


def _opened(place: str | Path, *tables: str) -> sqlite3.Connection:
    """A new file with these tables; it is not made safe against crashes, which would take time."""
    opened = sqlite3.connect(place)
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -8192"):  # KiB
        opened.execute(f"PRAGMA {setting}")
    for table in tables:
        opened.execute(f"CREATE TABLE {table}")
    return opened


def _encoded(path: str) -> bytes:
    """Any file's name, as the system gives it or metadata name it; ordered as the names are."""
    return path.encode("utf-8", "surrogatepass")


def _decoded(path: bytes) -> str:
    return path.decode("utf-8", "surrogatepass")


def _row(said: str) -> Row:
    return Row(*json.loads(said))
