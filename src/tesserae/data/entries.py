"""What the raw data is listed as: one entry a picture, with its class, its split and its paired files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tesserae.errors import TesseraeError

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test"}


class RawError(TesseraeError, ValueError):
    """The raw data cannot be listed."""


class Rejected(Exception):
    """Why a file is no picture for the set."""


@dataclass(frozen=True)
class Entry:
    """One picture to be. read: gives the file's bytes; pairs: the same for each paired column.

    mark: another one where what is read has changed, as far as can be told without reading.
    """

    path: str
    read: Callable[[], bytes]
    label: str | None = None
    split: str | None = None  # where the data has splits of its own
    pairs: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    fault: str | None = None  # why it is rejected without being read
    mark: str = ""

    @property
    def size(self) -> int:
        """Bytes of its files, as the mark tells; 0 where they lie in a table."""
        return sum(int(part.split(":")[0]) for part in self.mark.split() if ":" in part)


@dataclass
class Raw:
    """All entries in a fixed order. ignored: files that are no pictures; notes: what else is worth saying.

    entries(numbers): those with these numbers, one at a time; 0 to length - 1 are all. Numbers of what is left out
    have none, so there are `count` of them.
    """

    entries: Callable[[range], Iterator[Entry]]
    length: int
    count: int
    columns: list[str]  # the paired ones
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def readable(name: str) -> str:
    """A file's name as it can be printed and stored: what is no text, or no letter, is written as its code."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", text)


def is_text(name: str) -> bool:
    """Whether a file's name can be decoded at all."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def mark_of(file: Path) -> str:
    """A file's size and time: another one after it was written."""
    try:
        about = file.stat()
    except (OSError, ValueError):
        return "none"
    return f"{about.st_size}:{about.st_mtime_ns}"
