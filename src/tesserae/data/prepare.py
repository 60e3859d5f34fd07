"""Raw pictures -> the prepared set: checked, without duplicates, split by content, resized, stored."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image

from tesserae.data.entries import Raw
from tesserae.data.left_out import check_columns, listed, lost_folder, remedy
from tesserae.data.lock import held
from tesserae.data.masks import MaskUse, is_mask
from tesserae.data.near import SIDE, near_copies
from tesserae.data.orientation import remark
from tesserae.data.pieces import PIECES, ROWS, Piece, aside_of, make_pieces, tidy
from tesserae.data.raw import list_raw
from tesserae.data.scales import Columns, Ranges, finished
from tesserae.data.scratch import SPLIT, Kept
from tesserae.data.sources import are_scenes, write_made
from tesserae.data.workers import cores
from tesserae.errors import TesseraeError
from tesserae.params import PrepareParams

LEFT_OUT = "left_out.csv"  # in the prepared set
AT_ONCE = 4096  # pictures that are chosen together


class PrepareError(TesseraeError, ValueError):
    """No set can be made of the raw pictures."""


@dataclass
class PrepareReport:
    """What came in and what became of it.

    counts: pictures by split. classes: their names, sorted; [] without labels. class_counts: split -> class
    -> pictures. sizes: (width, height) of each picture kept, as it came. columns: the paired ones.
    rejected: (path, reason). duplicates: (path, path of the picture kept). ignored: files that are no
    pictures. ranges: of columns of more than 8 bits the values found and those that become black and white, by a
    name for each. notes: what else is worth saying, a sentence each. seconds: how long it took.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    columns: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def left_out(self) -> list[tuple[str, str]]:
        """Every file that is not in the set, and why."""
        return [*self.rejected, *((path, f"the same picture as {kept}") for path, kept in self.duplicates),
                *((path, "no picture") for path in self.ignored)]


def prepare(source: str | Path, out: str | Path, params: PrepareParams, seed: int,
            progress: Callable[[int, int], None] | None = None,
            columns: Mapping[str, str] | None = None) -> PrepareReport:
    """Make the prepared set `out` of a folder or a hub dataset; equal pictures give equal files.

    `out` becomes a `datasets.DatasetDict` on disk with the splits train and validation, and replaces what was
    there once it is whole. Columns: image, label (where there are classes), path, sha, and the paired ones.
    `out`/left_out.csv lists every file that did not come in, with the reason.
    `seed` salts the hash that splits. `progress(done, count)` is called as files are read. columns: those that will
    be read of the set, by VQGAN. What has been decoded when it is stopped, or cannot go on, stays beside `out` and is
    taken up the next time; see `pieces`. While it works, no other process makes that set.
    Raises PrepareError, RawError or TesseraeError, in one sentence.
    """
    began = time.monotonic()
    out = Path(out)
    try:
        with held(out, "the stage prepare"), _beside(out) as aside:
            raw = list_raw(source, aside / "raw.sqlite", params.hub)
            check_columns(str(source), raw.columns, columns or {})
            report = PrepareReport(columns=raw.columns, ignored=raw.ignored, notes=raw.notes)
            kept, gathered = Kept(aside / "kept.sqlite"), _columns(raw, params)
            looks = aside / "looks"  # they may be many
            pieces = make_pieces(raw, params, aside / PIECES, progress=progress)
            tables, uses = _join(pieces, report, kept, looks, gathered)
            _check(str(source), raw, kept, params, report)
            pairs, sure = near_copies(np.memmap(looks, np.uint8, "r").reshape(-1, SIDE, SIDE, 3))
            kept.split(params.holdout, seed, pairs, sure)
            _count(kept, report)
            report.notes += [note for use in uses for note in use.notes()] + gathered.notes()
            report.ranges = gathered.metrics()
            _store(tables, aside / "set", kept, report.classes, gathered.deep)
            gathered.write(aside / "set")
            _write_left_out(aside / "set" / LEFT_OUT, report)
            write_made(aside / "set", params, seed, are_scenes(Path(source)))
            _replace(aside / "set", out)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PrepareError(f"{out} cannot be written ({reason}): see to the disk and its rights.") from None
    report.seconds = time.monotonic() - began
    return report


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """The folder beside a set in which it is made; whole pieces alone are left there by who does not end well."""
    aside, done = aside_of(out), False
    _clear(aside, done)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        yield aside
        done = True
    finally:
        _clear(aside, done)


def _clear(aside: Path, done: bool) -> None:
    """Remove what a run leaves beside its set: all of it where it is done, else what is no whole piece."""
    if done:
        shutil.rmtree(aside, ignore_errors=True)
        return
    pieces = aside / PIECES
    with suppress(OSError):  # what cannot be removed is in nobody's way
        tidy(pieces)
        for place in aside.glob("*"):
            if place == pieces:
                continue
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    for folder in (pieces, aside):
        with suppress(OSError):  # it is not there, or not empty
            folder.rmdir()


def _columns(raw: Raw, params: PrepareParams) -> Columns:
    """The columns whose values are gathered. Raises PrepareError where prepare.value_ranges names another."""
    names = ["image", *raw.columns]
    for name in params.value_ranges:
        if name not in names:
            raise PrepareError(f"prepare.value_ranges names {name!r}, which the data lacks ({', '.join(names)} are "
                               "there): name one of these, or leave it out.")
    return Columns(names, params.value_ranges)


def _join(pieces: Iterable[Piece], report: PrepareReport, kept: Kept,
          looks: Path, gathered: Columns) -> tuple[list[Path], list[MaskUse]]:
    """Note what is kept, a copy, or rejected; the tables of all pieces, in order, and the use of their masks.

    looks: a file for those of what is kept, one after the other.
    """
    uses = [MaskUse(name) for name in report.columns if is_mask(name)]
    columns = ["sha", "path", "label", "given", "width", "height", "look", "odd", "values",
               *(use.column for use in uses)]
    tables, numbers, odd = [], itertools.count(), {}
    with looks.open("wb") as file:
        for piece in pieces:
            report.rejected += piece.rejected
            tables += [piece.table] if piece.rows else []
            for row, number in zip(piece.read(columns), numbers):
                size = row["width"], row["height"]
                if same := kept.add(number, row["sha"], row["path"], row["label"], row["given"], size):
                    report.duplicates.append((row["path"], same))
                    continue
                file.write(row["look"])
                gathered.add(row["values"], row["path"])
                for use in uses:
                    use.add(Image.open(io.BytesIO(row[use.column]["bytes"])))
                for said in json.loads(row["odd"]).items():  # a column, and what is odd there
                    odd.setdefault(said, []).append(row["path"])
    report.notes += [remark(*said, len(paths), paths[0]) for said, paths in odd.items()]
    return tables, uses


def _check(source: str, raw: Raw, kept: Kept, params: PrepareParams, report: PrepareReport) -> None:
    """Refuse sets that too little is left of."""
    if not raw.count:
        there = ", ".join(report.ignored[:5]) + (" and more" if len(report.ignored) > 5 else "")
        raise PrepareError(f"{source} holds no pictures{f', only {there}' if there else ''}: put some there, "
                           "unpacked, or change prepare.source.")
    rejected = report.rejected
    if not len(kept):
        raise PrepareError(f"{source} holds no usable picture ({listed(rejected)}): {remedy(rejected, 'mend them')}, "
                           "or put others there.")
    if params.max_rejected < 1 and (lost := lost_folder(rejected, kept.paths())):
        place, of_it = f"{source}/{lost[0]}", lost[1]
        raise PrepareError(f"None of the {len(of_it):,} pictures in {place} can be used ({listed(of_it)}): "
                           f"{remedy(of_it, 'mend or remove them', place)}; with prepare.max_rejected = 1 the stage "
                           "goes on without them.")
    if len(rejected) > params.max_rejected * raw.count:
        raise PrepareError(f"{len(rejected):,} of {raw.count:,} files in {source} were rejected, more than prepare."
                           f"max_rejected = {params.max_rejected:g} allows ({listed(rejected)}): "
                           f"{remedy(rejected, 'mend or remove them')}, or raise it.")
    if len(kept) == 1:
        name, copies = kept.first_path(), len(report.duplicates)
        besides = f", and {copies:,} {'copies' if copies > 1 else 'copy'} of it" if copies else ""
        raise PrepareError(f"{source} holds one usable picture, {name}{besides}: two at least are needed, one to "
                           "train on and one to test on.")
    if params.max_rejected < 1 and (copied := kept.copied_classes()):
        name, copies, path, same = copied[0]
        raise PrepareError(f"No picture of the class {name} in {source} is its own: {copies:,} are left out as "
                           f"copies, for instance {path} of {same}: remove one of the two classes; with "
                           "prepare.max_rejected = 1 the stage goes on without this one.")


def _count(kept: Kept, report: PrepareReport) -> None:
    """Classes, counts, sizes and notes of the report."""
    found = kept.labels()
    nameless = sum(count for (_, label), count in found.items() if label is None)
    if not nameless:
        report.classes = sorted({label for _, label in found})
    elif nameless < len(kept):
        report.notes.append(f"Labels are left out: {nameless:,} pictures have none.")
    if len(report.classes) == 1:
        report.notes.append(f"There is one class alone, {report.classes[0]}.")
    for split in SPLIT:
        report.counts[split] = sum(count for (own, _), count in found.items() if own == split)
        report.class_counts[split] = {name: found[split, name] for name in report.classes}
    report.notes += _class_notes(report.class_counts, kept.own_splits)
    report.notes += _copy_notes(kept, report.counts["validation"])
    report.sizes = kept.sizes()


def _class_notes(counts: dict[str, dict[str, int]], own_splits: bool) -> list[str]:
    """Which classes lack pictures on a side, a sentence for each reason."""
    train, held_out = (counts[split] for split in SPLIT)
    alone = [name for name in train if train[name] + held_out[name] == 1]
    held_alone = [name for name in alone if held_out[name]]
    several = [name for name in train if train[name] + held_out[name] > 1]
    said = []
    if len(alone) == 1:
        side = "It is held out, so none trains" if held_alone else "It trains, so none is held out"
        said.append(f"The class {alone[0]} has one picture alone. {side}.")
    elif alone:
        but = f" (but that of {_some(held_alone)} is held out, so none trains)" if held_alone else ""
        said.append(f"{len(alone):,} classes have one picture, which trains, so none is held out{but}: "
                    f"{_some(alone)}.")
    if nothing := [name for name in several if not held_out[name]]:
        why = "all lie in the training split" if own_splits else "all are near-copies of each other"
        said.append(f"{_classes(nothing)} no picture that is held out, since {why}: {_some(nothing)}.")
    if nothing := [name for name in several if not train[name]]:
        said.append(f"{_classes(nothing)} no picture to train on, since all are held out: {_some(nothing)}.")
    return said


def _classes(names: list[str]) -> str:
    return f"{len(names):,} classes have" if len(names) > 1 else "1 class has"


def _copy_notes(kept: Kept, held_out: int) -> list[str]:
    """What near-copies mean for the split."""
    if kept.leaked:
        why = "the data's own splits are kept" if kept.own_splits else "too many pictures are alike to part them"
        return [f"{kept.leaked:,} of {held_out:,} held-out pictures have near-copies among those to train on, since "
                f"{why}: what is measured on them looks better than it is."]
    if kept.with_copies:
        return [f"{kept.with_copies:,} pictures are near-copies of others (re-encoded, resized, slightly cropped, "
                "brightened or mirrored) and are kept on one side of the split with them."]
    return []


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _store(tables: list[Path], out: Path, kept: Kept, classes: list[str], deep: dict[str, Ranges]) -> None:
    """The tables of pieces -> a DatasetDict on disk whose files depend on its content alone."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        whole = datasets.concatenate_datasets([datasets.Dataset.from_file(str(table)) for table in tables])
        if deep:
            whole = _scaled(whole, deep, out.with_name("scaled.arrow"))
        whole = whole.remove_columns(["given", "width", "height", "look", "odd", "values"])
        whole = whole.cast_column("label", datasets.ClassLabel(names=classes)) if classes \
            else whole.remove_columns("label")
        chosen = {split: _chosen(whole, kept, split, out.with_name(f"{split}.arrow")) for split in SPLIT}
        datasets.DatasetDict(chosen).save_to_disk(str(out))
    finally:
        if shown:
            datasets.enable_progress_bars()
    for split in SPLIT:
        digest = hashlib.blake2b(digest_size=8)
        for sha in kept.shas(split):
            digest.update(sha.encode())
        digest.update(str(classes).encode())
        state = out / split / "state.json"
        values = json.loads(state.read_text())
        values["_fingerprint"] = digest.hexdigest()  # it was random, as is the order of a set
        if values["_format_columns"] is not None:
            values["_format_columns"].sort()
        state.write_text(json.dumps(values, indent=2, sort_keys=True))


def _scaled(whole, deep: dict[str, Ranges], cache: Path):
    """Values of more than 8 bits brought to the scale of their column; all is written anew to the file `cache`."""
    import pyarrow as pa

    def cell(content: bytes, name: str, said: str) -> bytes:
        kind = json.loads(said)[name][0]
        black_white = deep[name].of(kind)
        return finished(content, black_white, name == "image") if black_white else content

    def brought(table: pa.Table) -> pa.Table:
        said = table.column("values").to_pylist()
        for name in deep:
            cells = [each["bytes"] for each in table.column(name).to_pylist()]
            made = [{"bytes": content, "path": None} for content in pool.map(cell, cells, repeat(name), said)]
            column = table.schema.get_field_index(name)
            table = table.set_column(column, name, pa.array(made, table.schema.field(name).type))
        return table

    with ThreadPoolExecutor(cores()) as pool:
        return whole.with_format("arrow").map(brought, batched=True, batch_size=ROWS, features=whole.features,
                                              cache_file_name=str(cache), new_fingerprint="scaled").with_format(None)


def _chosen(whole, kept: Kept, split: str, cache: Path):
    """The pictures of a split; which ones is written to the file `cache`, for it may be many."""
    def own(_: list[str], numbers: list[int]) -> list[bool]:
        return [each == split for each in kept.splits(range(numbers[0], numbers[-1] + 1))]

    return whole.filter(own, with_indices=True, batched=True, batch_size=AT_ONCE, input_columns="sha",
                        cache_file_name=str(cache), new_fingerprint=split)


def _write_left_out(path: Path, report: PrepareReport) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "why"])
        writer.writerows(report.left_out())


def _replace(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


