"""Figures as PNG files that stay small enough for git, and whose colours stay true."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageFilter

STEP, FINER = 9, 5  # between the levels of a channel; half a step is the largest error of a colour
AREA = 5  # pixels a side of the smallest square whose colour is kept exactly: a class of a mask, a bar, paper


def png_of(figure) -> bytes:
    """A matplotlib figure at 100 dots an inch, or a PIL image in RGB, as a PNG of all its pixels and colours."""
    if isinstance(figure, Image.Image):
        return _png(figure.convert("RGB"))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class named in letters that the font lacks: boxes
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return buffer.getvalue()


def small_png(content: bytes, limit: int) -> bytes:
    """A PNG of fewer than `limit` bytes that shows what the PNG `content` does; that itself where it fits.

    A picture of at most 256 colours gets them as a palette, exactly. Of others, each channel is rounded to a coarser
    grid, by half of `STEP` at most; a colour that fills a square of `AREA` pixels anywhere is kept exactly
    everywhere. Where that does not do, the picture gets fewer pixels.
    """
    if len(content) < limit:
        return content
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    flat = whole.getcolors(256) is not None  # a mask: mixed pixels would be of no class
    content, scale = _coarser(whole, flat), 1.0
    if len(content) < limit and not flat:
        finer = _coarser(whole, flat, FINER)
        return finer if len(finer) < limit else content
    while len(content) >= limit and scale * max(whole.size) > 1:
        scale *= min(0.95, 0.97 * math.sqrt(limit / len(content)))  # bytes go with the number of pixels, about
        size = max(1, round(whole.width * scale)), max(1, round(whole.height * scale))
        content = _coarser(whole.resize(size, Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS), flat)
    return content


def _coarser(picture: Image.Image, flat: bool, step: int = STEP) -> bytes:
    """A PNG with a palette of a `flat` picture's colours, else of colours on a grid that white is on."""
    if flat:
        return _png(picture.quantize(256))  # exact: there are no more colours
    levels = [max(0, 255 - step * round((255 - value) / step)) for value in range(256)]
    pixels, rounded = np.asarray(picture), np.array(picture.point(levels * 3))
    low, high = (np.asarray(picture.filter(kind(AREA))) for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    packed = pixels @ np.array([1 << 16, 1 << 8, 1])
    exact = np.isin(packed, np.unique(packed[(low == high).all(-1)]))
    rounded[exact] = pixels[exact]
    return _png(Image.fromarray(rounded))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()
