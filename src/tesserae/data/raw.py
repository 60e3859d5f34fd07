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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path

from PIL import Image

from tesserae.data.entries import SPLITS, Entry, Raw, RawError, is_text, mark_of, readable
from tesserae.data.raw_metadata import METADATA, Row, named, read_metadata
from tesserae.data.raw_tables import SAVED, TABLES, list_hub, list_tables
from tesserae.data.scratch import Listing

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


def list_raw(source: str | Path, scratch: str | Path = "") -> Raw:
    """List a folder of pictures, a folder of tables, or a dataset on the hub. Raises RawError.

    scratch: a file for what is found, which may be much; "" for one where the system keeps temporary files.
    """
    folder = Path(source)
    if folder.is_dir():
        listing = Listing(scratch)
        walk = _Walk(folder, listing)
        tables = walk.tables or any((folder / name).is_file() for name in SAVED)
        return list_tables(folder) if tables else _list_folder(folder, walk, listing)
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
    """Lists the files below a folder, sorted; links are followed, but no folder is entered twice.

    metadata: such files, each with the reason if it cannot be read. tables: whether there are any. hidden: names that
    begin with a dot. again: folders that links lead to a second time.
    """

    folder: Path
    listing: Listing
    metadata: dict[str, str | None] = field(default_factory=dict)
    tables: bool = False
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
        self.tables |= path.endswith(TABLES)
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
    return f"too large: a file of {about.st_size / 1e9:.1f} GB" if about.st_size > LARGEST_FILE else None


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
        if fault or (told and listing.row(file)) or _is_picture(folder / file):
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


@dataclass(frozen=True)
class _Places:
    """What the folders that pictures lie in stand for.

    splits: how many pictures are of each, and at which depth the folders are splits; none where they are not. depth:
    of the folders that are classes; classes: their names, none where they are not. tops: outermost folders, None for
    none, two of them at most.
    """

    splits: Counter[str]
    split_depth: int
    depth: int
    classes: set[str]
    tops: set[str | None]

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
        return cls(splits, split_depth, depth, classes, tops)

    def split(self, file: str) -> str | None:
        """That a picture belongs to by its folders."""
        return SPLITS[file.split("/")[self.split_depth].lower()] if self.splits else None

    def label(self, file: str) -> str | None:
        """That a picture has by its folders."""
        folders = file.split("/")[:-1]
        return folders[self.depth] if self.classes and len(folders) > self.depth else None

    def suspicions(self) -> list[str]:
        """What looks like a mistake, but may be meant."""
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
    suffix = Path(file).suffix.lower()
    if suffix in UNREADABLE and suffix not in Image.registered_extensions():
        fault = fault or f"{UNREADABLE[suffix]} pictures are not read here: convert this one to PNG or JPEG"
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

