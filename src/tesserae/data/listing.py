"""The raw data, listed: which pictures there are, of which class, with which paired files.

A folder is read as Hugging Face's *imagefolder*: class folders give the label, `metadata.jsonl` or `metadata.csv` may
add a `label` and paired `*_file_name` columns, `train/`, `validation/` and `test/` are splits. `datasets` stops at
the first file of a folder that is wrong; here each one is listed with the reason, and none passed over in silence.
Metadata are read line by line, so that an error can name the line. Parquet, Arrow and WebDataset files and names on
the hub are loaded by `datasets`: see the module `tables`.
"""

from __future__ import annotations

import csv
import json
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesserae.data.decoding import is_picture, is_picture_name, unreadable
from tesserae.data.tables import (
    HUB_KEYS,
    SPLITS,
    TABLES,
    Listing,
    RawError,
    features_of,
    list_hub,
    list_tables,
    pictures_in,
)

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Listing", "RawError", "find_source", "list_source"]

METADATA = ("metadata.jsonl", "metadata.csv")
PAIRED = "_file_name"  # ends the names of columns of metadata that name paired files
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CLUTTER = re.compile(r"thumbs\.db|desktop\.ini|__macosx|\._.*|\.ds_store|\.directory|\.git.*|\.dvc.*|\.cache|"
                     r"\.trash.*|\.ipynb_checkpoints|\.picasa\.ini|\.nomedia|\.fseventsd|\.spotlight.*",
                     re.IGNORECASE)
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "depth", "depths", "labels", "annotations"}
LARGEST_FILE = 1 << 30  # bytes


def find_source(source: str, root: str | Path) -> str | Path:
    """prepare.source as it is meant: a folder, relative to the root, else the name of a dataset on the hub."""
    place = Path(root) / Path(source).expanduser()
    return source if HUB_NAME.fullmatch(source) and not place.exists() else place


def list_source(source: str | Path, hub: Mapping[str, str] | None = None) -> Listing:
    """List a folder of pictures, a folder of tables, or a dataset on the hub. Raises RawError.

    hub: configuration, split and revision of a dataset on the hub, see `PrepareParams.hub`.
    """
    folder = Path(source)
    if hub and folder.exists():
        keys = [f"prepare.{HUB_KEYS[name]} = {value!r}" for name, value in hub.items()]
        raise RawError(f"{' and '.join(keys)} {'are' if len(keys) > 1 else 'is'} for a dataset on the hub, and "
                       f"prepare.source is {source} here: set {'them' if len(keys) > 1 else 'it'} to \"\", or "
                       "prepare.source to the name of the dataset.")
    if folder.is_dir():
        walk = _Walk(folder)
        return _list_tables(folder, walk) if walk.tables else _list_folder(folder, walk)
    if folder.exists():
        raise RawError(f"{source} is a file: set prepare.source to the folder that holds the pictures.")
    if HUB_NAME.fullmatch(str(source)) and not folder.parent.is_dir():
        return list_hub(str(source), hub or {})
    raise RawError(
        f"{source} does not exist: put pictures there, render landscapes with python -m tesserae.scenes,"
        " or set prepare.source to another folder or to a dataset on the hub, as owner/name."
    )


def check_columns(source: str, there: list[str], wanted: Mapping[str, str]) -> None:
    """Raise RawError where a VQGAN reads a column that the data lack. wanted: column, by the name of its block."""
    for name, column in wanted.items():
        if column not in ("image", *there):
            raise RawError(f"vqgan.{name}.column = {column!r} is not among the columns of {source}, which are "
                           f"{', '.join(['image', *there])}: name one of them, remove vqgan.{name}, or pair the "
                           f"pictures with files of their names: python -m tesserae.data.pair {source} "
                           f"{column}=FOLDER-OF-THESE.")


def readable(name: str) -> str:
    """A file's name as it can be printed and stored: bytes that are not UTF-8 and control characters as codes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", text)


def some(names: list[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


# ---- the files of a folder ---------------------------------------------------------------------------------


@dataclass
class _Walk:
    """The files below a folder, sorted; links are followed, but no folder is entered twice.

    errors: why a file cannot be read. metadata, tables: such files. hidden: names that begin with a dot. again:
    folders that links lead to a second time.
    """

    folder: Path
    files: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._entered: set[tuple[int, int]] = set()
        self._enter(self.folder, "")

    def _enter(self, place: Path, prefix: str) -> None:
        try:
            about = place.stat()
            content = sorted(os.scandir(place), key=lambda item: item.name)
        except OSError as error:
            if not prefix:
                raise RawError(f"{place} cannot be entered ({error.strerror}): see to its rights.") from None
            self._add(prefix.rstrip("/"), f"a folder that cannot be entered: {error.strerror}")
            return
        if (about.st_dev, about.st_ino) in self._entered:
            self.again.append(readable(prefix.rstrip("/")))
            return
        self._entered.add((about.st_dev, about.st_ino))
        for item in content:
            path = prefix + item.name
            if CLUTTER.fullmatch(item.name):
                continue
            if item.name.startswith("."):
                self.hidden.append(readable(path))
            elif _is_folder(item):
                self._enter(Path(item.path), f"{path}/")
            else:
                self._add(path, _error_of(item, path))

    def _add(self, path: str, error: str | None) -> None:
        self.files.append(path)
        if error:
            self.errors[path] = error
        elif path.endswith(tuple(TABLES)):
            self.tables.append(path)
        if path.rsplit("/", 1)[-1] in METADATA:
            self.metadata.append(path)

    @property
    def notes(self) -> list[str]:
        """What was passed over, a sentence each."""
        found = []
        if self.hidden:
            found.append(f"Names that begin with a dot are left out: {some(self.hidden)}.")
        if self.again:
            found.append(f"Links to folders that are listed already are left out: {some(self.again)}.")
        return found


def _is_folder(item: os.DirEntry) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _error_of(item: os.DirEntry, path: str) -> str | None:
    """Why something that is not a folder cannot be read, None where it can."""
    try:
        path.encode()
        about = item.stat()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    except FileNotFoundError:
        return "a link to something that is not there"
    except OSError as error:
        return "a link that leads back to itself" if item.is_symlink() else str(error.strerror)
    if not stat.S_ISREG(about.st_mode):
        return "no file, but a pipe, a socket or a device"
    if about.st_size <= LARGEST_FILE or item.name.endswith(tuple(TABLES)):
        return None
    return f"too large: a file of {about.st_size / 1e9:.1f} GB"


def _list_tables(folder: Path, walk: _Walk) -> Listing:
    """Tables, unless there are as many files of pictures as pictures in the tables, or more; a note says so."""
    loose = [readable(file) for file in walk.files
             if file not in walk.errors and (is_picture_name(file) or is_picture(folder / file))]
    if not loose:
        return list_tables(folder, walk.tables, alone=True)
    if sum(pictures_in(folder / table) for table in walk.tables) > len(loose):
        listing = list_tables(folder, walk.tables, alone=False)
        note = f"Pictures beside the tables, which hold more of them, are left out: {some(loose)}."
        return replace(listing, ignored=loose, notes=[*listing.notes, note])
    listing = _list_folder(folder, walk)
    names = some([readable(table) for table in walk.tables])
    note = (f"Tables beside the pictures are left out: {names}. Labels and paired files are read from metadata.jsonl "
            "or metadata.csv.")
    return replace(listing, notes=[*listing.notes, note])


def _list_folder(folder: Path, walk: _Walk) -> Listing:
    for file in walk.metadata:
        if file in walk.errors:
            raise RawError(f"{folder / readable(file)} is {walk.errors[file]}: repair it, or remove it.")
    rows = read_metadata(folder, walk.metadata)
    paired = {file for row in rows.values() for file in row.pairs.values()}
    files, ignored = [], []
    for file in walk.files:
        if file in walk.metadata or file in paired:
            continue
        if file in walk.errors or file in rows or is_picture_name(file) or is_picture(folder / file):
            files.append(file)
        else:
            ignored.append(readable(file))
    lost = sorted(rows.keys() - set(files))
    places = _Places.of(files, any(row.label is not None for row in rows.values()))
    columns = sorted({column for row in rows.values() for column in row.pairs})
    notes = walk.notes + ([] if columns else places.suspicions()) + ([] if rows else places.one_folder())
    if places.splits["test"] and places.splits["validation"]:
        notes.append(f"The test split ({places.splits['test']:,} pictures) is left out: there is a validation split.")
        files = [file for file in files if places.split(file) != "test"]

    def dataset() -> Dataset:
        import datasets

        found: dict[str, list] = {name: [] for name in features_of(columns)}
        for file in files:
            row = _row(folder, file, rows.get(file), places, columns, walk.errors.get(file))
            for name, values in found.items():
                values.append(row[name])
        for file in lost:
            for name, values in found.items():
                values.append({"path": readable(file), "error": _why_lost(folder, file)}.get(name))
        return datasets.Dataset.from_dict(found, features_of(columns))

    return Listing(dataset, len(files) + len(lost), columns, ignored, notes)


def _row(folder: Path, file: str, row: MetadataRow | None, places: _Places, columns: list[str],
         error: str | None) -> dict[str, Any]:
    """The row of a picture, with the columns of `features_of`."""
    pairs = row.pairs if row else {}
    label = row.label if row and row.label is not None else places.label(file)
    split = places.split(file)
    if kind := unreadable(file):
        error = error or f"{kind} pictures are not read here: convert this one to PNG or JPEG"
    if places.classes and places.label(file) is None:
        error = error or "lies in no class folder, unlike most"
    for column in columns:
        if column not in pairs:
            error = error or f"has no {column} in the metadata, unlike others"
        elif reason := _why_unusable(folder, pairs[column]):
            error = error or f"{column} {reason}: {readable(pairs[column])}"
    places = {"image": file, **pairs}
    return {"path": readable(file), "label": None if label is None else readable(label),
            "given": "validation" if split == "test" else split, "error": error,
            **{column: None if error else {"bytes": None, "path": str(folder / places[column])}
               for column in ("image", *columns)}}


def _why_lost(folder: Path, file: str) -> str:
    reason = _why_unusable(folder, file)
    return "named in the metadata, but not there" if reason in (None, "is missing") else (
        f"named in the metadata, but it {reason}")


def _why_unusable(folder: Path, path: str) -> str | None:
    """Why a path that metadata name cannot be used, None where it is a file."""
    if posixpath.isabs(path) or path.split("/")[0] == ".." or (len(path) > 1 and path[1] == ":"):
        return "lies outside of the folder"
    place = folder / path
    if os.path.isdir(place):
        return "is a folder"
    return None if os.path.isfile(place) else "is missing"


# ---- what folders stand for --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Places:
    """What the folders that pictures lie in stand for.

    splits: how many pictures are of each, empty where the folders are not splits; split_depth: at which depth they
    are. depth: of the folders that are classes; classes: their names, empty where they are not. tops: outermost
    folders, None for none. maps: folders that are not classes and are called as folders of masks or depth are.
    """

    splits: Counter[str]
    split_depth: int
    depth: int
    classes: set[str]
    tops: set[str | None]
    maps: set[str]

    @classmethod
    def of(cls, files: list[str], labelled: bool) -> _Places:
        """What the folders of all pictures stand for; labelled: whether metadata give the classes."""
        split_depth = depth = _common(_folders(file) for file in files)
        named = [SPLITS.get(folders[depth].lower()) if len(folders := _folders(file)) > depth else None
                 for file in files]
        splits = Counter() if None in named else Counter(named)
        if splits:
            depth += 1
            depth += _common(_folders(file)[depth:] for file in files)
        below = Counter(folders[depth] for file in files if len(folders := _folders(file)) > depth)
        tops = {(*_folders(file), None)[0] for file in files}
        classes = {*below} if not labelled and below.total() > len(files) / 2 else set()
        maps = {name for name in below.keys() - classes if name.lower() in MASK_FOLDERS}
        return cls(splits, split_depth, depth, classes, tops, maps)

    def split(self, file: str) -> str | None:
        """The split that a picture belongs to by its folders."""
        return SPLITS[file.split("/")[self.split_depth].lower()] if self.splits else None

    def label(self, file: str) -> str | None:
        """The class that a picture has by its folders."""
        folders = _folders(file)
        return folders[self.depth] if self.classes and len(folders) > self.depth else None

    def suspicions(self) -> list[str]:
        """What looks like a mistake, but may be meant."""
        if self.maps:
            name = readable(min(self.maps))
            return [f"The files in the folder {name} are taken for pictures of the set: if they are masks or maps of "
                    f"the others, pair them, for instance by make own with PAIR=segmentation={name} and "
                    "PRESET=own-masks."]
        found = sorted(name for name in self.classes if name.lower() in MASK_FOLDERS)
        return [f"The folder {readable(name)} is taken for a class: if it holds masks or maps of the pictures, pair "
                "them in metadata.jsonl." for name in found]

    def one_folder(self) -> list[str]:
        """A note where all pictures lie in one folder, whose name might be meant as a class."""
        if len(self.tops) > 1 or self.tops <= {None} or self.splits or self.classes:
            return []
        return [f"Every picture lies in the folder {readable(min(self.tops))}, so there are no classes."]


def _folders(file: str) -> list[str]:
    return file.split("/")[:-1]


def _common(places: Iterable[list[str]]) -> int:
    """How many folders all places begin with; a split's folder is not counted."""
    places = iter(places)
    common = next(places, [])
    for folders in places:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(common, folders))
        common = [name for name, _ in same]
        if not common:
            break
    return sum(1 for _ in takewhile(lambda name: name.lower() not in SPLITS, common))


# ---- metadata.jsonl and metadata.csv -----------------------------------------------------------------------


@dataclass(frozen=True)
class MetadataRow:
    """What metadata say of one picture. pairs: column -> relative path; where: the file and line."""

    label: str | None
    pairs: dict[str, str]
    where: str = field(default="", compare=False)


def read_metadata(folder: Path, files: Iterable[str]) -> dict[str, MetadataRow]:
    """The rows of these files below `folder`, by the relative path of their picture. Raises RawError."""
    rows: dict[str, MetadataRow] = {}
    for file in files:
        prefix = posixpath.dirname(file)
        for number, values in _lines(folder / file):
            where = f"{folder / file}, line {number},"
            name = _file_name(values, where)
            row = MetadataRow(_label(values.get("label"), where), _pairs(values, prefix, where), where)
            before = rows.setdefault(_below(prefix, name), row)
            if before != row:
                raise RawError(f"{where} says something else of {name} than {before.where[:-1]}: keep one of them.")
    return rows


def _file_name(values: Any, where: str) -> str:
    if not isinstance(values, dict):
        raise RawError(f"{where} is no object of keys and values: write it as {{\"file_name\": ...}}.")
    name = _text(values, "file_name", where)
    if name is None:
        raise RawError(f"{where} has no file_name: add one, or remove it.")
    return name


def _text(values: dict, key: str, where: str) -> str | None:
    """The text of a key, None where it has none. Raises RawError for anything else."""
    value = values.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RawError(f"{where} has the {key} {_short(value)}, which is no text: put it in quotes.")
    return value


def _label(value: Any, where: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables made of whole numbers with gaps have it
    if not isinstance(value, (str, int, float)):
        raise RawError(f"{where} has the label {_short(value)}, which is neither a word nor a number: write one.")
    return str(value)


def _pairs(values: dict, prefix: str, where: str) -> dict[str, str]:
    found = {key.removesuffix(PAIRED): _text(values, key, where) for key in values if key.endswith(PAIRED)}
    return {column: _below(prefix, file) for column, file in found.items() if file is not None}


def _below(prefix: str, name: str) -> str:
    """A path of a row relative to the raw folder; Windows' way of writing it is understood."""
    if "\\" in name and "/" not in name:
        name = name.replace("\\", "/")
    return posixpath.normpath(posixpath.join(prefix, name))


def _lines(file: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        if file.suffix == ".csv":
            yield from _csv_lines(file)
            return
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except UnicodeDecodeError:
        raise RawError(f"{file} is not UTF-8: save it as that.") from None
    except (json.JSONDecodeError, RecursionError):
        raise RawError(f"{file}, line {number}, is not JSON: repair the line, or remove the file.") from None
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise RawError(f"{file} cannot be read ({reason}): repair it, or remove it.") from None


def _csv_lines(file: Path) -> Iterator[tuple[int, dict]]:
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
