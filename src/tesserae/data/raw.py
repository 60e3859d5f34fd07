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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from tesserae.data.entries import SPLITS, Entry, Raw, RawError, is_text, mark_of, readable
from tesserae.data.formats import is_picture, is_picture_name, unreadable
from tesserae.data.raw_metadata import METADATA, Row, named, read_metadata
from tesserae.data.raw_tables import HUB_KEYS, TABLES, list_hub, list_tables, pictures_in
from tesserae.data.scratch import Listing

__all__ = ["Entry", "Raw", "RawError", "find_source", "list_raw"]

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
CLUTTER = re.compile(r"thumbs\.db|desktop\.ini|__macosx|\._.*|\.ds_store|\.directory|\.git.*|\.dvc.*|\.cache|"
                     r"\.trash.*|\.ipynb_checkpoints|\.picasa\.ini|\.nomedia|\.fseventsd|\.spotlight.*",
                     re.IGNORECASE)
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "depth", "depths", "labels", "annotations"}
LARGEST_FILE = 1 << 30  # bytes


def find_source(source: str, root: str | Path) -> str | Path:
    """prepare.source as it was meant: a folder, seen from the root, else the name of a dataset on the hub."""
    place = Path(root) / Path(source).expanduser()
    return source if HUB_NAME.fullmatch(source) and not place.exists() else place


def list_raw(source: str | Path, scratch: str | Path = "", hub: Mapping[str, str] | None = None) -> Raw:
    """List a folder of pictures, a folder of tables, or a dataset on the hub. Raises RawError.

    scratch: a file for what is found, which may be much; "" for one where the system keeps temporary files. hub: what
    else is said of a dataset on the hub, see `PrepareParams.hub`.
    """
    folder = Path(source)
    if hub and folder.exists():
        keys = [f"prepare.{HUB_KEYS[name]} = {value!r}" for name, value in hub.items()]
        raise RawError(f"{' and '.join(keys)} {'are' if len(keys) > 1 else 'is'} for a dataset on the hub, and "
                       f"prepare.source is {source} here: set {'them' if len(keys) > 1 else 'it'} to \"\", or "
                       "prepare.source to the name of the dataset.")
    if folder.is_dir():
        listing = Listing(scratch)
        walk = _Walk(folder, listing)
        return _list_tables(folder, walk, listing) if walk.tables else _list_folder(folder, walk, listing)
    if folder.exists():
        raise RawError(f"{source} is a file: set prepare.source to the folder that holds the pictures.")
    if HUB_NAME.fullmatch(str(source)) and not folder.parent.is_dir():
        return list_hub(str(source), hub or {})
    raise RawError(
        f"{source} does not exist: put pictures there, render landscapes with python -m tesserae.scenes,"
        " or set prepare.source to another folder or to a dataset on the hub, as owner/name."
    )


@dataclass
class _Walk:
    """Lists the files below a folder, sorted; links are followed, but no folder is entered twice.

    metadata: such files, each with the reason if it cannot be read. tables: files of them. hidden: names that
    begin with a dot. again: folders that links lead to a second time.
    """

    folder: Path
    listing: Listing
    metadata: dict[str, str | None] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
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
        self.listing.add_file(path, fault)
        if path.endswith(TABLES) and not fault:  # a pipe would be waited for
            self.tables.append(path)
        if path.rsplit("/", 1)[-1] in METADATA:
            self.metadata[path] = fault

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
    if about.st_size <= LARGEST_FILE or item.name.endswith(TABLES):
        return None
    return f"too large: a file of {about.st_size / 1e9:.1f} GB"


def _list_tables(folder: Path, walk: _Walk, listing: Listing) -> Raw:
    """Tables, unless there are as many files of pictures as pictures in the tables, or more; a note says so."""
    loose = [readable(file) for file, fault in listing.files()
             if fault is None and (is_picture_name(file) or is_picture(folder / file))]
    if not loose:
        return list_tables(folder, walk.tables, alone=True)
    if sum(pictures_in(folder / table) for table in walk.tables) > len(loose):
        raw = list_tables(folder, walk.tables, alone=False)
        said = f"Pictures beside the tables, which hold more of them, are left out: {_some(loose)}."
        return replace(raw, ignored=loose, notes=[*raw.notes, said])
    raw = _list_folder(folder, walk, listing)
    names = _some([readable(table) for table in walk.tables])
    said = (f"Tables beside the pictures are left out: {names}. Labels and paired files are read from metadata.jsonl "
            "or metadata.csv.")
    return replace(raw, notes=[*raw.notes, said])


def _list_folder(folder: Path, walk: _Walk, listing: Listing) -> Raw:
    for file, fault in walk.metadata.items():
        if fault:
            raise RawError(f"{folder / readable(file)} is {fault}: mend it, or remove it.")
    columns, labelled, told = set(), False, False
    for row in read_metadata(folder, walk.metadata, listing.add_row):
        columns, labelled, told = columns | set(row.pairs), labelled or row.label is not None, True
    ignored = []
    for file, fault in listing.files():
        if file in walk.metadata or (told and listing.is_paired(file)):
            continue
        if fault or (told and listing.row(file)) or is_picture_name(file) or is_picture(folder / file):
            listing.add_picture(file, fault)
        else:
            ignored.append(readable(file))
    places, columns = _Places.of(listing, labelled), sorted(columns)
    notes = walk.notes + ([] if columns else places.suspicions()) + ([] if told else places.one_folder())
    spare = places.splits["test"] if places.splits["validation"] else 0
    if spare:
        notes.append(f"The test split ({spare:,} pictures) is left out: there is a validation split.")
    listing.add_lost()
    length = listing.counts()[0]

    def entries(numbers: range) -> Iterator[Entry]:
        for file, fault, row, lost in listing.pictures(numbers):
            if lost:
                yield Entry(readable(file), bytes, fault=_why_lost(folder, file))
                continue
            entry = _entry(folder, file, row, places, columns, fault)
            if entry.split != "test":
                yield entry
            elif not spare:  # it serves as validation
                yield replace(entry, split="validation")

    return Raw(entries, length, length - spare, columns, ignored, notes)


def _why_lost(folder: Path, file: str) -> str:
    reason = named(folder, file)
    return "named in the metadata, but not there" if reason in (None, "is missing") else (
        f"named in the metadata, but it {reason}")


@dataclass(frozen=True)
class _Places:
    """What the folders that pictures lie in stand for.

    splits: how many pictures are of each, and at which depth the folders are splits; none where they are not. depth:
    of the folders that are classes; classes: their names, none where they are not. tops: outermost folders, None for
    none, two of them at most. maps: folders that are no classes and are called as folders of masks or depth are.
    """

    splits: Counter[str]
    split_depth: int
    depth: int
    classes: set[str]
    tops: set[str | None]
    maps: set[str]

    @classmethod
    def of(cls, listing: Listing, labelled: bool) -> _Places:
        """What all folders say together; labelled: whether classes are told elsewhere."""
        split_depth = depth = _shared(listing.folders())
        splits: Counter[str] = Counter()
        for folders in listing.folders():
            split = SPLITS.get(folders[depth].lower()) if len(folders) > depth else None
            if split is None:
                splits.clear()
                break
            splits[split] += 1
        if splits:
            depth += 1
            depth += _shared(folders[depth:] for folders in listing.folders())
        names, tops, inside = set(), set(), 0
        for folders in listing.folders():
            if len(tops) < 2:
                tops.add(folders[0] if folders else None)
            if len(folders) > depth:
                inside += 1
                names.add(folders[depth])
        classes = names if not labelled and inside > listing.counts()[0] / 2 else set()
        maps = {name for name in names - classes if name.lower() in MASK_FOLDERS}
        return cls(splits, split_depth, depth, classes, tops, maps)

    def split(self, file: str) -> str | None:
        """That a picture belongs to by its folders."""
        return SPLITS[file.split("/")[self.split_depth].lower()] if self.splits else None

    def label(self, file: str) -> str | None:
        """That a picture has by its folders."""
        folders = file.split("/")[:-1]
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
        """Classes are folders beside each other; who has one may wonder where it went."""
        if len(self.tops) > 1 or self.tops <= {None} or self.splits or self.classes:
            return []
        return [f"Every picture lies in the folder {readable(min(self.tops))}, so there are no classes."]


def _shared(places: Iterable[list[str]]) -> int:
    """How many folders all places begin with; a split's folder is not counted."""
    places = iter(places)
    shared = next(places, [])
    for folders in places:
        same = takewhile(lambda pair: pair[0] == pair[1], zip(shared, folders))
        shared = [name for name, _ in same]
        if not shared:
            break
    return sum(1 for _ in takewhile(lambda name: name.lower() not in SPLITS, shared))


def _entry(folder: Path, file: str, row: Row | None, places: _Places, columns: list[str],
           fault: str | None) -> Entry:
    pairs = row.pairs if row else {}
    label = row.label if row and row.label is not None else places.label(file)
    if kind := unreadable(file):
        fault = fault or f"{kind} pictures are not read here: convert this one to PNG or JPEG"
    if places.classes and places.label(file) is None:
        fault = fault or "lies in no class folder, unlike most"
    for column in columns:
        if column not in pairs:
            fault = fault or f"has no {column} in the metadata, unlike others"
        elif reason := named(folder, pairs[column]):
            fault = fault or f"{column} {reason}: {readable(pairs[column])}"
    paired = {column: folder / pairs[column] for column in columns if column in pairs}
    return Entry(readable(file), (folder / file).read_bytes, label and readable(label), places.split(file),
                 {column: place.read_bytes for column, place in paired.items()}, fault,
                 " ".join(mark_of(place) for place in (folder / file, *paired.values())))


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

