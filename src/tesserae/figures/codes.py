"""A codebook in pictures: how evenly it is used, what its codes look like, where and in which pairs they occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tesserae.figures.grids import image_grid, resize, stacked_rows, to_pixels
from tesserae.figures.style import COLOURS, DPI, GREY, message, new_axes, new_figure, styled

_TILE = 48  # pixels a side of a code's picture in `code_patches`, about
_FRAME = (255, 255, 255)


@styled
def usage(frequencies: Mapping[str, np.ndarray]):
    """How evenly codes are used. Left: frequency by rank; right: a histogram of the frequencies.

    frequencies: {split: fraction of the positions that each code has (K,)}. Each split has its own ranks, so compare
    the shapes of the curves.
    """
    figure, (ranks, counts) = new_axes(1, 2, 4.8, 3.0)
    size = len(next(iter(frequencies.values())))
    relative = {split: np.asarray(each)[np.asarray(each) > 0] * size for split, each in frequencies.items()}
    everything = np.concatenate([[0.1, 10], *relative.values()])
    edges = np.geomspace(everything.min(), everything.max(), 30)
    for number, ((split, fraction), colour) in enumerate(zip(frequencies.items(), COLOURS)):
        fraction = np.sort(np.asarray(fraction, dtype=float))[::-1]
        used = fraction[fraction > 0]
        ranks.plot(np.arange(1, len(used) + 1), used, color=colour, label=split)
        counts.hist(relative[split], edges, color=colour, histtype="step", linewidth=1.5,
                    label=f"{split}: {size - len(used)} never used")
        counts.hist(relative[split], edges, color=colour, histtype="stepfilled", alpha=0.2)
        ranks.axvline(len(used), color=colour, linestyle=":", linewidth=1)
        ranks.annotate(f"{len(used)} used ", (len(used), 0.96 - 0.08 * number), color=colour, ha="right",
                       fontsize=8, xycoords=("data", "axes fraction"))
    ranks.axhline(1 / size, color=GREY, linestyle="--", label="even use, 1/K")
    ranks.set(title="Codes from the commonest to the rarest", xlabel="rank", ylabel="fraction of positions",
              yscale="log", xlim=(0, size * 1.03))
    ranks.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    ranks.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_percent))
    ranks.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    ranks.legend(loc="lower left")
    counts.axvline(1, color=GREY, linestyle="--", label="even use")
    counts.set(title="How often codes are used", xlabel="times even use", ylabel="codes", xscale="log")
    counts.margins(y=0.35)  # room for the legend
    counts.legend(loc="upper left")
    return figure


def code_patches(alone: Tensor, context: Tensor, patches: Tensor, names: Sequence[str], factor: int,
               halves: int = 2):
    """What codes look like, one row a code: alone, decoded in context, and real patches that fit it best.

    alone, context (C,3,s,s), patches (C,P,3,s,s), in [-1,1] or uint8; s a multiple of `factor`, the pixels a
    side of one code, which a thin frame marks in the middle. names: a line for each code. The rows are laid
    out in `halves` columns.
    """
    count, width = len(alone), 2 + patches.shape[1]
    tiles = torch.cat([_bytes(alone)[:, None], _bytes(context)[:, None],
                       _bytes(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])], dim=1)  # (C,2+P,3,s,s)
    scale = max(1, round(_TILE / tiles.shape[-1]))
    framed = np.stack([_framed(row, factor, scale) for row in tiles])  # (C,2+P,S,S,3)
    rows = -(-count // halves)
    strip = np.full((halves * rows, *framed.shape[1:]), 255, dtype=np.uint8)
    strip[:count] = framed
    laid = rearrange(strip, "(halves rows) w s1 s2 c -> rows halves w s1 s2 c", halves=halves)
    names = [*names, *[""] * (halves * rows - count)]
    return _strips(laid, names, ["alone", "context", *["real"] * (width - 2)])


def _bytes(images: Tensor) -> Tensor:
    return rearrange(torch.from_numpy(to_pixels(images)), "b h w c -> b c h w")


def _framed(row: Tensor, factor: int, scale: int) -> np.ndarray:
    """(P,3,s,s) uint8 -> (P,S,S,3), enlarged, with a frame around the middle code."""
    pixels = resize(to_pixels(row), scale).copy()
    start = (row.shape[-1] - factor) // 2 * scale
    if start:
        _frame(pixels, start, start, factor * scale, factor * scale)
    return pixels


@styled
def _strips(laid: np.ndarray, names: list[str], heads: list[str]):
    """(rows,halves,w,S,S,3) -> figure, with a name left of each strip and heads above the columns."""
    rows, halves, width, side = laid.shape[:4]
    gap, text, top = 3, 92, 22
    strip = text + width * (side + gap) + 12
    canvas = np.full((top + rows * (side + gap), halves * strip, 3), 255, dtype=np.uint8)
    for row in range(rows):
        for half in range(halves):
            for position in range(width):
                y, x = top + row * (side + gap), half * strip + text + position * (side + gap)
                canvas[y:y + side, x:x + side] = laid[row, half, position]
    figure = new_figure(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="none", aspect="auto", extent=(0, canvas.shape[1], canvas.shape[0], 0))
    axes.set_axis_off()
    for half in range(halves):
        for row in range(rows):
            axes.text(half * strip + text - 5, top + row * (side + gap) + side / 2, names[half * rows + row],
                      ha="right", va="center", fontsize=7)
        for position, head in enumerate(heads):
            if position < 2 or heads[position - 1] != head:
                axes.text(half * strip + text + position * (side + gap) + side / 2, top - 5, head, ha="center",
                          fontsize=7, color=GREY)
    return figure


def occurrence(maps: Tensor, names: Sequence[str], columns: int = 12):
    """Where in a picture codes occur: heat maps (C,h,w) of fractions, each scaled to its own maximum."""
    peaks = maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    coloured = matplotlib.colormaps["cividis"]((maps / peaks).numpy())[..., :3]  # (C,h,w,3)
    images = torch.from_numpy((coloured * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
    titles = [f"{name}: {peak:.0%}" if peak >= 0.1 else f"{name}: {peak:.1%}"
              for name, peak in zip(names, peaks.flatten().tolist())]
    return image_grid(images, columns, titles=titles, scale=max(1, round(84 / maps.shape[-1])))


def code_maps(images: Tensor, indices: Tensor, palette: np.ndarray, below: Mapping[str, Tensor] | None = None,
              columns: int = 8):
    """Pictures above their codes, each code a colour, and above further rows.

    images (B,3,H,W); indices (B,h,w); palette (K,3) uint8; below: {row title: (B,3,H,W)}.
    """
    factor = images.shape[-1] // indices.shape[-1]
    coloured = resize(palette[indices.numpy()], factor)  # (B,H,W,3)
    kinds = {"picture": to_pixels(images), "codes": coloured}
    kinds |= {name: to_pixels(others) for name, others in (below or {}).items()}
    return stacked_rows(kinds, columns)


@styled
def projection(points: np.ndarray, counts: np.ndarray, explained: float, tiles: Tensor | None = None,
               most: int = 400):
    """The codebook's first two principal components: dots coloured by use, and the codes' pictures beside.

    points (K,2); counts (K,); explained: fraction of the variance in the plane; tiles (K,3,s,s): a picture of
    each code. Of the used codes at most the `most` commonest are shown as pictures.
    """
    figure, panels = new_axes(1, 1 if tiles is None else 2, 5.0, 4.4)
    used = counts > 0
    panels[0].scatter(*points[~used].T, facecolors="none", edgecolors=GREY, s=16, linewidths=0.8,
                      label=f"{int((~used).sum())} never used")
    scale = matplotlib.colors.LogNorm(max(1, counts[used].min(initial=counts.max())), max(2, counts.max()))
    dots = panels[0].scatter(*points[used].T, c=counts[used], cmap="viridis", norm=scale, s=18)
    bar = figure.colorbar(dots, ax=panels[0], shrink=0.8, label="times used")
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.ax.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(10, False, (1.5, 0.6)))
    panels[0].set(title=f"Codes on their two main axes ({explained:.0%} of the variance)",
                  xlabel="first axis", ylabel="second axis")
    if (~used).any():
        panels[0].legend(loc="best")
    if tiles is not None:
        _scatter_tiles(panels[1], points, counts, to_pixels(tiles), most)
        panels[1].set(title="The same codes, as the mean of their patches", xlabel="first axis")
    return figure


def _scatter_tiles(axes, points: np.ndarray, counts: np.ndarray, tiles: np.ndarray, most: int) -> None:
    low, high = points.min(0), points.max(0)
    reach = np.maximum(high - low, 1e-9)
    half = reach * 0.016
    for code in np.argsort(-counts, kind="stable")[:min(most, (counts > 0).sum())][::-1]:
        x, y = points[code]
        axes.imshow(tiles[code], extent=(x - half[0], x + half[0], y - half[1], y + half[1]), aspect="auto",
                    interpolation="bilinear", zorder=2)
    axes.set(xlim=(low[0] - reach[0] * 0.04, high[0] + reach[0] * 0.04),
             ylim=(low[1] - reach[1] * 0.04, high[1] + reach[1] * 0.04))


def pairs(patches: Tensor, titles: Sequence[str], factor: int, direction: str):
    """Pairs of codes that often meet, one column a pair, in real pictures.

    patches (P,E,3,s,s): E positions of each pair, the first code in the middle; a frame marks both codes, the
    second to the "right" or "below". factor: pixels a side of a code.
    """
    if not len(patches):
        return message("No two codes stand side by side more often than by chance.")
    scale, start = max(1, round(80 / patches.shape[-1])), (patches.shape[-1] - factor) // 2
    pixels = resize(to_pixels(patches.transpose(0, 1).flatten(0, 1)), scale).copy()  # (E P,S,S,3)
    wide, high = (2, 1) if direction == "right" else (1, 2)
    _frame(pixels, start * scale, start * scale, high * factor * scale, wide * factor * scale)
    images = rearrange(pixels, "b h w c -> b c h w")
    return image_grid(images, len(patches), column_titles=titles, scale=1)


def _frame(pixels: np.ndarray, top: int, left: int, height: int, width: int) -> None:
    """Draw a thin white frame around a part of pictures (B,S,S,3), outside it where there is room."""
    side = pixels.shape[1] - 1
    above, below = max(0, top - 1), min(side, top + height)
    before, behind = max(0, left - 1), min(side, left + width)
    for y in (above, below):
        pixels[:, y, before:behind + 1] = _FRAME
    for x in (before, behind):
        pixels[:, above:below + 1, x] = _FRAME


def _percent(value: float, _: int) -> str:
    return f"{value * 100:.2g}%"


@styled
def pair_matrix(matrices: Mapping[str, np.ndarray], names: Sequence[str]):
    """Pointwise mutual information of the commonest codes in bits: {title: (C,C)}, rows first; NaN: never
    side by side."""
    figure, panels = new_axes(1, len(matrices), 4.6, 4.3)
    limit = max(1.0, *(np.abs(matrix[np.isfinite(matrix)]).max(initial=0) for matrix in matrices.values()))
    palette = matplotlib.colormaps["PuOr_r"].with_extremes(bad="#dddddd")
    for axes, (title, matrix) in zip(panels, matrices.items()):
        shown = axes.imshow(matrix, cmap=palette, vmin=-limit, vmax=limit)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
        axes.set(title=title, ylabel="code", xlabel="its neighbour")
        axes.grid(visible=False)
    figure.colorbar(shown, ax=panels, shrink=0.8, label="bits; grey: never side by side")
    return figure
