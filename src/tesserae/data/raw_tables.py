"""The raw data that `datasets` loads: tables in a folder, a prepared set, a name on the hub."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tesserae.data.entries import SPLITS, Entry, Raw, RawError, mark_of

TABLES = (".parquet", ".arrow")
HUB_KEYS = {"name": "hub_config", "split": "hub_split", "revision": "hub_revision"}  # of the block prepare
SAVED = ("dataset_dict.json", "state.json")  # of sets that `datasets` has saved


def list_tables(folder: Path, tables: list[str], alone: bool) -> Raw:
    """List a folder of tables; alone: whether there are no files of pictures beside them. Raises RawError."""
    import datasets

    try:
        if any((folder / name).is_file() for name in SAVED):
            return _list_dataset(datasets.load_from_disk(str(folder)), str(folder))
        if alone:
            return _list_dataset(datasets.load_dataset(str(folder)), str(folder))
        return _list_dataset(_load_files(folder, tables), str(folder))
    except RawError:
        raise
    except Exception as error:
        reason = _one_line(error)
        raise RawError(f"{folder} holds tables that cannot be loaded ({reason}): mend them.") from None


def pictures_in(table: Path) -> int:
    """How many pictures a table holds; 0 for one that cannot be read or has no column of pictures."""
    import datasets
    import pyarrow.parquet

    try:
        if table.suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(table) as opened:
                features, rows = datasets.Features.from_arrow_schema(opened.schema_arrow), opened.metadata.num_rows
        else:
            opened = datasets.Dataset.from_file(str(table))
            features, rows = opened.features, len(opened)
    except Exception:  # of a library, on a file that may hold anything
        return 0
    return rows if any(isinstance(feature, datasets.Image) for feature in features.values()) else 0


def _load_files(folder: Path, tables: list[str]):
    """Those tables that hold pictures, by the splits that their names tell."""
    import datasets

    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for table in tables:
        if pictures := pictures_in(folder / table):
            kind = Path(table).suffix[1:]
            split = next((SPLITS[word] for word in re.split("[^a-z]+", table.lower()) if word in SPLITS), "train")
            files[kind][split].append(str(folder / table))
            counts[kind] += pictures
    kind = max(counts, key=lambda name: counts[name])
    return datasets.load_dataset(kind, data_files=dict(files[kind]))


def list_hub(name: str, said: Mapping[str, str]) -> Raw:
    """List a dataset on the hub. said: what `datasets.load_dataset` is told besides. Raises RawError."""
    import datasets

    try:
        return _list_dataset(datasets.load_dataset(name, **said), name)
    except RawError:
        raise
    except Exception as error:
        raise RawError(_hub_fault(name, said, _one_line(error))) from None


def check_hub(name: str, said: Mapping[str, str]) -> None:
    """See that a dataset on the hub is there, with the configuration and the split that are said.

    No picture is downloaded. Raises RawError, as `list_hub` does.
    """
    import datasets

    options = {key: value for key, value in said.items() if key != "split"}
    try:
        splits = datasets.load_dataset_builder(name, **options).info.splits or {}
    except Exception as error:
        raise RawError(_hub_fault(name, said, _one_line(error))) from None
    wanted = said.get("split", "")
    if splits and re.fullmatch(r"\w+", wanted) and wanted not in (*splits, "all"):
        raise RawError(_no_split(name, wanted, ", ".join(splits)))


def _no_split(name: str, wanted: str, choice: str) -> str:
    return (f"{name} has no split {wanted!r}, but {choice}: set prepare.hub_split to one of them, or to "
            '"".')


def _hub_fault(name: str, said: Mapping[str, str], reason: str) -> str:
    """Why a dataset cannot be loaded, as a sentence: `datasets` lists what there is to choose from in brackets."""
    found = re.search(r"\[('.*?')\]", reason)
    choice = found and found[1].replace("'", "")
    if choice and "config" in reason.lower():
        wrong = f"no configuration {said['name']!r}, but" if "name" in said else "several configurations,"
        return f"{name} has {wrong} {choice}: set prepare.hub_config to one of them."
    if choice and "split" in said and "split" in reason.lower():
        return _no_split(name, said["split"], choice)
    keys = ["source", *(HUB_KEYS[key] for key in said)]
    return (f"{name} is neither a folder here nor a dataset that could be loaded from the hub ({reason}): check "
            f"{', '.join(f'prepare.{key}' for key in keys)} and the connection.")


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

    def entries(numbers: range) -> Iterator[Entry]:
        before = 0  # entries of the parts passed
        for key, part in parts.items():
            split, known = "validation" if splits[key] == "test" else splits[key], part._fingerprint
            own = range(max(0, numbers.start - before), min(len(part), numbers.stop - before))
            before += len(part)
            if not own:
                continue
            part = part.select(own)
            for column in images:
                part = part.cast_column(column, datasets.Image(decode=False))
            for number, row in zip(own, part):
                mark = " ".join([known, *(_mark(row[column]) for column in images)])
                yield Entry(
                    f"{key}/{number:07d}", _reader(row[image]), _word(features, label, row),
                    split if given else None, {column: _reader(row[column]) for column in pairs}, mark=mark,
                )

    count = sum(map(len, parts.values()))
    return Raw(entries, count, count, pairs, [], notes)


def _reader(value: dict | None) -> Callable[[], bytes]:
    if value is None:
        return bytes
    content = value.get("bytes")
    return (lambda: content) if content is not None else Path(value["path"]).read_bytes


def _mark(value: dict | None) -> str:
    """Of a picture that lies outside of the table, its file's; the table's own is known by its fingerprint."""
    return mark_of(Path(value["path"])) if value and value.get("bytes") is None else ""


def _word(features, label: str | None, row: dict) -> str | None:
    if label is None or row[label] is None:
        return None
    feature = features[label]
    if not hasattr(feature, "int2str"):
        return str(row[label])
    try:
        return feature.int2str(row[label])
    except ValueError:  # -1, as sets without labels have it, or a number beyond the names
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
