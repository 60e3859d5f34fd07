"""Raw data that `datasets` loads by itself, without decoding a picture, and the form that all raw data are listed in.

These are Parquet, Arrow and WebDataset files, a set that `datasets` has saved, and a name on the hub.
"""

from __future__ import annotations

import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tesserae.data.decoding import is_picture_name
from tesserae.errors import TesseraeError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features

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
