"""Curves, counts and scatters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from tesserae.figures.style import COLOURS, GREY, caption, colours, message, new_axes, styled

LOG_FROM = 30  # a panel whose positive values span more than this factor gets a logarithmic axis
HELD_OUT = "val_"
EXTREMES = 12  # bars at either end that are shown of more than twice as many


@styled
def curves(history, panels: Mapping[str, Sequence[str]], smooth: int = 9,
           levels: Mapping[str, Mapping[str, float]] | None = None, columns: int = 3):
    """Training curves: one panel for each title, one line for each column of `history` named there.

    history: DataFrame with `step` (the index where there is no such column); gaps are NaN. smooth: points in
    a running mean drawn over the raw curve, 1 for none; held-out curves (val_*) are shown as measured, with
    dots. levels: {panel title: {label: value}}, dashed lines to compare with. Columns that are missing or
    empty are left out, and so are panels without any.
    """
    steps = history["step"] if "step" in history else history.index.to_series()
    found = {title: [name for name in names if name in history and history[name].notna().any()]
             for title, names in panels.items()}
    found = {title: names for title, names in found.items() if names}
    if not found:
        return message("No curve has been recorded yet.")
    columns = min(columns, len(found))
    figure, axes = new_axes(math.ceil(len(found) / columns), columns, 3.7, 2.6)
    for panel, (title, names) in zip(axes, found.items()):
        for name, colour in zip(names, colours()):
            known = history[name].notna()
            _line(panel, steps[known], history.loc[known, name], name, colour, smooth)
        for (label, value), style in zip((levels or {}).get(title, {}).items(), ("--", ":", "-.") * 9):
            panel.axhline(value, color=GREY, linestyle=style, linewidth=1.2, label=label)
        _scale_axis(panel, np.concatenate([history[name].dropna().to_numpy(float) for name in names]))
        panel.set(title=title, xlabel="step")
        panel.legend()
    for panel in axes[len(found):]:
        panel.set_axis_off()
    return figure


@styled
def overlaid(runs: Mapping[str, object], names: Sequence[str], smooth: int = 9):
    """The same curves of several runs: one panel for each column, one colour for each run.

    runs: {label: history DataFrame with `step`}. Columns that no run has are left out.
    """
    names = [name for name in names if any(name in h and h[name].notna().any() for h in runs.values())]
    if not names:
        return message("None of these runs has recorded a curve.")
    columns = min(3, len(names))
    figure, axes = new_axes(math.ceil(len(names) / columns), columns, 3.9, 2.7)
    for panel, name in zip(axes, names):
        values = []
        for (label, history), colour in zip(runs.items(), colours()):
            if name in history and history[name].notna().any():
                known = history[name].notna()
                _line(panel, history["step"][known], history.loc[known, name], label, colour, smooth, name)
                values.append(history.loc[known, name].to_numpy(float))
        _scale_axis(panel, np.concatenate(values))
        panel.set(title=_words(name), xlabel="step")
    for panel in axes[len(names):]:
        panel.set_axis_off()
    lines = {line.get_label(): line for panel in axes for line in panel.get_lines()
             if not line.get_label().startswith("_")}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 if len(lines) < 7 else 3)
    return figure


@styled
def class_counts(counts: Mapping[str, Mapping[str, int]], title: str = "Pictures of each class"):
    """Bars: {split: {class: number}}, one colour for each split, the splits of a class end to end.

    Of more than 24 classes the 12 with the most pictures and the 12 with the fewest.
    """
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    if not classes:
        return message("There are no classes: every picture counts alike.")
    totals = np.array([sum(split.get(name, 0) for split in counts.values()) for name in classes])
    shown, positions = extremes(-totals)
    if len(shown) < len(classes):
        title += f": the {EXTREMES} largest and the {EXTREMES} smallest of {len(classes):,} classes"
    figure, (axes,) = new_axes(1, 1, 6.4, 0.8 + 0.24 * len(shown))
    start = np.zeros(len(shown))
    for (split, numbers), colour in zip(counts.items(), colours()):
        widths = np.array([numbers.get(classes[number], 0) for number in shown])
        axes.barh(positions, widths, left=start, color=colour, label=split, height=0.75)
        start += widths
    for position, total in zip(positions, start):
        axes.text(total, position, f" {total:.0f}", va="center", fontsize=8)
    axes.set_yticks(positions, [caption(classes[number]) for number in shown])
    axes.invert_yaxis()
    axes.set(title=title, xlabel="pictures", xlim=(0, max(1, start.max()) * 1.08))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False, axis="y")
    if len(counts) > 1:
        figure.legend(loc="outside lower center", ncols=len(counts))
    return figure


def extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which bars a chart shows, and their positions, with a gap: the `EXTREMES` lowest, then the highest.

    All of them, in their own order, where there are at most twice as many.
    """
    values = np.asarray(values)
    if len(values) <= 2 * EXTREMES:
        return np.arange(len(values)), np.arange(len(values))
    order = np.argsort(values, kind="stable")
    shown = np.concatenate([order[:EXTREMES], order[-EXTREMES:]])
    return shown, np.arange(len(shown)) + (np.arange(len(shown)) >= EXTREMES)


@styled
def histogram(values: Sequence[float] | np.ndarray, title: str, xlabel: str, ylabel: str = "pictures",
              bins: int = 40, marks: Mapping[str, float] | None = None):
    """A histogram; marks: {label: value}, dashed vertical lines."""
    values = np.asarray(values, dtype=float)
    if not values.size:
        return message(f"{title}: there is nothing to count.")
    figure, (axes,) = new_axes(1, 1, 6.0, 2.6)
    edges = np.histogram_bin_edges([*values, *(marks or {}).values()], bins)
    axes.hist(values, edges, color=COLOURS[0])
    for (label, value), colour in zip((marks or {}).items(), COLOURS[1:]):
        axes.axvline(value, color=colour, linestyle="--", label=label)
    if marks:
        axes.legend()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure


@styled
def scatter(table, x: str, y: str, group: str | None = None, title: str = ""):
    """A parameter against a metric, one dot a run: rows of a DataFrame, coloured and joined by `group`.

    With several runs at one x, the line goes through their means. A positive x that spans a factor of four or
    more gets an axis of powers of two, as codebook sizes and downsampling factors do.
    """
    known = table[[x, y, *([group] if group else [])]].dropna(subset=[x, y])
    known = known[[isinstance(v, (int, float)) and not isinstance(v, bool) for v in known[x]]]
    if known.empty:
        return message(f"No run has both {_words(x)} and {_words(y)}.")
    known = known.assign(**{x: known[x].astype(float), y: known[y].astype(float)})
    figure, (axes,) = new_axes(1, 1, 5.4, 3.4)
    parts = known.groupby(group, dropna=False) if group else [("", known)]
    for (label, part), colour in zip(parts, colours()):
        means = part.groupby(x)[y].mean()
        axes.plot(means.index, means.values, color=colour, linewidth=1.2, alpha=0.6)
        axes.scatter(part[x], part[y], color=colour, s=28, zorder=3,
                     label=f"{_words(group)} = {label}" if group else None)
    positions = sorted(known[x].unique())
    if positions[0] > 0 and positions[-1] / positions[0] >= 4:
        axes.set_xscale("log", base=2)
    if len(positions) <= 12:
        spaced = _spaced(positions, wide=axes.get_xscale() == "log")
        whole = all(position == round(position) and abs(position) < 1e6 for position in spaced)
        axes.set_xticks(spaced, [f"{position:,.0f}" if whole else f"{position:.3g}" for position in spaced])
        axes.minorticks_off()
    if group:
        axes.legend()
    axes.set(title=title or f"{_words(y)}, by {_words(x)}", xlabel=_words(x), ylabel=_words(y))
    return figure


def _spaced(positions: list[float], wide: bool) -> list[float]:
    """The sorted positions whose labels do not overlap."""
    values = np.log2(positions) if wide else np.asarray(positions)
    room, kept = (values[-1] - values[0]) / 12, [0]
    for number in range(1, len(values)):
        if values[number] - values[kept[-1]] >= room:
            kept.append(number)
    return [positions[number] for number in kept]


def _line(axes, steps, values, label: str, colour: str, smooth: int, name: str | None = None) -> None:
    """One curve: held-out ones as measured, with dots; others as a running mean over a pale raw curve."""
    if (name or label).startswith(HELD_OUT) or len(values) < 2:
        axes.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.3, label=_words(label))
        return
    smooth = min(smooth, len(values) // 3)  # of few points a mean of nine would be one flat line
    if smooth > 1:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        values = values.rolling(smooth, center=True, min_periods=1).mean()  # centred: it lags behind nothing
    axes.plot(steps, values, color=colour, linewidth=1.4, label=_words(label))


def _scale_axis(axes, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() / values.min() > LOG_FROM:
        axes.set_yscale("log")


def _words(name: str) -> str:
    """val_lpips -> lpips, held out; params.vqgan.image.codebook_size -> codebook size."""
    if name.startswith(("params.", "metrics.", "tags.")):
        name = name.rsplit(".", 1)[-1].replace("_", " ").replace("val ", HELD_OUT)
    return f"{name.removeprefix(HELD_OUT)}, held out" if name.startswith(HELD_OUT) else name
