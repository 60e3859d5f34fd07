"""Pictures in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from tesserae.figures.style import DPI, caption, new_figure, styled

WIDEST = 1100  # pixels of a grid
MAX_PIXELS = 560_000  # pixels of the pictures of a grid: more would make files too large for git
LEGIBLE = 96  # pixels a side that a picture is enlarged to, at least
_TITLE, _MARGIN = 16, 8  # pixels a line of text, pixels around the grid


def to_pixels(images: Tensor | np.ndarray | Sequence[Image.Image]) -> np.ndarray:
    """(B,3,H,W) or (B,1,H,W), uint8 or floats in [-1,1], or PIL images of one size -> (B,H,W,3) uint8."""
    if isinstance(images, Sequence):
        return np.stack([np.asarray(picture.convert("RGB")) for picture in images])
    images = torch.as_tensor(images).detach().cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have the shape {tuple(images.shape)}; (B,3,H,W) or (B,1,H,W) is needed")
    if images.dtype != torch.uint8:
        images = images.float().nan_to_num(0).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = rearrange(images, "b c h w -> b h w c").numpy()
    return pixels if pixels.shape[-1] == 3 else repeat(pixels, "b h w 1 -> b h w c", c=3)


def grid_image(images: Tensor | np.ndarray, columns: int, gap: int = 2) -> Image.Image:
    """Pictures as they are, row after row with white gaps, for MLflow's pictures by step."""
    return Image.fromarray(_tile(to_pixels(images), columns, gap, gap))


@styled
def image_grid(images: Tensor | np.ndarray, columns: int, titles: Sequence[str] | None = None,
               row_titles: Sequence[str] | None = None, column_titles: Sequence[str] | None = None,
               scale: float | None = None, smooth: bool = False, title: str = ""):
    """Pictures in rows of `columns`, as a matplotlib figure.

    images: (B,3,H,W) or (B,1,H,W), uint8 or floats in [-1,1]. titles: a line above each picture; row_titles:
    one left of each row; column_titles: one above each column. scale: enlargement; None makes small pictures
    visible and large grids fit. smooth: interpolate when enlarging; else pixels stay squares.
    """
    pixels = to_pixels(images)
    columns = max(1, min(columns, len(pixels)))
    pixels = resize(pixels, scale or _fitting_scale(pixels.shape, columns), smooth)
    height, width = pixels.shape[1:3]
    rows = math.ceil(len(pixels) / columns)
    above = _TITLE if titles is not None else 4
    row_titles = None if row_titles is None else [caption(text) for text in row_titles]
    canvas = _tile(pixels, columns, 4, above)
    left = _text_width(row_titles)
    top = _MARGIN + _TITLE * bool(column_titles) + (_TITLE + 8) * bool(title)
    full_width, full_height = left + canvas.shape[1] + _MARGIN, top + canvas.shape[0] + _MARGIN
    figure = new_figure(full_width / DPI, full_height / DPI)
    axes = figure.add_axes((left / full_width, _MARGIN / full_height, canvas.shape[1] / full_width,
                            canvas.shape[0] / full_height))
    axes.imshow(canvas, interpolation="none", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    axes.set_axis_off()
    text_style = {"fontsize": 8, "clip_on": False}
    middles = [4 + column * (width + 4) + width / 2 for column in range(columns)]
    tops = [above + row * (height + above) for row in range(rows)]
    for position, text in enumerate(titles or ()):
        axes.text(middles[position % columns], tops[position // columns] - 3, caption(text, _letters(width)),
                  ha="center", va="bottom", **text_style)
    for position, text in enumerate(row_titles or ()):
        axes.text(-4, tops[position] + height / 2, text, ha="right", va="center", **text_style)
    for position, text in enumerate(column_titles or ()):
        axes.text(middles[position], 0, caption(text, _letters(width)), ha="center", va="bottom", **text_style)
    if title:
        axes.text(canvas.shape[1] / 2, -_TITLE * bool(column_titles) - 4, title, ha="center", va="bottom",
                  fontsize=10)
    return figure


def reconstruction_grid(originals: Tensor, reconstructions: Tensor, columns: int = 8,
                        difference: bool = False):
    """Pictures above their reconstructions, both (B,3,H,W), uint8 or floats in [-1,1]; pairs of rows.

    difference: a third row shows twice the error around grey.
    """
    first, second = (torch.from_numpy(to_pixels(images)) for images in (originals, reconstructions))
    kinds = {"picture": first, "reconstruction": second}
    if difference:
        kinds["difference x2"] = ((second.int() - first.int()) * 2 + 128).clamp(0, 255).to(torch.uint8)
    return stacked_rows({name: images.numpy() for name, images in kinds.items()}, columns)


def stacked_rows(kinds: Mapping[str, np.ndarray], columns: int):
    """Several pictures of each thing, above each other: {row title: (B,H,W,3) uint8}, `columns` things
    wide."""
    count = len(next(iter(kinds.values())))
    columns = min(columns, count)
    rows, names = [], []
    for start in range(0, count, columns):
        for name, pixels in kinds.items():
            row = pixels[start:start + columns]
            rows.append(np.concatenate([row, np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)]))
            names.append(name)
    return image_grid(rearrange(np.concatenate(rows), "b h w c -> b c h w"), columns, row_titles=names)


def resize(pixels: np.ndarray, scale: float, smooth: bool = False) -> np.ndarray:
    """(B,H,W,3) uint8 -> the same, `scale` times as large; smaller pictures are averaged, not thinned."""
    if scale == 1:
        return pixels
    if not smooth and scale > 1 and float(scale).is_integer():
        return pixels.repeat(int(scale), 1).repeat(int(scale), 2)
    method = Image.Resampling.LANCZOS if smooth or scale < 1 else Image.Resampling.NEAREST
    size = max(1, round(pixels.shape[2] * scale)), max(1, round(pixels.shape[1] * scale))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, method)) for each in pixels])


def _fitting_scale(shape: tuple[int, ...], columns: int) -> float:
    """Of pictures (B,H,W,3): whole numbers enlarge them, other ones shrink."""
    count, height, width, _ = shape
    fits = min(WIDEST / (columns * width), math.sqrt(MAX_PIXELS / (count * height * width)))
    return fits if fits < 1 else max(1, min(math.ceil(LEGIBLE / width), int(fits)))


def _tile(pixels: np.ndarray, columns: int, gap: int, above: int) -> np.ndarray:
    """(B,H,W,3) -> one white-gapped picture, (H',W',3) uint8; `above`: pixels over each row."""
    count, height, width, _ = pixels.shape
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + above) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for position, picture in enumerate(pixels):
        y, x = above + (position // columns) * (height + above), gap + (position % columns) * (width + gap)
        canvas[y:y + height, x:x + width] = picture
    return canvas


def _letters(width: int) -> int:
    """How many letters of 8 points fit, which are some 6 pixels wide."""
    return max(4, int(width / 5.8))


def _text_width(texts: Sequence[str] | None) -> int:
    """Pixels that the longest line of text needs at 8 points."""
    return _MARGIN + round(6.2 * max((len(text) for text in texts or ()), default=0))
