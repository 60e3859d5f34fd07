"""What all figures share: a palette for any colour blindness, and figures that pyplot does not keep."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib

# Okabe and Ito's palette (jfly.uni-koeln.de/color): distinct with any common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
GREY = "#767676"
DPI = 100  # stages save at this, so a picture's pixels stay pixels
_STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8, "figure.dpi": DPI,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}


styled = matplotlib.rc_context(_STYLE)  # decorates a function that draws


def new_figure(width: float, height: float, **layout):
    """A figure of that many inches, already closed in pyplot, so it is shown once and its memory is freed.

    It goes through pyplot because that is what makes a notebook show figures at all.
    """
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width, height), dpi=DPI, **layout)
    plt.close(figure)
    return figure


def new_axes(rows: int, columns: int, width: float, height: float, **options) -> tuple:
    """A figure with a grid of axes, `width` x `height` inches each: (figure, flat list of axes)."""
    figure = new_figure(width * columns, height * rows, layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


@styled
def message(text: str):
    """A small figure with a sentence on why there is nothing to show."""
    figure = new_figure(6.4, 1.2)
    axes = figure.add_axes((0, 0, 1, 1))  # IPython shows no figure without axes
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, wrap=True)
    return figure


def caption(text: object, most: int = 32) -> str:
    """`shortened` for matplotlib, which takes what stands between dollars for maths."""
    return shortened(text, most).replace("$", r"\$")


def shortened(text: object, most: int = 32) -> str:
    """A name as one line of at most so many letters, of both ends where these fit.

    What cannot be printed (a new line, a control character, half of a surrogate pair) becomes a space.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in str(text))
    if len(line) > most:
        tail = (most - 1) // 3 if most > 20 else 0
        line = f"{line[:most - 1 - tail]}…{line[len(line) - tail:]}"
    return line


def colours() -> Iterator[str]:
    """The palette, without an end."""
    while True:
        yield from COLOURS
