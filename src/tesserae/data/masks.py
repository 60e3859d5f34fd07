"""Masks: the index of a class, 0 to 255, at each pixel, and the colours that stand for the classes.

A file that does not hold indices is rejected with the reason. Where masks bring a palette of their own that tells
their classes apart, it is kept. All others get `class_colours`: far from each other, so that masks can be looked at,
painted and read back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from tesserae.data.values import Rejected

MASKS = ("segmentation", "mask", "label", "instance", "semantic")  # words in the names of such columns
LOSSY = ("JPEG", "MPO", "JPEG2000")
Colour = tuple[int, int, int]  # red, green, blue, each 0 to 255

NUM_INDICES = 256  # indices of a mask
VOID = 255  # the usual index of pixels of no class
NO_CLASS = -100  # the target of such pixels, as torch's cross-entropy has it
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # void, and the ground of figures
APART = 10  # RGB distance below which two colours of a palette count as the same
SHOWN = 24  # classes that a legend names

_STEP = 15  # of the grid of colours that are chosen from, in each of red, green, blue
_RGB_WEIGHT = 0.45  # an RGB distance of 1 counts as so much CIELAB distance
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]]) / np.array([[0.95047], [1.0], [1.08883]])  # sRGB, D65


@cache
def class_colours() -> tuple[Colour, ...]:
    """The colours of the classes 0 to 255; that of a class does not depend on how many classes there are.

    Each is the colour of a grid that lies furthest from white, from black and from all before it, in CIELAB and in
    RGB at once (the smaller of the two distances counts): people tell colours apart by the first, files that keep no
    exact values, such as JPEGs, by the second. Index 255, the usual void, is black. The nearest two of all are
    13 apart in CIELAB and 30 in RGB, those of the first 150 are 15 and 36.
    """
    levels = np.arange(0, 256, _STEP)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab, rgb = np.rint(100 * to_lab(grid)).astype(np.int64), grid * round(100 * _RGB_WEIGHT)

    def distance(place: int) -> np.ndarray:  # squared; whole numbers, so the same on all machines
        return np.minimum(np.square(lab - lab[place]).sum(1), np.square(rgb - rgb[place]).sum(1))

    places = {tuple(colour): place for place, colour in enumerate(grid.tolist())}
    nearest = np.minimum(*(distance(places[colour]) for colour in (BLACK, WHITE)))
    chosen: list[Colour] = []
    while len(chosen) < VOID:
        place = int(nearest.argmax())
        chosen.append(tuple(grid[place].tolist()))
        nearest = np.minimum(nearest, distance(place))
    return (*chosen, BLACK)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """sRGB (...,3) from 0 to 255 -> CIELAB under D65 (...,3)."""
    unit = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def colours_of(used: Iterable[int], own: Sequence[Colour] = ()) -> list[Colour]:
    """A colour for each index from 0 to 255, no two of them alike; `used` are the indices that occur.

    own: the masks' own palette, which is kept where it tells apart the indices that occur. Indices that do not occur,
    and whose colour there is another's, get one of `class_colours`.
    """
    used = sorted(used)
    if not own or not tells_apart(used, own):
        return list(class_colours())
    chosen = {index: tuple(own[index]) for index in used}
    for index in range(NUM_INDICES):
        if index not in chosen:
            wanted = [own[index]] if index < len(own) else []
            chosen[index] = _unlike(chosen.values(), [*wanted, *reversed(class_colours())])
    return [chosen[index] for index in range(NUM_INDICES)]


def tells_apart(used: Sequence[int], own: Sequence[Colour]) -> bool:
    """Whether a palette has a colour of its own for each of these indices."""
    if max(used, default=0) >= len(own):
        return False
    colours = np.array([own[index] for index in used], dtype=np.int64).reshape(-1, 3)
    distance = np.square(colours[:, None] - colours).sum(-1) + APART**2 * np.eye(len(colours), dtype=np.int64)
    return bool((distance >= APART**2).all())


def _unlike(taken: Iterable[Colour], candidates: Sequence[Colour]) -> Colour:
    """The first of the candidates that lies APART from all colours taken; else the one that lies furthest."""
    offered, known = (np.array(list(colours), dtype=np.int64).reshape(-1, 3) for colours in (candidates, taken))
    nearest = np.square(offered[:, None] - known).sum(-1).min(1)
    place = int(np.argmax(nearest >= APART**2)) if (nearest >= APART**2).any() else int(nearest.argmax())
    return tuple(offered[place].tolist())


class LegendEntry(NamedTuple):
    """A line of a legend; the colour None: words without one."""

    text: str
    colour: Colour | None


def legend(counts: Mapping[int, int], colours: Sequence[Colour], names: Mapping[int, str] | None = None,
           most: int = SHOWN) -> list[LegendEntry]:
    """The classes of a figure for its legend, by index: at most `most`, the largest, and how many more there are.

    counts: the pixels of each index; names: words that go with an index.
    """
    found = sorted((index for index, count in counts.items() if count), key=lambda index: (-counts[index], index))
    shown = sorted(found[:most])
    entries = [LegendEntry(" ".join([str(index), *([names[index]] if names and index in names else [])]),
                     tuple(map(int, colours[index]))) for index in shown]
    return entries + ([LegendEntry(f"and {len(found) - most} more", None)] if len(found) > most else [])


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
        indices = Image.fromarray(_values(column, picture))
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


def _values(column: str, picture: Image.Image) -> np.ndarray:
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
