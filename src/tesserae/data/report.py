"""What the stage prepare reports: counts, notes, and why a set of which too little is left is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tesserae.data.decoding import TURNED
from tesserae.data.listing import some
from tesserae.data.splitting import SPLIT, Split
from tesserae.errors import TesseraeError

if TYPE_CHECKING:
    import pandas as pd

NAMED = 8  # reasons named in an error
SEVERAL = 2  # pictures that make a folder worth naming
TOO_SMALL = re.compile(r"too small: (\d+) x (\d+)")
UNPAIRED = re.compile(r"has no (\w+) in the metadata, unlike others")
Rejections = list[tuple[str, str]]  # path, reason


class PrepareError(TesseraeError, ValueError):
    """No set can be made of the raw pictures."""


@dataclass
class PrepareReport:
    """What came in and what became of it.

    counts: pictures by split. classes: their names, sorted; [] without labels. class_counts: split -> class
    -> pictures. sizes: (width, height) of each picture kept, as it came. columns: the paired ones.
    rejected: (path, reason). duplicates: (path, path of the picture kept). ignored: files that are not
    pictures. ranges: of columns of more than 8 bits the values found and those that become black and white, by a
    name for each. notes: what else is worth saying, a sentence each. seconds: how long it took.
    """

    counts: dict[str, int] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    class_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    columns: list[str] = field(default_factory=list)
    rejected: Rejections = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    ranges: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def left_out(self) -> list[tuple[str, str]]:
        """Every file that is not in the set, and why."""
        return [*self.rejected, *((path, f"the same picture as {kept}") for path, kept in self.duplicates),
                *((path, "no picture") for path in self.ignored)]


# ---- counts and notes --------------------------------------------------------------------------------------


def count_pictures(kept: pd.DataFrame, split: Split, report: PrepareReport) -> None:
    """Fill in the classes, counts, sizes and notes of a report. kept: label, width and height of each picture."""
    sides = [SPLIT[held_out] for held_out in split.held.astype(int)]
    found = Counter(zip(sides, kept["label"]))
    nameless = sum(count for (_, label), count in found.items() if label is None)
    if not nameless:
        report.classes = sorted(set(kept["label"]))
    elif nameless < len(kept):
        report.notes.append(f"Labels are left out: {nameless:,} pictures have none.")
    if len(report.classes) == 1:
        report.notes.append(f"There is one class alone, {report.classes[0]}.")
    for side in SPLIT:
        report.counts[side] = sides.count(side)
        report.class_counts[side] = {name: found[side, name] for name in report.classes}
    report.notes += _class_notes(report.class_counts, split.own_splits)
    report.notes += _copy_notes(split, report.counts["validation"])
    report.sizes = Counter(zip(kept["width"].astype(int).tolist(), kept["height"].astype(int).tolist()))


def _class_notes(counts: dict[str, dict[str, int]], own_splits: bool) -> list[str]:
    """Which classes lack pictures on a side, a sentence for each reason."""
    train, held_out = (counts[side] for side in SPLIT)
    alone = [name for name in train if train[name] + held_out[name] == 1]
    held_alone = [name for name in alone if held_out[name]]
    several = [name for name in train if train[name] + held_out[name] > 1]
    notes = []
    if len(alone) == 1:
        side = "It is held out, so none trains" if held_alone else "It trains, so none is held out"
        notes.append(f"The class {alone[0]} has one picture alone. {side}.")
    elif alone:
        but = f" (but that of {some(held_alone)} is held out, so none trains)" if held_alone else ""
        notes.append(f"{len(alone):,} classes have one picture, which trains, so none is held out{but}: "
                     f"{some(alone)}.")
    if nothing := [name for name in several if not held_out[name]]:
        why = "all lie in the training split" if own_splits else "all are near-copies of each other"
        notes.append(f"{_classes(nothing)} no picture that is held out, since {why}: {some(nothing)}.")
    if nothing := [name for name in several if not train[name]]:
        notes.append(f"{_classes(nothing)} no picture to train on, since all are held out: {some(nothing)}.")
    return notes


def _classes(names: list[str]) -> str:
    return f"{len(names):,} classes have" if len(names) > 1 else "1 class has"


def _copy_notes(split: Split, held_out: int) -> list[str]:
    """What near-copies mean for the split."""
    if split.leaked:
        why = "the data's own splits are kept" if split.own_splits else "too many pictures are alike to part them"
        return [f"{split.leaked:,} of {held_out:,} held-out pictures have near-copies among those to train on, since "
                f"{why}: what is measured on them looks better than it is."]
    if split.with_copies:
        return [f"{split.with_copies:,} pictures are near-copies of others (re-encoded, resized, slightly cropped, "
                "brightened or mirrored) and are kept on one side of the split with them."]
    return []


def way_up_note(column: str, odd: str, paths: list[str]) -> str:
    """A sentence about the pairs of a column of which `decoding.beside` says the same."""
    which = f"{paths[0]} and {len(paths) - 1:,} more" if len(paths) > 1 else paths[0]
    if odd == TURNED:
        return f"EXIF turns {which} but not the {column}, which lay on its side and was turned with it."
    return (f"EXIF turns or mirrors {which}, and the {column} has no EXIF and fits either way: it is taken as "
            "upright; where it lies as the picture is stored, remove the orientation from the picture's EXIF.")


# ---- sets of which too little is left ----------------------------------------------------------------------


def check_enough(source: str, kept: pd.DataFrame, copies: pd.DataFrame, max_rejected: float,
                 report: PrepareReport) -> None:
    """Raise PrepareError for a set of which too little is left.

    kept, copies: pictures that are in the set, and that are the same as one of these: their path and label.
    """
    count = len(kept) + len(copies) + len(report.rejected)
    if not count:
        there = f", only {some(report.ignored)}" if report.ignored else ""
        raise PrepareError(f"{source} holds no pictures{there}: put some there, unpacked, or change prepare.source.")
    rejected = report.rejected
    if not len(kept):
        raise PrepareError(f"{source} holds no usable picture ({_reasons(rejected)}): "
                           f"{_remedy(rejected, 'repair them')}, or put others there.")
    if max_rejected < 1 and (lost := _lost_folder(rejected, kept["path"])):
        place, of_it = f"{source}/{lost[0]}", lost[1]
        remedy = _remedy(of_it, "repair or remove them", place)
        raise PrepareError(f"None of the {len(of_it):,} pictures in {place} can be used ({_reasons(of_it)}): "
                           f"{remedy}; with prepare.max_rejected = 1 the stage goes on without them.")
    if len(rejected) > max_rejected * count:
        raise PrepareError(f"{len(rejected):,} of {count:,} files in {source} were rejected, more than prepare."
                           f"max_rejected = {max_rejected:g} allows ({_reasons(rejected)}): "
                           f"{_remedy(rejected, 'repair or remove them')}, or raise it.")
    if len(kept) == 1:
        besides = f", and {len(copies):,} {'copies' if len(copies) > 1 else 'copy'} of it" if len(copies) else ""
        raise PrepareError(f"{source} holds one usable picture, {kept['path'].iloc[0]}{besides}: two at least are "
                           "needed, one to train on and one to test on.")
    if max_rejected < 1:
        _check_classes(source, kept, copies, report)


def _check_classes(source: str, kept: pd.DataFrame, copies: pd.DataFrame, report: PrepareReport) -> None:
    """Raise PrepareError where all pictures of a class are copies of others."""
    there = set(kept["label"])
    lost = Counter() if None in there else Counter(label for label in copies["label"] if label not in there)
    del lost[None]
    if lost:
        name, count = lost.most_common(1)[0]
        path, same = report.duplicates[list(copies["label"]).index(name)]
        raise PrepareError(f"No picture of the class {name} in {source} is its own: {count:,} are left out as "
                           f"copies, for instance {path} of {same}: remove one of the two classes; with "
                           "prepare.max_rejected = 1 the stage goes on without this one.")


def _reasons(rejected: Rejections) -> str:
    """The commonest reasons, each with a file that has it; those that differ in numbers alone are one."""
    files: dict[str, Rejections] = {}
    for path, reason in rejected:
        files.setdefault(re.sub(r"\d+", "0", reason), []).append((path, reason))
    groups = sorted(files.values(), key=lambda group: -len(group))
    found = [f"{group[0][0]}{f' and {len(group) - 1:,} more' if len(group) > 1 else ''}: {group[0][1]}"
             for group in groups[:NAMED]]
    return "; ".join(found + ([f"and {len(groups) - NAMED:,} other reasons"] if len(groups) > NAMED else []))


def _lost_folder(rejected: Rejections, there: Iterable[str]) -> tuple[str, Rejections] | None:
    """The largest folder of which nothing is `there`, the outermost of its kind, and what was rejected of it."""
    counts = Counter(folder for path, _ in rejected for folder in _folders(path))
    for path in there:
        for folder in _folders(path):
            counts.pop(folder, None)
    outermost = [(count, folder) for folder, count in counts.items()
                 if count >= SEVERAL and not any(above in counts for above in _folders(folder))]
    if not outermost:
        return None
    folder = max(outermost)[1]
    return folder, [(path, reason) for path, reason in rejected if path.startswith(f"{folder}/")]


def _folders(path: str) -> Iterator[str]:
    """The folders that a path lies in, below the source."""
    parts = path.split("/")[:-1]
    return ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _remedy(rejected: Rejections, otherwise: str, place: str = "") -> str:
    """What to do about the commonest of these reasons, as an imperative. place: the folder that they lie in."""
    small = [min(map(int, found.groups())) for _, reason in rejected if (found := TOO_SMALL.match(reason))]
    unpaired = Counter(found[1] for _, reason in rejected if (found := UNPAIRED.match(reason)))
    if 2 * len(small) > len(rejected):
        return f"set prepare.min_side to {min(small)} to take them, or remove them"
    if 2 * unpaired.total() > len(rejected):
        column = unpaired.most_common(1)[0][0]
        alone = f"set prepare.source to {place} to train on these alone, or " if place else ""
        return f"{alone}name the {column}_file_name of each in the metadata"
    return otherwise
