"""Values of more than 8 bits: whole numbers of 16 and 32 bits, floats; of one picture, and of a whole column.

No single file knows what is black and what is white in its set. So its values are read, resized and stored as they
are, with what they run over (`Extent`); `Columns` finds the one range of all files of a column and applies it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

WHOLE, FLOAT, BYTE, COLOUR = "whole", "float", "byte", "colour"  # kinds of files
DEPTHS = ("depth", "disparity")  # words in the names of columns that hold depth
FULL = (0.0, 65535.0)  # of 16 bits
NEAR = 0.05  # of the largest value: a 0 nearer than that to the next value is one value among others
RARE = 0.001  # fraction of the pixels, at most, that outliers are of
SAMPLED = 100_000  # pixels of a file, about, of which the rarest are left out
DARK = 63  # of 255: 16 bit colours that are darker all over use 14 bits or fewer
ROUNDING = 2  # of 255, by which channels of a grey JPEG may differ
FILE = "values.json"  # in the prepared set
MARKS = (65535.0, 32767.0, 2147483647.0, 4294967295.0, -9999.0, -32768.0, -2147483648.0)  # for no measurement
HUGE = 1e30  # a float beyond is such a mark, too
PART = 0.25  # of the values from 0 to the largest: who fills less, away from 0, does not begin at 0
Array = np.ndarray
Resize = Callable[[Image.Image, float], Image.Image]  # (picture, value of the padding) -> picture


def is_depth(column: str) -> bool:
    """Whether a paired column holds depth, by its name."""
    return any(word in column.lower() for word in DEPTHS)


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture holds values of more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def kind_of(picture: Image.Image) -> str:
    """Of a picture in one channel: WHOLE, FLOAT or BYTE."""
    return FLOAT if picture.mode == "F" else WHOLE if is_deep(picture) else BYTE


class Rejected(Exception):
    """Why a file is not a usable picture."""


@dataclass(frozen=True)
class Extent:
    """What the values of files of one kind run over, all of them together.

    files: how many; first: one of them. low, high: the smallest value and the largest; above, below: those next to
    them (equal to them where there are no others); most: no file has more than RARE of its pixels beyond it. lows,
    highs, zeros, holes: pixels that are low, high, 0, no number (NaN or infinite); pixels: all.
    """

    files: int
    first: str
    low: float
    above: float
    below: float
    high: float
    most: float
    lows: int
    highs: int
    zeros: int
    holes: int
    pixels: int

    @classmethod
    def of(cls, values: Array, first: str = "") -> Extent:
        """Of one file's values, (H,W), NaN for holes. Raises Rejected where there is no number among them."""
        values = np.asarray(values, np.float32)
        known = np.isfinite(values)
        if not known.any():
            raise Rejected("holds values that are no numbers alone (NaN or infinite)")
        low, high = (float(end(values, where=known, initial=start)) for end, start in ((np.min, np.inf),
                                                                                       (np.max, -np.inf)))
        above = float(np.min(values, where=known & (values > low), initial=np.inf))
        below = float(np.max(values, where=known & (values < high), initial=-np.inf))
        some = values.ravel()[:: max(1, values.size // SAMPLED)]
        most = float(np.quantile(some, 1 - RARE, method="higher")) if known.all() else high
        return cls(1, first, low, above if np.isfinite(above) else low, below if np.isfinite(below) else high, high,
                   most, int((values == low).sum()), int((values == high).sum()), int((values == 0).sum()),
                   int(values.size - known.sum()), int(values.size))

    def joined(self, other: Extent) -> Extent:
        """Of the files of both."""
        ends = (self.low, self.above, self.below, self.high, other.low, other.above, other.below, other.high)
        low, high = min(ends), max(ends)
        return Extent(
            self.files + other.files, self.first, low, min((end for end in ends if end > low), default=low),
            max((end for end in ends if end < high), default=high), high,
            max(self.most, other.most), sum(each.lows for each in (self, other) if each.low == low),
            sum(each.highs for each in (self, other) if each.high == high), self.zeros + other.zeros,
            self.holes + other.holes, self.pixels + other.pixels)


def values_of(picture: Image.Image) -> Array:
    """The values of a picture in one channel, (H,W) float32; what is no number (NaN, infinite) is NaN."""
    values = np.array(picture, dtype=np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def fit_values(values: Array, resize: Resize, padding: float, marks: bool) -> Array:
    """Values (H,W) resized, as float32: holes (NaN) stay holes instead of being mixed with what lies around them.

    marks: whether a 0 far below all other values is kept so, too, and the smallest or the largest value where it
    lies further from all others than they do from each other, such as 65,535 for no measurement among millimetres.
    """
    def resized(array: Array, around: float) -> Array:
        return np.array(resize(Image.fromarray(array.astype(np.float32)), around))

    special = _marks(values) if marks else []
    apart = np.isnan(values) | np.isin(values, special)
    if not apart.any() or apart.all():
        return resized(values, padding)
    inside = resized(~apart, 0)
    smooth = resized(np.where(apart, 0, values), 0) / np.maximum(inside, 0.5)
    fitted = smooth.clip(values[~apart].min(), values[~apart].max())
    areas = np.stack([resized(np.isnan(values), 0), *(resized(values == mark, 0) for mark in special)])
    commonest = np.array([np.nan, *special], np.float32)[areas.argmax(0)]
    fitted = np.where(inside < 0.5, commonest, fitted).astype(np.float32)
    fitted[resized(np.ones_like(values), 0) < 0.5] = padding
    return fitted


def stored_values(values: Array, found: Extent, kind: str) -> bytes:
    """Values (H,W) as a file that keeps them: a PNG of 16 bits where those of the picture they are from fit one, with
    `found` and `kind` as of it, else a TIFF of float32."""
    buffer = io.BytesIO()
    if kind == WHOLE and found.low >= FULL[0] and found.high <= FULL[1] and np.isfinite(values).all():
        Image.fromarray(np.rint(values.clip(*FULL)).astype(np.uint16)).save(buffer, "PNG")
    else:
        Image.fromarray(values.astype(np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def as_depth(picture: Image.Image, deep_colours: bool = False) -> Image.Image:
    """A picture of depth in one channel: mode L, F or I. What is transparent becomes 0. Raises Rejected.

    Colours are accepted where red, green and blue are the same, as painting programs save grey. deep_colours: what
    `in_colours_of_16_bits` says of its file.
    """
    if is_deep(picture) or picture.mode == "L":
        return picture
    if picture.mode == "1":
        return picture.convert("L")
    if deep_colours:
        raise Rejected("has several channels of 16 bits, which are not read: save depth in one channel, as grey of "
                       "16 bits")
    pixels = np.asarray(picture.convert("RGBA"))
    if coloured(pixels[..., :3]):
        raise Rejected("has colours (packed or rendered), and depth is one number a pixel: save the numbers as grey "
                       "of 8 or 16 bits")
    alpha = pixels[..., 3]
    if ((alpha > 0) & (alpha < 255)).any():
        raise Rejected("has a transparency that varies beside its depth: save it in one channel, as grey of 8 or 16 "
                       "bits")
    return Image.fromarray(np.where(alpha == 0, 0, pixels[..., 1]).astype(np.uint8))


def coloured(pixels: Array) -> bool:
    """Whether red, green and blue differ in pixels (H,W,3) uint8."""
    return int((pixels.max(-1) - pixels.min(-1)).max(initial=0)) > ROUNDING


def check_colours(rgb: Image.Image) -> None:
    """Raise Rejected for a picture of 16 bit colours, whose upper 8 bits are read, where those are nearly black."""
    if 0 < max(high for _, high in rgb.getextrema()) <= DARK:
        raise Rejected("has colours of 16 bits that use 14 of them or fewer and come out nearly black: save it with "
                       "8 bits a channel")


def in_colours_of_16_bits(opened: Image.Image) -> bool:
    """Whether an opened file, not yet loaded, has several channels of 16 bits each, transparency being one."""
    return not is_deep(opened) and any(";16" in str(tile[3]) for tile in getattr(opened, "tile", ()))


def _marks(values: Array) -> list[float]:
    """Values of this file that stand for no measurement, by lying apart from all others."""
    try:
        found = Extent.of(values)
    except Rejected:
        return []
    zero = found.low == 0 and found.above > NEAR * found.below
    negative = found.low < 0 and found.above < found.high and found.above - found.low > found.high - found.above
    marks = [found.low] if zero or negative else []
    low = found.above if marks else found.low
    return marks + ([found.high] if found.below > low and found.high - found.below > found.below - low else [])


# ---- the range of a column --------------------------------------------------------------------------------


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
    fractions = (values - low) / (high - low)
    return np.rint(np.nan_to_num(fractions, nan=0, posinf=1).clip(0, 1) * most)


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


@dataclass(frozen=True)
class Held:
    """What a prepared set says of one column. files, first: how many files of each kind it has, and one of them."""

    ranges: Ranges = NO_RANGES
    files: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)


def read_columns(folder: Path) -> dict[str, Held]:
    """What `Columns.write` left in a prepared set; {} where an older version has made it."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Held(Ranges(tuple(each["whole_range"]), tuple(each["float_range"])), each["files"], each["first"])
            for name, each in content.items()}


def extents_as_json(found: Mapping[str, tuple[str, Extent]]) -> str:
    """What the values of one picture's files run over, by column, as text for `Columns.add`."""
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


def _percent(part: int, whole: int) -> str:
    percent = 100 * part / max(1, whole)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %" if percent >= 0.01 else "Fewer than 0.01 %"
