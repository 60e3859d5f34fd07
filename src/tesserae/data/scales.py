"""The one scale of a set for each column of more than 8 bits: which values become black and white."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tesserae.data.values import (
    BYTE,
    COLOUR,
    FLOAT,
    FULL,
    RARE,
    WHOLE,
    Array,
    Extent,
    is_depth,
    kind_of,
    values_of,
)

FILE = "values.json"  # in the prepared set
MARKS = (65535.0, 32767.0, 2147483647.0, 4294967295.0, -9999.0, -32768.0, -2147483648.0)  # for no measurement
HUGE = 1e30  # a float beyond is such a mark, too
PART = 0.25  # of the values from 0 to the largest: who fills less, away from 0, does not begin at 0


@dataclass(frozen=True)
class Ranges:
    """The scale of a column: the values that become black and white, of whole numbers and of floats; () for none."""

    whole: tuple[float, ...] = ()
    floats: tuple[float, ...] = ()

    def of(self, kind: str) -> tuple[float, ...]:
        """Of files of this kind; () of 8 bits, which have none."""
        return {WHOLE: self.whole, FLOAT: self.floats}.get(kind, ())


NO_RANGES = Ranges()


def scaled(values: Array, black_white: tuple[float, float], most: int) -> Array:
    """Values (H,W) -> whole numbers from 0 (black, and NaN) to `most` (white, and infinity), float32."""
    low, high = black_white
    shares = (values - low) / (high - low)
    return np.rint(np.nan_to_num(shares, nan=0, posinf=1).clip(0, 1) * most)


def as_grey(picture: Image.Image, ranges: Ranges) -> Image.Image:
    """A picture of more than 8 bits by the scale of a column -> RGB; by its own where that has none of its kind.

    Raises Rejected where it holds no number.
    """
    values, kind = values_of(picture), kind_of(picture)
    return _grey(values, ranges.of(kind) or range_of(Extent.of(values), kind, paired=False))


def range_of(found: Extent, kind: str, paired: bool) -> tuple[float, float]:
    """What is black and white where files of this kind hold these values; outliers are left out.

    Of whole numbers it begins at 0 and ends, for pictures, where their bits do (4,095 for 12 bits), for paired
    columns at the largest value, or at 65,535 where that needs all 16 bits. Floats keep to [0,1], [-1,1] or [0,255]
    where they are pictures that fill half of that. All others run from their smallest value, or 0, to their largest;
    what lies close together and far from 0 begins at its smallest value, in paired columns zeros aside as holes.
    """
    low, high = inliers(found)
    if low < 0:
        natural = kind == FLOAT and not paired and low >= -1 and 0.5 < max(-low, high) <= 1
        return (-1.0, 1.0) if natural else (low, max(high, 0.0))
    least = found.above if paired and low == 0 else low
    if 0 < high - least < PART * high:
        return least, high
    if kind == WHOLE:
        full = 2.0 ** max(8, int(high).bit_length()) - 1
        return 0.0, full if not paired or full == FULL[1] else max(high, 1.0)
    ends = () if paired else (1.0, 255.0)
    return 0.0, next((end for end in ends if end / 2 < high <= end), high or 1.0)


def inliers(found: Extent) -> tuple[float, float]:
    """The smallest and the largest value without outliers.

    An outlier is further from all others than they are from each other, and it is rare or a usual mark for no
    measurement.
    """
    low, high, above, below = found.low, found.high, found.above, found.below
    if low < 0 and high > above and above - low > high - above and _is_outlier(found, low, found.lows):
        low = above
    if low < below and high - below > below - low and _is_outlier(found, high, found.highs):
        high = below
    return low, high


def _is_outlier(found: Extent, value: float, pixels: int) -> bool:
    return pixels <= RARE * found.pixels or value in MARKS or abs(value) > HUGE


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
                yield (f"{_share(pixels, found.pixels)} of {self.name}'s pixels are {_number(value)}, far from all "
                       f"others, as no measurement often is: they become {colour}; prepare.value_ranges sets another "
                       "range.")
        if found.most - low < PART * (high - low):
            yield (f"In every file of {self.name} 99.9 % of the pixels are at most {_number(found.most)}, which is "
                   "nearly black: set prepare.value_ranges if the others are outliers.")

    def _on_holes(self) -> Iterator[str]:
        for found in self.deep.values():
            if found.holes:
                yield (f"{_share(found.holes, found.pixels)} of {self.name}'s pixels are no numbers (NaN or "
                       "infinite): they become black.")
        pixels = sum(found.pixels for found in self.kinds.values())
        zeros = sum(found.zeros for kind, found in self.kinds.items() if kind != COLOUR and found.low == 0)
        if is_depth(self.name) and zeros >= RARE * pixels and zeros:
            yield (f"{_share(zeros, pixels)} of {self.name}'s pixels are 0, the usual mark for no measurement: they "
                   "become black and are learned like measured depth, unless you fill them.")

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

    def add(self, said: str, path: str) -> None:
        """What `said_of` wrote of one picture."""
        for name, (kind, *extent) in json.loads(said).items():
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
        said = {name: {"whole_range": column.ranges.whole, "float_range": column.ranges.floats,
                       "files": {kind: found.files for kind, found in sorted(column.kinds.items())},
                       "first": {kind: found.first for kind, found in sorted(column.kinds.items())}}
                for name, column in self.by_name.items() if column.kinds}
        (folder / FILE).write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Held:
    """What a prepared set says of one column. files, first: how many files of each kind it has, and one of them."""

    ranges: Ranges = NO_RANGES
    files: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)


def read_columns(folder: Path) -> dict[str, Held]:
    """What `Columns.write` left in a prepared set; {} where an older version has made it."""
    try:
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Held(Ranges(tuple(each["whole_range"]), tuple(each["float_range"])), each["files"], each["first"])
            for name, each in said.items()}


def said_of(found: Mapping[str, tuple[str, Extent]]) -> str:
    """What the files of one picture hold, by column, as text for `Columns.add`."""
    return json.dumps({name: [kind, *list(vars(extent).values())[2:]] for name, (kind, extent) in found.items()})


def finished(content: bytes, black_white: tuple[float, float], is_picture: bool) -> bytes:
    """Values as a piece stores them -> the PNG of the set: RGB for pictures, 16 bits for paired columns."""
    values = np.array(Image.open(io.BytesIO(content)), dtype=np.float32)
    picture = _grey(values, black_white) if is_picture else Image.fromarray(
        scaled(values, black_white, int(FULL[1])).astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _grey(values: Array, black_white: tuple[float, float]) -> Image.Image:
    return Image.fromarray(scaled(values, black_white, 255).astype(np.uint8)).convert("RGB")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def _share(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %" if percent >= 0.01 else "Fewer than 0.01 %"
