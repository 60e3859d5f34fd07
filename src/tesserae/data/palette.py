"""The colours that stand for classes, so that masks can be looked at, painted and read back.

Where masks bring a palette of their own that tells their classes apart, it is kept. All others get `class_colours`,
which lie far from each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

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
