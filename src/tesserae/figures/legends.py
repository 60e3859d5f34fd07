"""Legends of colours, below a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from tesserae.figures.style import DPI, styled

_LINE, _PATCH, _GAP, _MARGIN = 15, 10, 14, 8  # pixels
_FONT = 8  # points


@styled
def with_legend(figure, entries: Sequence[tuple[str, tuple[int, int, int] | None]]):
    """Add a legend below the figure: a patch of each colour (0 to 255) and its text; colour None: text alone.

    Without entries the figure stays as it is. Entries are in columns of equal width, from left to right.
    """
    if not entries:
        return figure
    width, height = (side * DPI for side in figure.get_size_inches())
    column = _PATCH + 4 + max(_text_width(text) for text, _ in entries) + _GAP
    columns = max(1, min(len(entries), int((width - 2 * _MARGIN) / column)))
    below = _LINE * -(-len(entries) // columns) + _MARGIN
    _raise(figure, width, height, below)
    axes = figure.add_axes((0, 0, 1, below / (height + below)))
    axes.set(xlim=(0, width), ylim=(below, 0))
    axes.set_axis_off()
    for position, (text, colour) in enumerate(entries):
        x, y = _MARGIN + position % columns * column, position // columns * _LINE + 2
        if colour is not None:
            face = tuple(value / 255 for value in colour)
            axes.add_patch(Rectangle((x, y), _PATCH, _PATCH, facecolor=face, edgecolor="#767676", linewidth=0.5))
        axes.text(x + (_PATCH + 4 if colour is not None else 0), y + _PATCH / 2, text, va="center", fontsize=_FONT)
    return figure


def _text_width(text: str) -> float:
    """Pixels."""
    return TextPath((0, 0), text, size=_FONT).get_extents().width * DPI / 72


def _raise(figure, width: float, height: float, below: float) -> None:
    """Give the figure that many pixels more at its foot; what is on it keeps its size."""
    whole = height + below
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((x, (y * height + below) / whole))
    boxes = [axes.get_position() for axes in figure.axes]
    figure.set_size_inches(width / DPI, whole / DPI)
    for axes, box in zip(figure.axes, boxes):
        axes.set_position((box.x0, (box.y0 * height + below) / whole, box.width, box.height * height / whole))
