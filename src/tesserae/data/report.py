"""What the stage prepare reports: counts, notes on splits and columns, and why it refuses a set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tesserae.data.decoding import TURNED
from tesserae.data.listing import some
from tesserae.data.palette import VOID
from tesserae.data.splitting import SPLIT, Split
from tesserae.data.values import (
    BYTE,
    COLOUR,
    FILE,
    FLOAT,
    FULL,
    PART,
    RARE,
    WHOLE,
    Extent,
    Ranges,
    inliers,
    is_depth,
    range_of,
)
from tesserae.errors import TesseraeError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

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
    """A sentence about the pairs of a column for which `decoding.beside` returns the same."""
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


# ---- what the columns hold ---------------------------------------------------------------------------------


@dataclass
class Column:
    """What the files of one column hold together. name: of the column, "image" for the pictures themselves.

    chosen: the range that was given by hand, () where it is found.
    """

    name: str
    kinds: dict[str, Extent] = field(default_factory=dict)
    chosen: tuple[float, ...] = ()

    def add(self, kind: str, found: Extent, path: str) -> None:
        """One file more."""
        found = replace(found, first=path)
        self.kinds[kind] = self.kinds[kind].joined(found) if kind in self.kinds else found

    @property
    def deep(self) -> dict[str, Extent]:
        """Of the files with more than 8 bits."""
        return {kind: found for kind, found in self.kinds.items() if kind in (WHOLE, FLOAT)}

    @property
    def ranges(self) -> Ranges:
        """The scale of its files of more than 8 bits."""
        found = {kind: self.chosen or range_of(extent, kind, self.name != "image")
                 for kind, extent in self.deep.items()}
        return Ranges(found.get(WHOLE, ()), found.get(FLOAT, ()))

    def notes(self) -> list[str]:
        """What is worth saying of it, a sentence each."""
        unused = self.chosen and not self.deep
        return [*self._on_ranges(), *self._on_holes(), *self._on_kinds(),
                *([f"prepare.value_ranges.{self.name} is not used: no file of {self.name} has more than 8 bits."]
                  if unused else [])]

    def _on_ranges(self) -> Iterator[str]:
        for kind, found in self.deep.items():
            low, high = self.ranges.of(kind)
            ends = [_number(end) for end in (found.low, found.high, low, high)]
            words = "whole numbers" if kind == WHOLE else "floats"
            origin = ", as prepare.value_ranges says" if self.chosen else ""
            usual = (low, high) == FULL and found.low >= 0 and found.high > FULL[1] / 2  # all of the 16 bits
            if not usual or self.chosen:
                yield (f"{self.name} holds {words} from {ends[0]} to {ends[1]}; {ends[2]} to {ends[3]} is black to "
                       f"white in every picture{origin}.")
            if not self.chosen:
                yield from self._on_outliers(found, low, high)

    def _on_outliers(self, found: Extent, low: float, high: float) -> Iterator[str]:
        least, largest = inliers(found)
        for value, end, pixels, colour in ((found.high, largest, found.highs, "white"),
                                           (found.low, least, found.lows, "black")):
            if value != end:
                yield (f"{_percent(pixels, found.pixels)} of {self.name}'s pixels are {_number(value)}, far from all "
                       f"others, as no measurement often is: they become {colour}; prepare.value_ranges sets another "
                       "range.")
        if found.most - low < PART * (high - low):
            yield (f"In every file of {self.name} 99.9 % of the pixels are at most {_number(found.most)}, which is "
                   "nearly black: set prepare.value_ranges if the others are outliers.")

    def _on_holes(self) -> Iterator[str]:
        for found in self.deep.values():
            if found.holes:
                yield (f"{_percent(found.holes, found.pixels)} of {self.name}'s pixels are no numbers (NaN or "
                       "infinite): they become black.")
        pixels = sum(found.pixels for found in self.kinds.values())
        zeros = sum(found.zeros for kind, found in self.kinds.items() if kind != COLOUR and found.low == 0)
        if is_depth(self.name) and zeros >= RARE * pixels and zeros:
            yield (f"{_percent(zeros, pixels)} of {self.name}'s pixels are 0, the usual mark for no measurement: "
                   "they become black and are learned like measured depth, unless you fill them.")

    def _on_kinds(self) -> Iterator[str]:
        """Files of a column that has no one unit."""
        if self.name == "image" or not self.deep or len(self.kinds) == 1:
            return
        names = {WHOLE: "more than 8 bits", FLOAT: "floats", BYTE: "8 bits", COLOUR: "colours"}
        listed = [f"{found.files:,} of {names[kind]} ({found.first}{' and others' if found.files > 1 else ''})"
                  for kind, found in self.kinds.items()]
        yield (f"{self.name} mixes files: {', '.join(listed)}; each kind is scaled by itself, so save all alike if "
               "they hold one measure.")


class Columns:
    """What all columns of a set hold, gathered picture by picture."""

    def __init__(self, names: Sequence[str], chosen: Mapping[str, Sequence[float]]) -> None:
        self.by_name = {name: Column(name, chosen=tuple(chosen.get(name, ()))) for name in names}

    def add(self, extents: str, path: str) -> None:
        """The result of `extents_as_json` for one picture."""
        for name, (kind, *extent) in json.loads(extents).items():
            self.by_name[name].add(kind, Extent(1, path, *extent), path)

    def notes(self) -> list[str]:
        """Of all columns."""
        return [note for column in self.by_name.values() for note in column.notes()]

    def metrics(self) -> dict[str, float]:
        """The range found and the one used, of each column with more than 8 bits that does not use 16 of them."""
        found = {}
        for column in self.by_name.values():
            for kind, extent in column.deep.items():
                used = column.ranges.of(kind)
                if used != FULL:
                    ends = {"smallest": extent.low, "largest": extent.high, "black": used[0], "white": used[1]}
                    key = column.name if len(column.deep) == 1 else f"{column.name}_{kind}"
                    found |= {f"{key}_{end}": value for end, value in ends.items()}
        return found

    @property
    def deep(self) -> dict[str, Ranges]:
        """The scales of the columns that have files of more than 8 bits."""
        return {name: column.ranges for name, column in self.by_name.items() if column.deep}

    def write(self, folder: Path) -> None:
        """Keep it with the prepared set, for `read_columns`."""
        content = {name: {"whole_range": column.ranges.whole, "float_range": column.ranges.floats,
                          "files": {kind: found.files for kind, found in sorted(column.kinds.items())},
                          "first": {kind: found.first for kind, found in sorted(column.kinds.items())}}
                   for name, column in self.by_name.items() if column.kinds}
        (folder / FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass
class MaskUse:
    """What the masks of one column have in common, gathered one by one. void: how many of them hold index VOID."""

    column: str
    masks: int = 0
    void: int = 0
    indices: set[int] = field(default_factory=set)
    colours: dict[int, set[tuple]] = field(default_factory=dict)  # of each index, by the masks' palettes

    def add(self, mask: Image.Image) -> None:
        """One more, as `as_indices` gives it."""
        found = np.flatnonzero(mask.histogram()).tolist()
        self.masks += 1
        self.void += VOID in found
        self.indices.update(found)
        if mask.mode == "P":
            colours = mask.getpalette("RGB") or []
            for index in found:
                self.colours.setdefault(index, set()).add(tuple(colours[3 * index:3 * index + 3]))

    def notes(self) -> list[str]:
        """What is odd about them, a sentence each."""
        classes = self.indices - {VOID}
        notes, highest = [self._of_void(classes)] if self.void else [], max(classes, default=0)
        if highest + 1 > 2 * len(classes) and len(classes) > 0:
            notes.append(f"{self.column} holds {len(classes)} different indices, the largest {highest}, so its "
                        f"VQGAN would have {highest + 1} classes, of which most never occur: number them from 0 "
                        "without gaps.")
        if any(len(found) > 1 for found in self.colours.values()):
            notes.append(f"The palettes of {self.column} give one index several colours: see that it means the same "
                        "everywhere.")
        return notes

    def _of_void(self, classes: set[int]) -> str:
        where = f"{self.void:,} of {self.masks:,} masks"
        if len(classes) < 2:
            return (f"{self.column} holds {len(self.indices)} different indices, the largest 255, so its VQGAN would "
                    "have 256 classes: where 255 is the second class, save the masks with 1 bit or as 0 and 1; where "
                    "it marks void, set ignore_index: 255 in the VQGAN's block.")
        return (f"{self.column} holds the index 255 in {where}, which usually marks void, pixels of no class: "
                "ignore_index: 255 in the block of its VQGAN, as in presets/own-masks.yaml, leaves them out of the "
                "network's input, loss, error and mIoU; without it 255 is a class, and the VQGAN has 256.")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %" if percent >= 0.01 else "Fewer than 0.01 %"
