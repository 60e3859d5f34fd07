"""The values of one picture of more than 8 bits: whole numbers of 16 and 32 bits, floats.

No single file knows what is black and what is white in its set. So its values are read, resized and stored as they
are, with what they run over (`Extent`); `scales` finds the one scale of all files and applies it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tesserae.data.entries import Rejected

WHOLE, FLOAT, BYTE, COLOUR = "whole", "float", "byte", "colour"  # kinds of files
DEPTHS = ("depth", "disparity")  # words in the names of columns that hold depth
FULL = (0.0, 65535.0)  # of 16 bits
NEAR = 0.05  # of the largest value: a 0 nearer than that to the next value is one value among others
RARE = 0.001  # share of the pixels, at most, that outliers are of
SAMPLED = 100_000  # pixels of a file, about, of which the rarest are left out
DARK = 63  # of 255: 16 bit colours that are darker all over use 14 bits or fewer
ROUNDING = 2  # of 255, by which channels of a grey JPEG may differ
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
    share = resized(~apart, 0)
    smooth = resized(np.where(apart, 0, values), 0) / np.maximum(share, 0.5)
    fitted = smooth.clip(values[~apart].min(), values[~apart].max())
    areas = np.stack([resized(np.isnan(values), 0), *(resized(values == mark, 0) for mark in special)])
    commonest = np.array([np.nan, *special], np.float32)[areas.argmax(0)]
    fitted = np.where(share < 0.5, commonest, fitted).astype(np.float32)
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
