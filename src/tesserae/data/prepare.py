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
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from tesserae.data.entries import Raw
from tesserae.data.masks import MaskUse, is_mask
from tesserae.data.pieces import PIECES, Piece, aside_of, make_pieces, tidy
from tesserae.data.raw import list_raw
from tesserae.data.scratch import SPLIT, Kept
from tesserae.errors import TesseraeError
from tesserae.params import PrepareParams

NAMED = 8  # reasons named in the error
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
    pictures. notes: what else is worth saying, a sentence each. seconds: how long it took.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    columns: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def left_out(self) -> list[tuple[str, str]]:
        """Every file that is not in the set, and why."""
        return [*self.rejected, *((path, f"the same picture as {kept}") for path, kept in self.duplicates),
                *((path, "no picture") for path in self.ignored)]


def prepare(source: str | Path, out: str | Path, params: PrepareParams, seed: int,
            progress: Callable[[int, int], None] | None = None) -> PrepareReport:
    """Make the prepared set `out` of a folder or a hub dataset; equal pictures give equal files.

    `out` becomes a `datasets.DatasetDict` on disk with the splits train and validation, and replaces what was
    there once it is whole. Columns: image, label (where there are classes), path, sha, and the paired ones.
    `out`/left_out.csv lists every file that did not come in, with the reason.
    `seed` salts the hash that splits. `progress(done, count)` is called as files are read. What has been decoded when
    it is stopped, or cannot go on, stays beside `out` and is taken up the next time; see `pieces`.
    Raises PrepareError or RawError, in one sentence.
    """
    began = time.monotonic()
    out = Path(out)
    aside, done = aside_of(out), False
    _clear(aside, done)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        raw = list_raw(source, aside / "raw.sqlite")
        report = PrepareReport(columns=raw.columns, ignored=raw.ignored, notes=raw.notes)
        kept = Kept(aside / "kept.sqlite")
        tables, uses = _join(make_pieces(raw, params, aside / PIECES, progress=progress), report, kept)
        _check(str(source), raw, kept, params, report)
        kept.split(params.holdout, seed)
        _count(kept, report)
        report.notes += [note for use in uses for note in use.notes()]
        _store(tables, aside / "set", kept, report.classes)
        _write_left_out(aside / "set" / LEFT_OUT, report)
        _replace(aside / "set", out)
        done = True
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise PrepareError(f"{out} cannot be written ({reason}): see to the disk and its rights.") from None
    finally:
        _clear(aside, done)
    report.seconds = time.monotonic() - began
    return report


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


def _join(pieces: Iterable[Piece], report: PrepareReport, kept: Kept) -> tuple[list[Path], list[MaskUse]]:
    """Note what is kept, a copy, or rejected; the tables of all pieces, in order, and the use of their masks."""
    uses = [MaskUse(name) for name in report.columns if is_mask(name)]
    columns = ["sha", "path", "label", "given", "width", "height", *(use.column for use in uses)]
    tables, numbers = [], itertools.count()
    for piece in pieces:
        report.rejected += piece.rejected
        tables += [piece.table] if piece.rows else []
        for row, number in zip(piece.read(columns), numbers):
            size = row["width"], row["height"]
            if same := kept.add(number, row["sha"], row["path"], row["label"], row["given"], size):
                report.duplicates.append((row["path"], same))
                continue
            for use in uses:
                use.add(Image.open(io.BytesIO(row[use.column]["bytes"])))
    return tables, uses


def _check(source: str, raw: Raw, kept: Kept, params: PrepareParams, report: PrepareReport) -> None:
    share = len(report.rejected) / max(1, raw.count)
    listed = _listed(report.rejected)
    if not raw.count:
        there = ", ".join(report.ignored[:5]) + (" and more" if len(report.ignored) > 5 else "")
        raise PrepareError(f"{source} holds no pictures{f', only {there}' if there else ''}: put some there, "
                           "unpacked, or change prepare.source.")
    if not len(kept):
        raise PrepareError(f"{source} holds no usable picture ({listed}): mend them, or put others there.")
    if share > params.max_rejected:
        raise PrepareError(
            f"{len(report.rejected):,} of {raw.count:,} files in {source} were rejected, more than "
            f"prepare.max_rejected = {params.max_rejected:g} allows ({listed}): mend or remove them, "
            "or raise it."
        )
    if len(kept) == 1:
        name, copies = kept.first_path(), len(report.duplicates)
        besides = f", and {copies:,} {'copies' if copies > 1 else 'copy'} of it" if copies else ""
        raise PrepareError(f"{source} holds one usable picture, {name}{besides}: two at least are needed, one to "
                           "train on and one to test on.")


def _listed(rejected: list[tuple[str, str]]) -> str:
    """The commonest reasons, each with a file that has it."""
    files: dict[str, list[str]] = {}
    for path, reason in rejected:
        files.setdefault(reason, []).append(path)
    groups = sorted(files.items(), key=lambda item: -len(item[1]))
    said = [f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}: {reason}"
            for reason, paths in groups[:NAMED]]
    return "; ".join(said + ([f"and {len(groups) - NAMED:,} other reasons"] if len(groups) > NAMED else []))


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
    for name in report.classes:
        to_train, held_out = (found[split, name] for split in SPLIT)
        if to_train + held_out == 1:
            report.notes.append(f"The class {name} has one picture alone.")
        elif to_train == 0:
            report.notes.append(f"The class {name} has no picture to train on: all are held out.")
    report.sizes = kept.sizes()


def _store(tables: list[Path], out: Path, kept: Kept, classes: list[str]) -> None:
    """The tables of pieces -> a DatasetDict on disk whose files depend on its content alone."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        whole = datasets.concatenate_datasets([datasets.Dataset.from_file(str(table)) for table in tables])
        whole = whole.remove_columns(["given", "width", "height"])
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


