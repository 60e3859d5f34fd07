"""The raw data, listed: which pictures there are, of which class, with which paired files.

A folder is read as Hugging Face's *imagefolder*: class folders give the label, `metadata.jsonl` or
`metadata.csv` may add a `label` and paired `*_file_name` columns, `train/`, `validation/` and `test/` are
taken for splits. Anything else that `datasets` can load is read through it.

Every file is an entry, a paired file, ignored by name, or noted: none is passed over in silence.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from tesserae.data.entries import SPLITS, Entry, Raw, RawError, is_text, readable
from tesserae.data.raw_metadata import METADATA, Row, named, read_metadata
from tesserae.data.raw_tables import SAVED, TABLES, list_hub, list_tables

__all__ = ["Entry", "Raw", "RawError", "find_source", "list_raw"]

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CLUTTER = re.compile(r"thumbs\.db|desktop\.ini|__macosx|\._.*|\.ds_store|\.directory|\.git.*|\.dvc.*|\.cache|"
                     r"\.trash.*|\.ipynb_checkpoints|\.picasa\.ini|\.nomedia|\.fseventsd|\.spotlight.*",
                     re.IGNORECASE)
UNREADABLE = {".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".jxl": "JPEG XL", ".svg": "SVG", ".dng": "DNG",
              ".cr2": "raw", ".cr3": "raw", ".nef": "raw", ".arw": "raw", ".raf": "raw", ".orf": "raw", ".rw2": "raw",
              ".xcf": "XCF", ".kra": "KRA"}  # pictures that Pillow does not read, where it has no plugin for them
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "depth", "depths", "labels", "annotations"}
LARGEST_FILE = 1 << 30  # bytes


def find_source(source: str, root: str | Path) -> str | Path:
    """prepare.source as it was meant: a folder, seen from the root, else the name of a dataset on the hub."""
    place = Path(root) / Path(source).expanduser()
    return source if HUB_NAME.fullmatch(source) and not place.exists() else place


def list_raw(source: str | Path) -> Raw:
    """List a folder of pictures, a folder of tables, or a dataset on the hub. Raises RawError."""
    folder = Path(source)
    if folder.is_dir():
        walk = _Walk(folder)
        tables = any((folder / name).is_file() for name in SAVED) or any(
            file.endswith(TABLES) for file in walk.files)
        return list_tables(folder) if tables else _list_folder(folder, walk)
    if folder.exists():
        raise RawError(f"{source} is a file: set prepare.source to the folder that holds the pictures.")
    if HUB_NAME.fullmatch(str(source)) and not folder.parent.is_dir():
        return list_hub(str(source))
    raise RawError(
        f"{source} does not exist: put pictures there, render landscapes with python -m tesserae.data.scenes,"
        " or set prepare.source to another folder or to a dataset on the hub, as owner/name."
    )


@dataclass
class _Walk:
    """Files below a folder, relative and sorted; links are followed, but no folder is entered twice.

    faults: what lies there and cannot be read, with the reason. hidden: names that begin with a dot.
    again: folders that links lead to a second time.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._entered: set[tuple[int, int]] = set()
        self._enter(self.folder, "")

    def _enter(self, place: Path, prefix: str) -> None:
        try:
            mark = place.stat()
            content = sorted(os.scandir(place), key=lambda item: item.name)
        except OSError as error:
            if not prefix:
                raise RawError(f"{place} cannot be entered ({error.strerror}): see to its rights.") from None
            self._add(prefix.rstrip("/"), f"a folder that cannot be entered: {error.strerror}")
            return
        if (mark.st_dev, mark.st_ino) in self._entered:
            self.again.append(readable(prefix.rstrip("/")))
            return
        self._entered.add((mark.st_dev, mark.st_ino))
        for item in content:
            path = prefix + item.name
            if CLUTTER.fullmatch(item.name):
                continue
            if item.name.startswith("."):
                self.hidden.append(readable(path))
            elif _is_folder(item):
                self._enter(Path(item.path), f"{path}/")
            else:
                self._add(path, _fault(item) if is_text(path) else "its name is not UTF-8: rename it")

    def _add(self, path: str, fault: str | None) -> None:
        self.files.append(path)
        if fault:
            self.faults[path] = fault

    @property
    def notes(self) -> list[str]:
        """What was passed over, a sentence each."""
        said = []
        if self.hidden:
            said.append(f"Names that begin with a dot are left out: {_some(self.hidden)}.")
        if self.again:
            said.append(f"Links to folders that are listed already are left out: {_some(self.again)}.")
        return said


def _is_folder(item: os.DirEntry) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _fault(item: os.DirEntry) -> str | None:
    """Why something that is no folder cannot be read, None where it can."""
    try:
        about = item.stat()
    except FileNotFoundError:
        return "a link to something that is not there"
    except OSError as error:
        return "a link that leads back to itself" if item.is_symlink() else str(error.strerror)
    if not stat.S_ISREG(about.st_mode):
        return "no file, but a pipe, a socket or a device"
    return f"too large: a file of {about.st_size / 1e9:.1f} GB" if about.st_size > LARGEST_FILE else None


def _list_folder(folder: Path, walk: _Walk) -> Raw:
    tables = [file for file in walk.files if file.rsplit("/", 1)[-1] in METADATA]
    for file in filter(walk.faults.get, tables):
        raise RawError(f"{folder / readable(file)} is {walk.faults[file]}: mend it, or remove it.")
    rows = read_metadata(folder, tables)
    columns = sorted({name for row in rows.values() for name in row.pairs})
    paired = {file for row in rows.values() for file in row.pairs.values()}
    pictures, ignored = [], []
    for file in walk.files:
        if file in tables or file in paired:
            continue
        is_one = file in rows or file in walk.faults or _is_picture(folder / file)
        (pictures if is_one else ignored).append(file)
    lost = sorted(set(rows) - set(pictures))
    places = _places(pictures, labelled=any(row.label is not None for row in rows.values()))
    entries = [_entry(folder, file, rows.get(file), places[file], columns, walk.faults.get(file))
               for file in pictures]
    entries += [Entry(readable(file), bytes, fault=_why_lost(folder, file)) for file in lost]
    notes = walk.notes + _suspicions(places, columns) + ([] if rows else _one_folder(places))
    entries = _without_spare_test(entries, notes)
    return Raw(entries, len(entries), columns, list(map(readable, ignored)), notes)


def _is_picture(file: Path) -> bool:
    """By its suffix, else by its first bytes."""
    suffix = file.suffix.lower()
    if suffix in Image.registered_extensions() or suffix in UNREADABLE:
        return True
    try:
        with Image.open(file):
            return True
    except Exception:  # PIL's plugins raise what they like on strange bytes
        return False


def _why_lost(folder: Path, file: str) -> str:
    reason = named(folder, file)
    return "named in the metadata, but not there" if reason in (None, "is missing") else (
        f"named in the metadata, but it {reason}")


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


def _entry(folder: Path, file: str, row: Row | None, place: dict, columns: list[str], fault: str | None) -> Entry:
    pairs = row.pairs if row else {}
    label = row.label if row and row.label is not None else place["label"]
    suffix = Path(file).suffix.lower()
    if suffix in UNREADABLE and suffix not in Image.registered_extensions():
        fault = fault or f"{UNREADABLE[suffix]} pictures are not read here: convert this one to PNG or JPEG"
    fault = fault or place["fault"]
    for column in columns:
        if column not in pairs:
            fault = fault or f"has no {column} in the metadata, unlike others"
        elif reason := named(folder, pairs[column]):
            fault = fault or f"{column} {reason}: {readable(pairs[column])}"
    readers = {column: (folder / pairs[column]).read_bytes for column in columns if column in pairs}
    return Entry(readable(file), (folder / file).read_bytes, label and readable(label), place["split"], readers,
                 fault)


def _suspicions(places: dict[str, dict], columns: list[str]) -> list[str]:
    """What looks like a mistake, but may be meant."""
    labels = {place["label"] for place in places.values()} - {None}
    found = [] if columns else sorted(label for label in labels if label.lower() in MASK_FOLDERS)
    return [f"The folder {readable(name)} is taken for a class: if it holds masks or maps of the pictures, pair them "
            "in metadata.jsonl." for name in found]


def _one_folder(places: dict[str, dict]) -> list[str]:
    """Classes are folders beside each other; who has one may wonder where it went."""
    tops = {file.split("/")[0] if "/" in file else None for file in places}
    if len(tops) > 1 or tops <= {None} or any(place["split"] or place["label"] for place in places.values()):
        return []
    return [f"Every picture lies in the folder {readable(tops.pop())}, so there are no classes."]


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _without_spare_test(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """A test split serves as validation where there is none, else it is left out."""
    splits = {entry.split for entry in entries}
    if "test" not in splits:
        return entries
    if "validation" in splits:
        spare = sum(entry.split == "test" for entry in entries)
        notes.append(f"The test split ({spare:,} pictures) is left out: there is a validation split.")
        return [entry for entry in entries if entry.split != "test"]
    return [replace(entry, split="validation") if entry.split == "test" else entry for entry in entries]
