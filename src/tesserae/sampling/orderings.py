"""Orders in which the codes of a map are drawn; each is a permutation with its inverse (arXiv 2012.09841, 4.4).

An order is a list of places: the t-th code drawn is that at `order[t]`, counted row by row.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor

from tesserae.errors import TesseraeError

ORDERS = ("row", "spiral_in", "spiral_out", "z_curve", "subsample", "alternate")


@lru_cache(maxsize=64)
def ordering(name: str, height: int, width: int) -> Tensor:
    """The places of a map of height x width in that order: (T,) int64.

    row: as one reads. spiral_in: from the border inwards, clockwise; spiral_out: the same backwards. z_curve:
    Morton's, quarters of quarters. subsample: every other row and column first, then those between, again and
    again: coarse before fine. alternate: rows to the right and to the left in turn.
    Raises TesseraeError for a name that is none of these.
    """
    if name not in ORDERS:
        raise TesseraeError(f"order = {name!r} is not known: use one of {', '.join(ORDERS)}.")
    places = {"row": _row, "spiral_in": _spiral, "spiral_out": lambda h, w: _spiral(h, w)[::-1], "z_curve": _morton,
              "subsample": _subsample, "alternate": _alternate}[name](height, width)
    return torch.tensor(places, dtype=torch.int64)


def inverse(order: Tensor) -> Tensor:
    """When each place has its turn: (T,) int64 with inverse[order[t]] = t."""
    turns = torch.empty_like(order)
    turns[order] = torch.arange(len(order), device=order.device)
    return turns


def in_order(maps: Tensor, name: str) -> Tensor:
    """Maps (...,h,w) as sequences (...,T) in that order."""
    order = ordering(name, *maps.shape[-2:]).to(maps.device)
    return maps.flatten(-2)[..., order]


def as_maps(sequences: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    """Sequences (...,T) in that order as maps (...,h,w); undoes `in_order`."""
    turns = inverse(ordering(name, *shape)).to(sequences.device)
    return rearrange(sequences[..., turns], "... (h w) -> ... h w", h=shape[0])


def _row(height: int, width: int) -> list[int]:
    return list(range(height * width))


def _alternate(height: int, width: int) -> list[int]:
    rows = (range(row * width, (row + 1) * width) for row in range(height))
    return [place for row, places in enumerate(rows) for place in (places if row % 2 == 0 else reversed(places))]


def _spiral(height: int, width: int) -> list[int]:
    grid = [[row * width + column for column in range(width)] for row in range(height)]
    places: list[int] = []
    while grid:
        places += grid.pop(0)
        grid = [list(side) for side in zip(*grid)][::-1]  # what is left, turned to the left
    return places


def _morton(height: int, width: int) -> list[int]:
    def key(place: int) -> int:
        row, column = divmod(place, width)
        return sum((row >> bit & 1) << 2 * bit + 1 | (column >> bit & 1) << 2 * bit for bit in range(32))

    return sorted(range(height * width), key=key)


def _subsample(height: int, width: int) -> list[int]:
    """By the coarsest grid of steps 2^n that a place lies on, then, of one grid, as one reads."""
    def fineness(place: int) -> int:
        row, column = divmod(place, width)
        step = 1 << max(height, width).bit_length()
        return next(level for level in range(64) if not row % (step >> level) and not column % (step >> level))

    return sorted(range(height * width), key=lambda place: (fineness(place), place))
