"""External layouts: a mask that a user has painted, and one that is painted here by random strokes.

A layout is (H,W) int64, at each pixel the index of its class.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from tesserae.data.decoding import to_rgb, upright
from tesserae.data.palette import VOID
from tesserae.data.regions import without_patches
from tesserae.data.values import Rejected, is_lossy
from tesserae.errors import TesseraeError
from tesserae.scenes.names import SEGMENT_NAMES

Palette = Sequence[Sequence[int]]  # (r, g, b) of each class, 0 to 255
TOLERANCE = 12  # of colours, in `_LUMA_CHROMA`: so far a JPEG moves plain areas, and more
SLIGHT = 6.5  # so little may be chance in a JPEG alone
PLAIN, MIN_PLAIN = 8, 0.25  # of a layout, at least that fraction of the pixels is so near to its class's colour
_LUMA_CHROMA = np.array([[0.598, 1.174, 0.228], [-0.168736, -0.331264, 0.5],
                         [0.5, -0.418688, -0.081312]])  # RGB -> twice the luma, Cb, Cr, which JPEGs keep less well
FINER = 4  # a layout is painted that many times as large and then subsampled: smooth outlines, no mixed pixels


class LayoutError(TesseraeError, ValueError):
    """A file is no layout for these classes."""


# ---- from a file -------------------------------------------------------------------------------------------


def read_layout(path: str | Path, classes: int, palette: Palette | None = None,
                size: tuple[int, int] | None = None, ignore_index: int = -1, void: Sequence[int] = ()) -> Tensor:
    """A picture file as a layout: (H,W) int64 in [0, classes), or ignore_index.

    Grey pictures, and such with a palette of their own, hold the indices themselves; but where each colour used
    is one of `palette`, a palette picture is read by its colours, since painting programs number them anew.
    Coloured pictures are read by the nearest colour of `palette`, with a warning that counts the pixels which
    had none exactly; small patches where colours run into each other, in JPEGs or under soft brushes, become what
    surrounds them. ignore_index: the index of pixels of no class, which have the colour `void`; -1: there is none.
    size: (H,W) to fit, by cutting the middle and taking nearest pixels; None: as it is. Turned upright by its EXIF.
    Raises LayoutError, also where most pixels have the colour of no class.
    """
    path = Path(path)
    picture, lossy = _opened(path)
    if picture.mode == "F":
        raise LayoutError(f"{path} holds floats, and a layout is made of whole numbers: save it as PNG.")
    known, meant = None, np.arange(classes)
    if palette is not None:
        known = np.asarray([*palette[:classes], *([void] if len(void) and ignore_index >= 0 else [])], dtype=np.int64)
        meant = np.array([*range(classes), ignore_index])[:len(known)]  # the index that each colour stands for
    if picture.mode in ("1", "L", "LA", "La", "P", "PA") or picture.mode.startswith("I"):
        indices = _indices(picture)
        if lossy and len(np.unique(indices)) > 2:
            raise LayoutError(f"{path} is a JPEG or the like in grey, which smears the borders between indices: save "
                              "it as PNG, or paint with the classes' colours.")
        own = _own_colours(picture)
        if own is not None and known is not None:
            indices = _renumbered(indices, own, known, meant)
        return torch.from_numpy(_checked(_fitted(indices, size), classes, ignore_index, path))
    if known is None:
        raise LayoutError(f"{path} is a coloured picture, and there is no palette to read it by: save it as a grey "
                          f"picture of indices from 0 to {classes - 1}.")
    try:
        colours = np.asarray(to_rgb(picture), dtype=np.int64)
    except Rejected as reason:
        raise LayoutError(f"{path} cannot be read as a layout: {reason}; save it as PNG.") from None
    if not lossy and _are_indices(colours, known):
        return torch.from_numpy(_checked(_fitted(colours[..., 0], size), classes, ignore_index, path))
    return torch.from_numpy(_fitted(meant[_by_colour(_bounded(colours, size), known, lossy, path)], size))


def write_layout(path: str | Path, layout: Tensor, palette: Palette) -> None:
    """A layout (H,W) of fewer than 256 classes as a PNG with a palette, which painting programs open in colours."""
    picture = Image.fromarray(layout.numpy().astype(np.uint8))
    picture.putpalette([value for colour in palette for value in colour])
    picture.save(path, "PNG")


def _opened(path: Path) -> tuple[Image.Image, bool]:
    """The picture, and whether its file keeps no exact values."""
    try:
        content = path.read_bytes()
        picture = upright(content)
        return picture, is_lossy(Image.open(io.BytesIO(content)).format, content)
    except FileNotFoundError:
        raise LayoutError(f"{path} does not exist: name the picture file that holds the layout.") from None
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror or error}): name a picture file.") from None
    except Rejected as reason:
        raise LayoutError(f"{path} cannot be read as a layout: {reason}; save it as PNG.") from None


def _indices(picture: Image.Image) -> np.ndarray:
    """(H,W) int64; transparency is ignored."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1)[..., 0].astype(np.int64)


def _own_colours(picture: Image.Image) -> np.ndarray | None:
    """The picture's own palette, (M,3), where it has one."""
    palette = picture.getpalette("RGB") if picture.mode in ("P", "PA") else None
    return np.asarray(palette, dtype=np.int64).reshape(-1, 3) if palette else None


def _renumbered(indices: np.ndarray, own: np.ndarray, known: np.ndarray, meant: np.ndarray) -> np.ndarray:
    """Indices into the picture's palette -> classes of the same colours, if all used colours are classes'."""
    used = np.unique(indices)
    if used.max() >= len(own):
        return indices
    same = (own[used, None] == known).all(-1)  # (used,classes)
    own_first = [bool((same[place] & (meant == number)).any()) for place, number in enumerate(used)]
    if not same.any(1).all() or all(own_first):
        return indices
    return meant[same.argmax(1)][np.searchsorted(used, indices)]


def _are_indices(colours: np.ndarray, known: np.ndarray) -> bool:
    """Whether a picture (H,W,3) is grey, as programs save indices in colour, and its greys are not the classes'."""
    if (colours != colours[..., :1]).any():
        return False
    greys = {int(colour[0]) for colour in known if len(set(colour.tolist())) == 1}
    return not set(np.unique(colours).tolist()) <= greys


def _by_colour(colours: np.ndarray, known: np.ndarray, lossy: bool, path: Path) -> np.ndarray:
    """(H,W,3) -> the nearest of the known colours (C,3), (H,W) int64; warns where it is not the same.

    Near is by luma, which JPEGs keep better, more than by chroma. Raises LayoutError where most are near none.
    """
    packed = colours @ np.array([1 << 16, 1 << 8, 1])
    every, place = np.unique(packed, return_inverse=True)
    place = place.reshape(packed.shape)
    own = np.stack([every >> 16, every >> 8 & 255, every & 255], 1) @ _LUMA_CHROMA.T
    classes = known @ _LUMA_CHROMA.T
    nearest, distance = np.empty(len(every), dtype=np.int64), np.empty(len(every))
    for start in range(0, len(every), 4096):  # of as many colours at once as fit into little memory
        squares = np.square(own[start:start + 4096, None] - classes).sum(-1)
        nearest[start:start + 4096] = squares.argmin(1)
        distance[start:start + 4096] = np.sqrt(squares.min(1))
    strange, unsure = int((distance > 1e-6)[place].sum()), float((distance > PLAIN)[place].mean())
    if unsure > 1 - MIN_PLAIN:
        raise LayoutError(f"{path} is no layout of these classes: {unsure:.0%} of it has the colour of none; "
                          "paint with their colours and save it as PNG, or save a grey picture of indices.")
    if strange:
        warnings.warn(f"{path}: {strange} of {place.size} pixels have no colour of the palette exactly and were "
                      "given the nearest one, small patches what surrounds them.", stacklevel=3)
    sure = distance <= (1e-6 if lossy else SLIGHT)
    return without_patches(nearest[place], (distance <= _tolerance(classes))[place], sure[place])


def _tolerance(classes: np.ndarray) -> float:
    """How far a colour may lie from its class's: half of the way to the next one, at most TOLERANCE."""
    squares = np.square(classes[:, None] - classes).sum(-1)
    apart = squares[squares > 0].min(initial=(2 * TOLERANCE) ** 2)
    return min(TOLERANCE, float(np.sqrt(apart)) / 2)


def _checked(indices: np.ndarray, classes: int, ignore_index: int, path: Path) -> np.ndarray:
    wrong = indices[((indices < 0) | (indices >= classes)) & (indices != ignore_index)]
    if wrong.size:
        usual = (f"; {VOID} usually marks void, which ignore_index: {VOID} in the VQGAN's block leaves out"
                 if VOID in wrong else "")
        raise LayoutError(f"{path} holds the index {wrong.max()} at {wrong.size} pixels, and the classes are 0 to "
                          f"{classes - 1}: paint with these, or save colours as an RGB picture{usual}.")
    return indices


def _bounded(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """A large picture at a few times the size that is wanted: enough to tell patches from classes."""
    if size is None:
        return pixels
    times = min(4, *(have // want for have, want in zip(pixels.shape, size)))
    return _fitted(pixels, (size[0] * times, size[1] * times)) if times > 1 else pixels


def _fitted(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(H,W,...) -> (h,w,...): the largest part of that shape from the middle, by nearest pixels."""
    if size is None:
        return pixels
    scale = min(have / want for have, want in zip(pixels.shape, size))  # pixels of the file a pixel of the layout
    rows, columns = ((have - want * scale) / 2 + (np.arange(want) + 0.5) * scale
                     for have, want in zip(pixels.shape, size))
    return pixels[rows.astype(int)[:, None], columns.astype(int)]


# ---- painted here ------------------------------------------------------------------------------------------


def draw_layout(seed: int, size: tuple[int, int]) -> Tensor:
    """A landscape as someone might paint it with a broad brush, in the classes of the built-in scenes.

    (H,W) int64 of indices into SEGMENT_NAMES: sky with a sun and clouds, mountains with snow, woods at their
    foot, water, sand and grass in front. The same for the same seed and size; a wide one has more of everything.
    """
    height, width = size
    picture = Image.new("L", (width * FINER, height * FINER), _CLASS["sky"])
    brush = _Brush(picture, np.random.Generator(np.random.Philox(np.random.SeedSequence([seed]))))
    horizon = brush.between(0.5, 0.56)
    _paint_sky(brush)
    _paint_mountains(brush, horizon)
    _paint_ground(brush, horizon)
    finer = np.asarray(picture)[FINER // 2::FINER, FINER // 2::FINER]
    return torch.from_numpy(finer.astype(np.int64))


_CLASS = {name: index for index, name in enumerate(SEGMENT_NAMES)}
Points = np.ndarray  # (N,2) of (x, y); y from 0 above to 1 below, x in the same unit


class _Brush:
    """A hand that paints classes onto a picture; lengths are in heights of the picture."""

    def __init__(self, picture: Image.Image, generator: np.random.Generator) -> None:
        self.draw, self.generator, self.height = ImageDraw.Draw(picture), generator, picture.height
        self.width = picture.width / picture.height
        self.between = generator.uniform

    def line(self, points, rough: float) -> Points:
        """An open line through points as a hand draws it: bent at random between them, by `rough` of a piece."""
        points = np.asarray(points, dtype=float)
        for _ in range(4):
            step = np.diff(points, axis=0)
            aside = np.stack([-step[:, 1], step[:, 0]], 1) * self.generator.normal(0, rough, (len(step), 1))
            middle = points[:-1] + step / 2 + aside
            points = np.concatenate([np.stack([points[:-1], middle], 1).reshape(-1, 2), points[-1:]])
        return points

    def fill(self, name: str, outline: Points, tip: float = 0.015) -> None:
        """An area and its outline, gone round with a tip of that radius."""
        self.draw.polygon([tuple(point) for point in outline * self.height], fill=_CLASS[name])
        self.stroke(name, np.concatenate([outline, outline[:1]]), tip)

    def stroke(self, name: str, points: Points, tip: float) -> None:
        """A line painted with a round tip of that radius."""
        scaled, radius = points * self.height, tip * self.height
        self.draw.line([tuple(point) for point in scaled], fill=_CLASS[name], width=max(1, round(2 * radius)))
        for x, y in scaled:
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_CLASS[name])


def _paint_sky(brush: _Brush) -> None:
    """Clouds of three strokes each, and the sun in a place of its own."""
    count = 1 + max(2, round(1.8 * brush.width))
    sun = brush.generator.integers(count)
    for number in range(count):
        x = brush.width * (number + brush.between(0.3, 0.7)) / count
        if number == sun:
            turns = np.linspace(0, 2 * np.pi, 9)[:-1]
            middle = np.array([x, brush.between(0.1, 0.2)])
            brush.fill("sun_or_moon", brush.line(middle + 0.045 * np.stack([np.cos(turns), np.sin(turns)], 1), 0.05))
            continue
        y, length = brush.between(0.08, 0.26), brush.between(0.14, 0.26)
        for reach, up, tip in ((1.0, 0.0, 0.022), (0.6, 0.03, 0.026), (0.25, 0.055, 0.022)):
            shift = brush.between(-0.1, 0.1) * length
            ends = [(x + shift - reach * length / 2, y - up), (x + shift + reach * length / 2, y - up)]
            brush.stroke("cloud", brush.line(ends, 0.06), tip)


def _paint_mountains(brush: _Brush, horizon: float) -> None:
    """High peaks with snow, and a low ridge before them."""
    count = max(1, round(1.4 * brush.width))
    for number in range(count):
        x = brush.width * (number + brush.between(0.25, 0.75)) / count
        _paint_peak(brush, x, brush.between(0.2, 0.3), horizon)
    posts = np.linspace(-0.05, brush.width + 0.05, max(4, round(5 * brush.width)))
    ridge = brush.line([(x, horizon - brush.between(0.04, 0.11)) for x in posts], 0.12)
    brush.fill("mountain", _down_to(ridge, horizon + 0.05))


def _paint_peak(brush: _Brush, x: float, top: float, horizon: float) -> None:
    reach = [(horizon - top) * brush.between(0.9, 1.5) for _ in range(2)]
    left = brush.line([(x - reach[0], horizon), (x, top)], 0.09)
    right = brush.line([(x, top), (x + reach[1], horizon)], 0.09)
    brush.fill("mountain", np.concatenate([left, right]))
    line = top + (horizon - top) * brush.between(0.3, 0.45)
    cap = np.concatenate([left[left[:, 1] < line], right[right[:, 1] < line]])
    teeth = np.linspace(cap[-1, 0], cap[0, 0], 7)[1:-1]
    depth = [line + (0.05 if number % 2 else -0.02) * brush.between(0.6, 1.2) for number in range(len(teeth))]
    brush.fill("snow", np.concatenate([cap, np.stack([teeth, depth], 1)]))


def _paint_ground(brush: _Brush, horizon: float) -> None:
    """Woods in dabs before a lake, a beach along it, grass in front."""
    across = np.linspace(-0.05, brush.width + 0.05, max(4, round(4 * brush.width)))
    near = brush.between(0.74, 0.8)  # where the water ends
    brush.fill("grass", _down_to(brush.line([(x, horizon + 0.02) for x in across], 0.04), 1.1))
    shore = brush.line([(x, near + brush.between(-0.04, 0.05)) for x in across], 0.08)
    far = brush.line([(x, horizon + 0.06 + brush.between(0, 0.03)) for x in across], 0.05)
    brush.fill("sand", np.concatenate([far, shore[::-1] + np.array([0, 0.075])]))
    brush.fill("water", np.concatenate([far, shore[::-1]]))
    for start in np.arange(brush.between(-0.2, 0.3), brush.width, 0.7):
        _paint_wood(brush, start + brush.between(-0.05, 0.05), horizon)
    bank = brush.line([(x, 0.92 + brush.between(-0.05, 0.04)) for x in across], 0.1)
    brush.fill("grass", _down_to(bank, 1.1), 0.02)


def _paint_wood(brush: _Brush, start: float, horizon: float) -> None:
    for x in np.arange(start, start + brush.between(0.35, 0.6), 0.025):
        foot, crown = horizon + 0.055 + brush.between(-0.01, 0.015), brush.between(0.05, 0.1)
        brush.stroke("forest", np.array([(x, foot), (x + brush.between(-0.01, 0.01), foot - crown)]), 0.024)


def _down_to(line: Points, y: float) -> Points:
    """The area between a line and a level below it."""
    return np.concatenate([line, [(line[-1, 0], y), (line[0, 0], y)]])
