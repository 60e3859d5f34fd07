"""metadata.jsonl and metadata.csv: labels and paired files, by picture."""

from __future__ import annotations

import csv
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tesserae.data.entries import RawError

METADATA = ("metadata.jsonl", "metadata.csv")
PAIRED = "_file_name"


@dataclass(frozen=True)
class Row:
    """What is said of one picture. pairs: column -> relative path; where: the file and line that say it."""

    label: str | None
    pairs: dict[str, str] = field(default_factory=dict)
    where: str = field(default="", compare=False)


def read_metadata(folder: Path, files: Iterable[str], add: Callable[[str, Row], Row | None]) -> Iterator[Row]:
    """The rows of these files below `folder`, each handed to `add` first. Raises RawError.

    add(relative path of the picture, row): returns a row that says of the same picture what came before, if any.
    """
    for file in files:
        prefix = posixpath.dirname(file)
        for number, values in _lines(folder / file):
            where = f"{folder / file}, line {number},"
            name = _file_name(values, where)
            row = Row(_label(values.get("label"), where), _pairs(values, prefix, where), where)
            before = add(_below(prefix, name), row)
            if before not in (None, row):
                raise RawError(f"{where} says something else of {name} than {before.where[:-1]}: keep one of them.")
            yield row


def outside(path: str) -> bool:
    """Whether a path of a row leads out of the folder."""
    return posixpath.isabs(path) or path.split("/")[0] == ".." or (len(path) > 1 and path[1] == ":")


def _file_name(values: Any, where: str) -> str:
    if not isinstance(values, dict):
        raise RawError(f"{where} is no object of keys and values: write it as {{\"file_name\": ...}}.")
    name = values.get("file_name")
    if name is None or name == "":
        raise RawError(f"{where} has no file_name: add one, or remove it.")
    if not isinstance(name, str):
        raise RawError(f"{where} has the file_name {_short(name)}, which is no text: put it in quotes.")
    return name


def _label(value: Any, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables made of whole numbers with gaps have it
    if not isinstance(value, (str, int, float)):
        raise RawError(f"{where} has the label {_short(value)}, which is neither a word nor a number: write one.")
    return str(value)


def _pairs(values: dict, prefix: str, where: str) -> dict[str, str]:
    pairs = {}
    for name, value in values.items():
        if not isinstance(name, str) or not name.endswith(PAIRED) or value is None or value == "":
            continue
        if not isinstance(value, str):
            raise RawError(f"{where} has the {name} {_short(value)}, which is no text: put it in quotes.")
        pairs[name.removesuffix(PAIRED)] = _below(prefix, value)
    return pairs


def _below(prefix: str, name: str) -> str:
    """A path of a row, seen from the raw folder; Windows' way of writing it is understood."""
    if "\\" in name and "/" not in name:
        name = name.replace("\\", "/")
    return posixpath.normpath(posixpath.join(prefix, name))


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        if file.suffix == ".csv":
            yield from _table(file)
            return
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except UnicodeDecodeError:
        raise RawError(f"{file} is not UTF-8: save it as that.") from None
    except (json.JSONDecodeError, RecursionError):
        raise RawError(f"{file}, line {number}, is not JSON: mend the line, or remove the file.") from None
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RawError(f"{file} cannot be read ({reason}): mend it, or remove it.") from None


def _table(file: Path) -> Iterator[tuple[int, dict]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        table = csv.DictReader(lines)
        head = table.fieldnames
        if head is not None and "file_name" not in head:
            raise RawError(f"{file} has no column file_name, its first line is {_short(','.join(head))}: name the "
                           "columns there, with commas between.")
        for number, values in enumerate(table, start=2):
            if None in values:
                raise RawError(f"{file}, line {number}, has more cells than there are columns: put names with "
                               "commas in quotes.")
            yield number, values


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "..."


def named(folder: Path, path: str) -> str | None:
    """Why a path that a row names cannot be used, None where it is a file."""
    if outside(path):
        return "lies outside of the folder"
    place = folder / path
    if os.path.isdir(place):
        return "is a folder"
    return None if os.path.isfile(place) else "is missing"
