"""Raw pictures -> the prepared set: checked, without duplicates, split by content, resized, stored."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from tesserae.data.decode import Picture, decode
from tesserae.data.masks import MaskUse, is_mask
from tesserae.data.raw import Raw, list_raw
from tesserae.data.workers import cores, in_order
from tesserae.errors import TesseraeError
from tesserae.params import PrepareParams

NAMED = 8  # reasons named in the error
LEFT_OUT = "left_out.csv"  # in the prepared set


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
    sizes: list[tuple[int, int]] = field(default_factory=list)
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


@dataclass
class _Kept:
    """A picture that was written to the scratch table."""

    path: str
    sha: str
    label: str | None
    split: str | None


def prepare(source: str | Path, out: str | Path, params: PrepareParams, seed: int,
            progress: Callable[[int, int], None] | None = None) -> PrepareReport:
    """Make the prepared set `out` of a folder or a hub dataset; equal pictures give equal files.

    `out` becomes a `datasets.DatasetDict` on disk with the splits train and validation, and replaces what was
    there once it is whole. Columns: image, label (where there are classes), path, sha, and the paired ones.
    `out`/left_out.csv lists every file that did not come in, with the reason.
    `seed` salts the hash that splits. `progress(done, count)` is called as files are read.
    Raises PrepareError or RawError, in one sentence.
    """
    began = time.monotonic()
    out = Path(out)
    raw = list_raw(source)
    report = PrepareReport(columns=raw.columns, ignored=raw.ignored, notes=list(raw.notes))
    uses = [MaskUse(name) for name in raw.columns if is_mask(name)]
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        kept = _read_all(raw, params, report, aside / "all.arrow", progress, uses)
        _check(str(source), raw, kept, params, report)
        shas, given = [one.sha for one in kept], [one.split for one in kept]
        splits = split_by_content(shas, given, params.holdout, seed)
        _count(kept, splits, report)
        report.notes += [note for use in uses for note in use.notes()]
        _store(aside / "all.arrow", aside / "set", kept, splits, report.classes)
        _write_left_out(aside / "set" / LEFT_OUT, report)
        _replace(aside / "set", out)
    except OSError as error:
        reason = error.strerror or error
        raise PrepareError(f"{out} cannot be written ({reason}): see to the disk and its rights.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    report.seconds = time.monotonic() - began
    return report


def split_by_content(shas: list[str], given: list[str | None], holdout: float, seed: int) -> list[str]:
    """"train" or "validation" for each picture, from its own hash alone, so that adding pictures moves none.

    Pictures with a split of their own keep it. Where chance leaves a split empty, it gets the picture whose
    hash comes nearest. Raises PrepareError with fewer than two pictures.
    """
    if len(shas) < 2:
        raise PrepareError("A split needs two pictures at least: add some.")
    places = [int.from_bytes(hashlib.blake2b(f"{seed}:{sha}".encode(), digest_size=8).digest()) / 2**64
              for sha in shas]
    fixed = "validation" in given and "train" in given
    splits = [split if fixed and split else "validation" if place < holdout else "train"
              for place, split in zip(places, given)]
    order = sorted(range(len(shas)), key=places.__getitem__)
    if "validation" not in splits:
        splits[order[0]] = "validation"
    if "train" not in splits:
        splits[order[-1]] = "train"
    return splits


def _read_all(raw: Raw, params: PrepareParams, report: PrepareReport, table: Path,
              progress: Callable[[int, int], None] | None, uses: list[MaskUse]) -> list[_Kept]:
    """Decode every entry, in order, on all cores; good ones go to the scratch table as they come."""
    from datasets.arrow_writer import ArrowWriter

    kept: list[_Kept] = []
    first: dict[str, str] = {}
    work = partial(_named_decode, size=params.image_size, fit=params.fit, min_side=params.min_side)
    workers = cores()
    with (
        warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool,
        ArrowWriter(path=str(table), features=_features(raw.columns), writer_batch_size=256) as writer,
    ):
        warnings.simplefilter("ignore")  # PIL's remarks on odd files
        for done, (entry, result) in enumerate(in_order(pool, work, raw.entries, 4 * workers), start=1):
            if not isinstance(result, Picture):
                report.rejected.append((entry.path, str(result)))
            elif result.sha in first:
                report.duplicates.append((entry.path, first[result.sha]))
            else:
                first[result.sha] = entry.path
                kept.append(_Kept(entry.path, result.sha, entry.label, entry.split))
                report.sizes.append((result.width, result.height))
                for use in uses:
                    use.add(Image.open(io.BytesIO(result.pairs[use.column])))
                pairs = {name: {"bytes": content, "path": None} for name, content in result.pairs.items()}
                writer.write({"image": {"bytes": result.image, "path": None}, "label": entry.label or "",
                              "path": entry.path, "sha": result.sha, **pairs})
            if progress:
                progress(done, raw.count)
        if kept:
            writer.finalize()
    return kept


def _named_decode(entry, **how):
    return entry, decode(entry, **how)


def _check(source: str, raw: Raw, kept: list[_Kept], params: PrepareParams, report: PrepareReport) -> None:
    share = len(report.rejected) / max(1, raw.count)
    listed = _listed(report.rejected)
    if not raw.count:
        there = ", ".join(report.ignored[:5]) + (" and more" if len(report.ignored) > 5 else "")
        raise PrepareError(f"{source} holds no pictures{f', only {there}' if there else ''}: put some there, "
                           "unpacked, or change prepare.source.")
    if not kept:
        raise PrepareError(f"{source} holds no usable picture ({listed}): mend them, or put others there.")
    if share > params.max_rejected:
        raise PrepareError(
            f"{len(report.rejected):,} of {raw.count:,} files in {source} were rejected, more than "
            f"prepare.max_rejected = {params.max_rejected:g} allows ({listed}): mend or remove them, "
            "or raise it."
        )
    if len(kept) == 1:
        name, copies = kept[0].path, len(report.duplicates)
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


def _count(kept: list[_Kept], splits: list[str], report: PrepareReport) -> None:
    """Classes, counts and notes of the report."""
    labels = [one.label for one in kept]
    if any(label is None for label in labels):
        lost = sum(label is not None for label in labels)
        if lost:
            report.notes.append(f"Labels are left out: {len(labels) - lost:,} pictures have none.")
    else:
        report.classes = sorted(set(labels))
    if len(report.classes) == 1:
        report.notes.append(f"There is one class alone, {report.classes[0]}.")
    for split in ("train", "validation"):
        here = Counter(label for label, own in zip(labels, splits) if own == split)
        report.counts[split] = sum(here.values())
        report.class_counts[split] = {name: here[name] for name in report.classes}
    for name in report.classes:
        found = [report.class_counts[split][name] for split in ("train", "validation")]
        if sum(found) == 1:
            report.notes.append(f"The class {name} has one picture alone.")
        elif found[0] == 0:
            report.notes.append(f"The class {name} has no picture to train on: all are held out.")


def _features(columns: list[str]):
    """Of the scratch table: labels are words there."""
    import datasets

    text = datasets.Value("string")
    pairs = {name: datasets.Image() for name in columns}
    return datasets.Features({"image": datasets.Image(), "label": text, "path": text, "sha": text, **pairs})


def _store(table: Path, out: Path, kept: list[_Kept], splits: list[str], classes: list[str]) -> None:
    """The scratch table -> a DatasetDict on disk whose files depend on its content alone."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        whole = datasets.Dataset.from_file(str(table))
        whole = whole.cast_column("label", datasets.ClassLabel(names=classes)) if classes \
            else whole.remove_columns("label")
        chosen = {split: whole.select([k for k, own in enumerate(splits) if own == split])
                  for split in ("train", "validation")}
        datasets.DatasetDict(chosen).save_to_disk(str(out))
    finally:
        if shown:
            datasets.enable_progress_bars()
    for split in chosen:
        state = out / split / "state.json"
        values = json.loads(state.read_text())
        mark = "".join(one.sha for one, own in zip(kept, splits) if own == split) + str(classes)
        values["_fingerprint"] = hashlib.blake2b(mark.encode(), digest_size=8).hexdigest()  # it was random
        state.write_text(json.dumps(values, indent=2, sort_keys=True))


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


