"""What the raw data say in tables: metadata of a folder, and what `datasets` loads by itself.

Parquet, Arrow and WebDataset files, a set that `datasets` has saved and a name on the hub are loaded by it, without
decoding a picture. Metadata are read here, line by line, so that an error can name the line.
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesserae.data.decoding import is_picture_name
from tesserae.errors import TesseraeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

METADATA = ("metadata.jsonl", "metadata.csv")
PAIRED = "_file_name"  # ends the names of columns of metadata that name paired files
TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # and how `datasets` calls them
SAVED = ("dataset_dict.json", "state.json")  # in sets that `datasets` has saved
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test", "testing": "test"}
HUB_KEYS = {"name": "hub_config", "split": "hub_split", "revision": "hub_revision"}  # of the block prepare


class RawError(TesseraeError, ValueError):
    """The raw data cannot be listed."""


@dataclass
class Listing:
    """All pictures in a fixed order.

    count: how many there are. columns: the paired ones. ignored: files that are not pictures. notes: what else is
    worth saying. dataset(): a row for each picture, with the columns of `features_of`, made when it is called.
    """

    dataset: Callable[[], Dataset]
    count: int
    columns: list[str]
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def features_of(columns: Iterable[str]) -> Features:
    """The columns of a listing's rows.

    path: the name in reports. label, given: the class and the split that the data give, or null. error: why the
    picture is rejected without being read, or null. image, and the paired columns: each picture as {bytes, path}, of
    which one is null.
    """
    import datasets

    text, picture = datasets.Value("string"), datasets.Image(decode=False)
    return datasets.Features({"path": text, "label": text, "given": text, "error": text, "image": picture,
                              **dict.fromkeys(columns, picture)})


# ---- what `datasets` loads ---------------------------------------------------------------------------------


def list_tables(folder: Path, tables: list[str], alone: bool) -> Listing:
    """List a folder of tables; alone: whether there are no files of pictures beside them. Raises RawError."""
    import datasets

    try:
        if any((folder / name).is_file() for name in SAVED):
            return _list_dataset(datasets.load_from_disk(str(folder)), str(folder))
        if alone and not any(table.endswith(".tar") for table in tables):
            return _list_dataset(datasets.load_dataset(str(folder)), str(folder))
        return _list_dataset(_load_files(folder, tables), str(folder))
    except RawError:
        raise
    except Exception as error:
        reason = _one_line(error)
        raise RawError(f"{folder} holds tables that cannot be loaded ({reason}): repair them.") from None


def pictures_in(table: Path) -> int:
    """How many pictures a table holds; 0 for one that cannot be read or has no column of pictures."""
    import datasets
    import pyarrow.parquet

    try:
        if table.suffix == ".tar":
            with tarfile.open(table) as archive:
                return sum(1 for member in archive if member.isfile() and is_picture_name(member.name))
        if table.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(table) as opened:
                features, rows = datasets.Features.from_arrow_schema(opened.schema_arrow), opened.metadata.num_rows
        else:
            opened = datasets.Dataset.from_file(str(table))
            features, rows = opened.features, len(opened)
    except Exception:  # of a library, on a file that may hold anything
        return 0
    return rows if any(isinstance(feature, datasets.Image) for feature in features.values()) else 0


def _load_files(folder: Path, tables: list[str]) -> DatasetDict:
    """Those tables of the kind with most pictures that hold some, by the splits in their names."""
    import datasets

    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for table in tables:
        if pictures := pictures_in(folder / table):
            kind = TABLES[Path(table).suffix]
            split = next((SPLITS[word] for word in re.split("[^a-z]+", table.lower()) if word in SPLITS), "train")
            files[kind][split].append(str(folder / table))
            counts[kind] += pictures
    if not counts:
        raise RawError(f"{folder} holds no picture in {', '.join(tables[:5])}: set prepare.source to another folder.")
    kind = max(counts, key=lambda name: counts[name])
    return datasets.load_dataset(kind, data_files=dict(files[kind]))


def list_hub(name: str, options: Mapping[str, str]) -> Listing:
    """List a dataset on the hub. options: further ones of `datasets.load_dataset`. Raises RawError."""
    import datasets

    try:
        return _list_dataset(datasets.load_dataset(name, **options), name)
    except RawError:
        raise
    except Exception as error:
        raise RawError(_hub_error(name, options, _one_line(error))) from None


def check_hub(name: str, options: Mapping[str, str]) -> None:
    """Check that a dataset is on the hub, with the configuration and the split of these options.

    No picture is downloaded. Raises RawError, as `list_hub` does.
    """
    import datasets

    others = {key: value for key, value in options.items() if key != "split"}
    try:
        splits = datasets.load_dataset_builder(name, **others).info.splits or {}
    except Exception as error:
        raise RawError(_hub_error(name, options, _one_line(error))) from None
    wanted = options.get("split", "")
    if splits and re.fullmatch(r"\w+", wanted) and wanted not in (*splits, "all"):
        raise RawError(_no_split(name, wanted, ", ".join(splits)))


def _no_split(name: str, wanted: str, choice: str) -> str:
    return (f"{name} has no split {wanted!r}, but {choice}: set prepare.hub_split to one of them, or to "
            '"".')


def _hub_error(name: str, options: Mapping[str, str], reason: str) -> str:
    """Why a dataset cannot be loaded, as a sentence: `datasets` lists what there is to choose from in brackets."""
    found = re.search(r"\[('.*?')\]", reason)
    choice = found and found[1].replace("'", "")
    if choice and "config" in reason.lower():
        wrong = f"no configuration {options['name']!r}, but" if "name" in options else "several configurations,"
        return f"{name} has {wrong} {choice}: set prepare.hub_config to one of them."
    if choice and "split" in options and "split" in reason.lower():
        return _no_split(name, options["split"], choice)
    keys = ["source", *(HUB_KEYS[key] for key in options)]
    return (f"{name} is neither a folder here nor a dataset that could be loaded from the hub ({reason}): check "
            f"{', '.join(f'prepare.{key}' for key in keys)} and the connection.")


def _list_dataset(loaded: Dataset | DatasetDict, name: str) -> Listing:
    import datasets

    parts = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    parts = {key: part for key, part in parts.items() if len(part)}
    if not parts:
        raise RawError(f"{name} is empty: set prepare.source to a dataset with pictures.")
    features = next(iter(parts.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise RawError(f"{name} has no column of pictures, only {', '.join(features)}: set prepare.source to "
                       "another.")
    image = next((column for column in ("image", "img") if column in images), images[0])
    label = next((column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)),
                 next((column for column in ("label", "cls") if column in features), None))
    splits = {key: SPLITS.get(key.lower(), "train") for key in parts}
    notes: list[str] = []
    if {"validation", "test"} <= set(splits.values()):
        spare = [key for key, split in splits.items() if split == "test"]
        notes.append(f"The test split ({sum(len(parts.pop(key)) for key in spare):,} pictures) is left out: "
                     "there is a validation split.")
    several = len({splits[key] for key in parts}) > 1
    columns = [column for column in images if column != image]

    def dataset() -> Dataset:
        return datasets.concatenate_datasets([
            _rows_of(part, key, image, label, columns, splits[key] if several else None)
            for key, part in parts.items()])

    return Listing(dataset, sum(map(len, parts.values())), columns, notes=notes)


def _rows_of(part: Dataset, key: str, image: str, label: str | None, columns: list[str],
             split: str | None) -> Dataset:
    """A split of a dataset with the columns of `features_of`; its pictures stay where they lie."""
    import datasets
    import pyarrow as pa

    count = len(part)
    labels = [None] * count if label is None else [_word(part.features[label], value) for value in part[label]]
    pictures = part.select_columns([image, *columns])
    if image != "image":
        pictures = pictures.rename_column(image, "image")
    for column in ("image", *columns):
        pictures = pictures.cast_column(column, datasets.Image(decode=False))
    given = "validation" if split == "test" else split
    texts = {"path": [f"{key}/{number:07d}" for number in range(count)], "label": labels, "given": [given] * count,
             "error": [None] * count}
    texts = datasets.Dataset(pa.table({name: pa.array(values, pa.string()) for name, values in texts.items()}))
    return datasets.concatenate_datasets([texts, pictures], axis=1).cast(features_of(columns))


def _word(feature: Any, value: Any) -> str | None:
    """The class of a row in words, None where it has none."""
    if value is None:
        return None
    if not hasattr(feature, "int2str"):
        return str(value)
    try:
        return feature.int2str(value)
    except ValueError:  # -1, as sets without labels have it, or a number beyond the names
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


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
