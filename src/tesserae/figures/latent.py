"""Figures of the second stage: numbers by position and by class, distances, pictures of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from tesserae.figures.charts import EXTREMES, extremes
from tesserae.figures.style import COLOURS, GREY, caption, message, new_axes, new_figure, styled


@styled
def position_map(values, title: str, label: str):
    """One number for each position of the code map, (h,w), as colours, with the numbers in them if they fit."""
    values = np.asarray(values, dtype=float)
    height, width = values.shape
    figure, (axes,) = new_axes(1, 1, 4.6, 3.8)
    shown = axes.imshow(values, cmap="cividis")
    middle = (values.min() + values.max()) / 2
    if max(height, width) <= 12:
        for y, x in np.ndindex(height, width):
            colour = "white" if values[y, x] < middle else "black"
            axes.text(x, y, f"{values[y, x]:.1f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(shown, ax=axes, label=label)
    axes.grid(visible=False)
    axes.set(title=title, xlabel="column", ylabel="row")
    return figure


@styled
def paired_bars(rows: Sequence[str], values: Mapping[str, Sequence[float]], title: str, xlabel: str,
                marks: Mapping[str, float] | None = None):
    """For each row one bar of each kind, {kind: values}; marks: {label: value}, dashed vertical lines.

    Of more than 24 rows those 12 and 12 are shown whose last kind exceeds the first by the most and by the least (of
    one kind: the highest and the lowest), among those that have numbers.
    """
    if not len(rows):
        return message(f"{title}: there is nothing to compare.")
    rows, values, positions, of = _extreme_rows(rows, values)
    figure, (axes,) = new_axes(1, 1, 6.4, 1.0 + 0.17 * len(rows) * (len(values) + 0.6))
    thickness = 0.8 / len(values)
    for number, ((kind, numbers), colour) in enumerate(zip(values.items(), COLOURS)):
        shift = (number - (len(values) - 1) / 2) * thickness
        axes.barh(positions + shift, numbers, thickness, color=colour, label=kind)
    for (label, value), style in zip((marks or {}).items(), ("--", ":", "-.") * 3):
        axes.axvline(value, color=GREY, linestyle=style, label=label)
    axes.set_yticks(positions, [caption(row) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(title=title + of, xlabel=xlabel)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _extreme_rows(rows: Sequence[str], values: Mapping[str, Sequence[float]]):
    """The rows that are shown, their values and positions, and a note on the others."""
    numbers = {kind: np.asarray(each, dtype=float) for kind, each in values.items()}
    first, *_, last = [0.0, *numbers.values()] if len(numbers) == 1 else numbers.values()
    ranked = last - first
    if len(rows) > 2 * EXTREMES:
        known = np.flatnonzero(np.isfinite(ranked))
        rows, ranked = [rows[number] for number in known], ranked[known]
        numbers = {kind: each[known] for kind, each in numbers.items()}
    shown, positions = extremes(-ranked)
    most, least, what = ("longest", "shortest", "gaps") if len(numbers) > 1 else ("highest", "lowest", "values")
    of = ""
    if len(shown) < len(rows):
        of = f": the {EXTREMES} {most} and the {EXTREMES} {least} {what} of {len(rows):,}"
    return [rows[number] for number in shown], {kind: each[shown] for kind, each in numbers.items()}, positions, of


@styled
def histograms(values: Mapping[str, Sequence[float]], title: str, xlabel: str, bins: int = 30,
            marks: Mapping[str, float] | None = None):
    """Histograms of several sets of numbers, as fractions of each set; marks as above."""
    kinds = {kind: np.asarray(numbers, dtype=float) for kind, numbers in values.items() if len(numbers)}
    if not kinds:
        return message(f"{title}: there is nothing to count.")
    figure, (axes,) = new_axes(1, 1, 6.4, 2.8)
    edges = np.histogram_bin_edges(np.concatenate(list(kinds.values())), bins)
    for (kind, numbers), colour in zip(kinds.items(), COLOURS):
        weights = np.full(len(numbers), 1 / len(numbers))
        axes.hist(numbers, edges, weights=weights, histtype="stepfilled", alpha=0.25, color=colour)
        axes.hist(numbers, edges, weights=weights, histtype="step", linewidth=1.5, color=colour, label=kind)
    for (label, value), style in zip((marks or {}).items(), ("--", ":", "-.") * 3):
        axes.axvline(value, color=GREY, linestyle=style, label=label)
    axes.set(title=title, xlabel=xlabel, ylabel="fraction")
    axes.legend()
    return figure


@styled
def stacked(pictures: Mapping[str, Image.Image], title: str = ""):
    """Pictures of one width under each other, each under its own line of text."""
    if not pictures:
        return message("No picture has been recorded yet.")
    line, gap = 18, 6
    scale = max(1, 760 // max(picture.width for picture in pictures.values()))
    pictures = {text: picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
                for text, picture in pictures.items()}
    width = max(picture.width for picture in pictures.values())
    height = sum(picture.height + line + gap for picture in pictures.values()) + (line if title else 0)
    figure = new_figure(width / 100, height / 100)
    top = line if title else 0
    for text, picture in pictures.items():
        top += line
        bottom = 1 - (top + picture.height) / height
        axes = figure.add_axes((0, bottom, picture.width / width, picture.height / height))
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        figure.text(4 / width, 1 - (top - 4) / height, caption(text, 120), fontsize=9, va="bottom")
        top += picture.height + gap
    if title:
        figure.text(0.5, 1 - 2 / height, title, fontsize=10, ha="center", va="top")
    return figure
