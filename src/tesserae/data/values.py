"""Files whose numbers mean something: values of more than 8 bits, and masks, which hold the index of a class.

No single file knows what is black and what is white in its set. So values of 16 and 32 bits and floats are read,
resized and stored as they are, with what they run over (`Extent`); `range_of` finds the one range of all files of a
column, and `finished` applies it. A mask that does not hold indices from 0 to 255 is rejected with the reason.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tesserae.data.palette import NUM_INDICES

WHOLE, FLOAT, BYTE, COLOUR = "whole", "float", "byte", "colour"  # kinds of files
DEPTHS = ("depth", "disparity")  # words in the names of columns that hold depth
MASKS = ("segmentation", "mask", "label", "instance", "semantic")  # words in the names of columns that hold masks
LOSSY = ("JPEG", "MPO", "JPEG2000")
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

    Colours are accepted where red, green and blue are the same, as painting programs save grey. deep_colours: the
    result of `in_colours_of_16_bits` for its file.
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


@dataclass(frozen=True)
class Held:
    """What a prepared set records of one column. files, first: how many files of each kind, and one of them."""

    ranges: Ranges = NO_RANGES
    files: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)


def read_columns(folder: Path) -> dict[str, Held]:
    """What `report.Columns.write` left in a prepared set; {} where an older version has made it."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: Held(Ranges(tuple(each["whole_range"]), tuple(each["float_range"])), each["files"], each["first"])
            for name, each in content.items()}


def extents_as_json(found: Mapping[str, tuple[str, Extent]]) -> str:
    """What the values of one picture's files run over, by column, as text for `report.Columns.add`."""
    return json.dumps({name: [kind, *list(vars(extent).values())[2:]] for name, (kind, extent) in found.items()})


def finished(content: bytes, black_white: tuple[float, float], is_picture: bool) -> bytes:
    """Values as a shard stores them -> the PNG of the set: RGB for pictures, 16 bits for paired columns."""
    values = np.array(Image.open(io.BytesIO(content)), dtype=np.float32)
    picture = _grey(values, black_white) if is_picture else Image.fromarray(
        scaled(values, black_white, int(FULL[1])).astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _grey(values: Array, black_white: tuple[float, float]) -> Image.Image:
    return Image.fromarray(scaled(values, black_white, 255).astype(np.uint8)).convert("RGB")


# ---- files of masks ----------------------------------------------------------------------------------------


def is_mask(column: str) -> bool:
    """Whether a paired column holds indices, by its name."""
    return any(word in column.lower() for word in MASKS)


def as_indices(column: str, picture: Image.Image, lossy: bool) -> Image.Image:
    """A mask as it came -> mode P or L, a pixel's value its index. Raises Rejected.

    Bitmaps give 0 and 1. Colours are accepted where red, green and blue are the same, as painting programs save grey.
    lossy: from a file that keeps no exact values, such as a JPEG: fine where no third value has come in.
    """
    if picture.mode == "P":
        indices = _whole_palette(picture)
    elif picture.mode == "F":
        raise Rejected(f"{column} holds floats: save it as a PNG of whole numbers")
    else:
        indices = Image.fromarray(_index_array(column, picture))
        if picture.mode == "PA":
            indices.putpalette(picture.getpalette("RGB"))
            indices = _whole_palette(indices)
    if lossy and (count := len(np.unique(np.asarray(indices)))) > 2:
        raise Rejected(f"{column} is a JPEG or the like, which smears the borders between indices ({count} values "
                       "occur): save masks as PNG")
    return indices


def file_maximum(opened: Image.Image) -> int | None:
    """The number that a grey file calls white, where Pillow makes 255 or 65,535 of it; None: numbers stay the same.

    It does so for PNG and TIFF files of 2 or 4 bits and for PGM files. To be called before `load`.
    """
    arguments = opened.tile[0][3] if getattr(opened, "tile", None) else None
    first, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    if opened.format == "PPM" and first == "L" and others and isinstance(others[0], int):
        return others[0]
    bits = re.match(r"L;([24])", first) if isinstance(first, str) else None
    return (1 << int(bits[1])) - 1 if bits else None


def unscaled(picture: Image.Image, full: int | None) -> Image.Image:
    """A loaded grey picture with the numbers that its file holds; full: the result of `file_maximum`."""
    white = {"L": 255, "I": 65_535}.get(picture.mode)
    if full is None or white is None:
        return picture
    values = np.rint(np.asarray(picture).astype(np.float64) * full / white)
    found = Image.fromarray(values.astype(np.uint8 if full <= 255 else np.int32))
    found.info = picture.info  # its EXIF
    return found


def _whole_palette(picture: Image.Image) -> Image.Image:
    """Mode P with a palette of 256 colours: of a shorter one, PNG would store too few bits for the indices."""
    colours = picture.getpalette("RGB") or []
    whole = picture.copy()
    whole.putpalette(colours + [0] * (3 * NUM_INDICES - len(colours)))
    return whole


def _index_array(column: str, picture: Image.Image) -> np.ndarray:
    """(H,W) uint8."""
    if picture.mode not in ("1", "L", "LA", "La", "PA") and not picture.mode.startswith("I"):
        pixels = np.asarray(picture.convert("RGB"))
        if (pixels != pixels[..., :1]).any():
            raise Rejected(f"{column} is in colours, not in indices: save it in grey or with a palette, a number for "
                           "each class")
        return np.ascontiguousarray(pixels[..., 0])
    pixels = np.asarray(picture)
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., 0]
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= NUM_INDICES:
        strange = high if high >= NUM_INDICES else low
        raise Rejected(f"{column} holds the index {strange}: 0 to {NUM_INDICES - 1} can be kept")
    return np.ascontiguousarray(pixels.astype(np.uint8))


def is_lossy(kind: str | None, content: bytes) -> bool:
    """Whether a file of this format, with these bytes, keeps no exact values."""
    return kind in LOSSY or (kind == "WEBP" and b"VP8L" not in content[:64])
