"""The raw data, listed: which pictures there are, of which class, with which paired files.

A folder is read as Hugging Face's *imagefolder*: class folders give the label, `metadata.jsonl` or
`metadata.csv` may add a `label` and paired `*_file_name` columns, `train/`, `validation/` and `test/` are
taken for splits. Anything else that `datasets` can load is read through it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tesserae.errors import TesseraeError

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test"}
METADATA = ("metadata.jsonl", "metadata.csv")
PAIRED = "_file_name"
TABLES = (".parquet", ".arrow")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}


class RawError(TesseraeError, ValueError):
    """The raw data cannot be listed."""


@dataclass(frozen=True)
class Entry:
    """One picture to be. read: gives the file's bytes; pairs: the same for each paired column."""

    path: str
    read: Callable[[], bytes]
    label: str | None = None
    split: str | None = None  # where the data has splits of its own
    pairs: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    fault: str | None = None  # why it is rejected without being read


@dataclass
class Raw:
    """All entries in a fixed order. ignored: files that are no pictures; notes: what else is worth saying."""

    entries: Iterator[Entry] | list[Entry]
    count: int
    columns: list[str]  # the paired ones
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_source(source: str, root: str | Path) -> str | Path:
    """prepare.source as it was meant: a folder, seen from the root, else the name of a dataset on the hub."""
    place = Path(root) / Path(source).expanduser()
    return source if HUB_NAME.fullmatch(source) and not place.exists() else place


def list_raw(source: str | Path) -> Raw:
    """List a folder of pictures, a folder of tables, or a dataset on the hub. Raises RawError."""
    folder = Path(source)
    if folder.is_dir():
        return _list_tables(folder) if _holds_tables(folder) else _list_folder(folder)
    if folder.exists():
        raise RawError(f"{source} is a file: set prepare.source to the folder that holds the pictures.")
    if HUB_NAME.fullmatch(str(source)) and not folder.parent.is_dir():
        return _list_hub(str(source))
    raise RawError(
        f"{source} does not exist: put pictures there, render landscapes with python -m tesserae.data.scenes,"
        " or set prepare.source to another folder or to a dataset on the hub, as owner/name."
    )


# ---- folders -----------------------------------------------------------------------------------------------


def _list_folder(folder: Path) -> Raw:
    files = list(_walk(folder))
    rows = _read_metadata(folder, [file for file in files if file.rsplit("/", 1)[-1] in METADATA])
    columns = sorted({name for row in rows.values() for name in row["pairs"]})
    paired = {file for row in rows.values() for file in row["pairs"].values()}
    known = set(Image.registered_extensions())
    pictures, ignored = [], []
    for file in files:
        if file.rsplit("/", 1)[-1] in METADATA or file in paired:
            continue
        named = file in rows or os.path.splitext(file)[1].lower() in known
        (pictures if named or _looks_like_one(folder / file) else ignored).append(file)
    lost = sorted(set(rows) - set(pictures))
    places = _places(pictures, labelled=any(row["label"] is not None for row in rows.values()))
    entries = [_entry(folder, file, rows.get(file), places[file], columns) for file in pictures]
    entries += [Entry(file, bytes, fault="named in the metadata, but not there") for file in lost]
    notes: list[str] = []
    entries = _without_spare_test(entries, notes)
    return Raw(entries, len(entries), columns, ignored, notes)


def _walk(folder: Path) -> Iterator[str]:
    """Files below a folder, relative, sorted; links are followed, but no folder is entered twice."""
    entered: set[tuple[int, int]] = set()

    def enter(place: Path, prefix: str) -> Iterator[str]:
        try:
            mark = place.stat()
            content = sorted(os.scandir(place), key=lambda item: item.name)
        except OSError:
            yield prefix.rstrip("/")  # it cannot be entered: reading it will say why
            return
        if (mark.st_dev, mark.st_ino) in entered:
            return
        entered.add((mark.st_dev, mark.st_ino))
        for item in content:
            if item.name.startswith(".") or item.name.lower() in CLUTTER:
                continue
            if item.is_dir():
                yield from enter(Path(item.path), f"{prefix}{item.name}/")
            else:
                yield prefix + item.name

    yield from enter(folder, "")


def _looks_like_one(file: Path) -> bool:
    """Whether a file without a picture's suffix is a picture by its first bytes."""
    try:
        with Image.open(file):
            return True
    except Exception:  # PIL's plugins raise what they like on strange bytes
        return False


def _read_metadata(folder: Path, files: list[str]) -> dict[str, dict]:
    """Relative path -> {"label": str or None, "pairs": {column: relative path}}."""
    rows: dict[str, dict] = {}
    for file in files:
        prefix = file[: -len(file.rsplit("/", 1)[-1])]
        for number, row in _rows(folder / file):
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise RawError(f"{folder / file}, line {number}, has no file_name: add one, or remove it.")
            pairs = {name.removesuffix(PAIRED): _below(prefix, value) for name, value in row.items()
                     if name.endswith(PAIRED) and isinstance(value, str) and value}
            label = row.get("label")
            rows[_below(prefix, row["file_name"])] = {"label": None if label is None else str(label),
                                                      "pairs": pairs}
    return rows


def _below(prefix: str, name: str) -> str:
    return os.path.normpath(prefix + name).replace(os.sep, "/")


def _rows(file: Path) -> Iterator[tuple[int, dict]]:
    try:
        if file.suffix == ".csv":
            with file.open(encoding="utf-8-sig", newline="") as lines:
                yield from enumerate(csv.DictReader(lines), start=2)
            return
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                yield number, json.loads(line)
    except json.JSONDecodeError:
        raise RawError(f"{file}, line {number}, is not JSON: mend the line, or remove the file.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RawError(f"{file} cannot be read ({error}): mend it, or remove it.") from None


def _places(pictures: list[str], labelled: bool) -> dict[str, dict]:
    """The split and the class that each picture's folders stand for: {"split", "label", "fault"}."""
    parts = {file: file.split("/")[:-1] for file in pictures}
    splits: dict[str, str | None] = dict.fromkeys(pictures)
    parts = _without_common(parts)
    if parts and all(folders and folders[0].lower() in SPLITS for folders in parts.values()):
        splits = {file: SPLITS[folders[0].lower()] for file, folders in parts.items()}
        parts = _without_common({file: folders[1:] for file, folders in parts.items()})
    inside = sum(bool(folders) for folders in parts.values())
    classes = not labelled and inside > len(parts) / 2
    return {
        file: {
            "split": splits[file], "label": folders[0] if classes and folders else None,
            "fault": "lies in no class folder, unlike most" if classes and not folders else None,
        }
        for file, folders in parts.items()
    }


def _without_common(parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """Folders with what all of them begin with cut off; a split's folder is kept."""
    keep = 0
    for names in zip(*parts.values()):  # the folders at one depth
        if len(set(names)) > 1 or names[0].lower() in SPLITS:
            break
        keep += 1
    return {file: folders[keep:] for file, folders in parts.items()}


def _entry(folder: Path, file: str, row: dict | None, place: dict, columns: list[str]) -> Entry:
    pairs = row["pairs"] if row else {}
    label = row["label"] if row and row["label"] is not None else place["label"]
    fault = place["fault"]
    for column in columns:
        if column not in pairs:
            fault = fault or f"has no {column} in the metadata, unlike others"
        elif not (folder / pairs[column]).is_file():
            fault = fault or f"{column} is missing: {pairs[column]}"
    readers = {column: (folder / pairs[column]).read_bytes for column in columns if column in pairs}
    return Entry(file, (folder / file).read_bytes, label, place["split"], readers, fault)


def _without_spare_test(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """A test split serves as validation where there is none, else it is left out."""
    splits = {entry.split for entry in entries}
    if "test" not in splits:
        return entries
    if "validation" in splits:
        spare = sum(entry.split == "test" for entry in entries)
        notes.append(f"The test split ({spare:,} pictures) is left out: there is a validation split.")
        return [entry for entry in entries if entry.split != "test"]
    return [Entry(**{**vars(entry), "split": "validation"}) if entry.split == "test" else entry
            for entry in entries]


# ---- what `datasets` loads ---------------------------------------------------------------------------------


def _holds_tables(folder: Path) -> bool:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return True
    return any(file.endswith(TABLES) for file in _walk(folder))


def _list_tables(folder: Path) -> Raw:
    import datasets

    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return _list_dataset(datasets.load_from_disk(str(folder)), str(folder))
        return _list_dataset(datasets.load_dataset(str(folder)), str(folder))
    except RawError:
        raise
    except Exception as error:
        reason = _one_line(error)
        raise RawError(f"{folder} holds tables that cannot be loaded ({reason}): mend them.") from None


def _list_hub(name: str) -> Raw:
    import datasets

    try:
        return _list_dataset(datasets.load_dataset(name), name)
    except RawError:
        raise
    except Exception as error:
        raise RawError(f"{name} is neither a folder here nor a dataset that could be loaded from the hub "
                       f"({_one_line(error)}): check prepare.source and the connection.") from None


def _list_dataset(loaded, name: str) -> Raw:
    import datasets

    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    parts = {key: part for key, part in loaded.items() if len(part)}
    if not parts:
        raise RawError(f"{name} is empty: set prepare.source to a dataset with pictures.")
    features = next(iter(parts.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        found = ", ".join(features)
        raise RawError(f"{name} has no column of pictures, only {found}: set prepare.source to another.")
    image = next((column for column in ("image", "img") if column in images), images[0])
    pairs = [column for column in images if column != image]
    label = next((c for c, f in features.items() if isinstance(f, datasets.ClassLabel)),
                 "label" if "label" in features else None)
    splits = {key: SPLITS.get(key.lower(), "train") for key in parts}
    notes: list[str] = []
    if "validation" in splits.values() and "test" in splits.values():
        spare = [key for key, split in splits.items() if split == "test"]
        notes.append(f"The test split ({sum(len(parts.pop(key)) for key in spare):,} pictures) is left out: "
                     "there is a validation split.")
    given = len({splits[key] for key in parts}) > 1

    def entries() -> Iterator[Entry]:
        for key, part in parts.items():
            split = "validation" if splits[key] == "test" else splits[key]
            for column in images:
                part = part.cast_column(column, datasets.Image(decode=False))
            for number, row in enumerate(part):
                yield Entry(
                    f"{key}/{number:07d}", _reader(row[image]), _word(features, label, row),
                    split if given else None, {column: _reader(row[column]) for column in pairs},
                )

    return Raw(entries(), sum(map(len, parts.values())), pairs, [], notes)


def _reader(value: dict | None) -> Callable[[], bytes]:
    if value is None:
        return bytes
    content = value.get("bytes")
    return (lambda: content) if content is not None else Path(value["path"]).read_bytes


def _word(features, label: str | None, row: dict) -> str | None:
    if label is None or row[label] is None:
        return None
    feature = features[label]
    return feature.int2str(row[label]) if hasattr(feature, "int2str") else str(row[label])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
