"""The raw data that `datasets` loads: tables in a folder, a prepared set, a name on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tesserae.data.entries import SPLITS, Entry, Raw, RawError, mark_of

TABLES = (".parquet", ".arrow")
SAVED = ("dataset_dict.json", "state.json")  # of sets that `datasets` has saved


def list_tables(folder: Path) -> Raw:
    """List a folder of tables. Raises RawError."""
    import datasets

    try:
        if any((folder / name).is_file() for name in SAVED):
            return _list_dataset(datasets.load_from_disk(str(folder)), str(folder))
        return _list_dataset(datasets.load_dataset(str(folder)), str(folder))
    except RawError:
        raise
    except Exception as error:
        reason = _one_line(error)
        raise RawError(f"{folder} holds tables that cannot be loaded ({reason}): mend them.") from None


def list_hub(name: str) -> Raw:
    """List a dataset on the hub. Raises RawError."""
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
