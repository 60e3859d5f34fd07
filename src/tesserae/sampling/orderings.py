"""Orders in which the codes of a map are sampled; each is a permutation with its inverse (arXiv 2012.09841, 4.4).

An order is a list of positions: the t-th code sampled is that at `order[t]`, counted row by row. On square maps
of a side that is a power of two each is the reference implementation's permuter, index by index; its rules are
carried on to maps of any shape.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tesserae.earlier_models import OLD_ORDERINGS
from tesserae.errors import TesseraeError

ORDERS = ("row", "spiral_in", "spiral_out", "z_curve", "subsample", "alternate")


@lru_cache(maxsize=64)
def ordering(name: str, height: int, width: int) -> Tensor:
    """The positions of a map of height x width in that order: (T,) int64.

    row: as one reads. spiral_in: from the lower right corner up, and on counterclockwise to the middle; spiral_out:
    the same backwards. z_curve: Morton's, quarters of quarters. subsample: the four maps of every other row and
    column one after the other, each divided likewise. alternate: rows alternately to the right and to the left.
    Names that begin with old_ are for models that were trained by older rules, see `earlier_models.upgraded`.
    Raises TesseraeError for a name that is none of these.
    """
    orders = {
        "row": lambda h, w: list(range(h * w)),
        "spiral_in": _spiral,
        "spiral_out": lambda h, w: _spiral(h, w)[::-1],
        "z_curve": lambda h, w: _by_bits(h, w, fine_first=False),
        "subsample": lambda h, w: _by_bits(h, w, fine_first=True),
        "alternate": _alternate,
        **OLD_ORDERINGS,
    }
    if name not in orders:
        raise TesseraeError(f"order = {name!r} is not known: use one of {', '.join(ORDERS)}.")
    return torch.tensor(orders[name](height, width), dtype=torch.int64)


def inverse(order: Tensor) -> Tensor:
    """When each position is sampled: (T,) int64 with inverse[order[t]] = t."""
    times = torch.empty_like(order)
    times[order] = torch.arange(len(order), device=order.device)
    return times


def to_sequences(maps: Tensor, name: str) -> Tensor:
    """Maps (...,h,w) as sequences (...,T) in that order."""
    order = ordering(name, *maps.shape[-2:]).to(maps.device)
    return maps.flatten(-2)[..., order]


def from_sequences(sequences: Tensor, name: str, shape: tuple[int, int]) -> Tensor:
    """Sequences (...,T) in that order as maps (...,h,w); undoes `to_sequences`."""
    times = inverse(ordering(name, *shape)).to(sequences.device)
    return rearrange(sequences[..., times], "... (h w) -> ... h w", h=shape[0])


def _alternate(height: int, width: int) -> list[int]:
    rows = (range(row * width, (row + 1) * width) for row in range(height))
    return [position for row, positions in enumerate(rows)
            for position in (positions if row % 2 == 0 else reversed(positions))]


def _spiral(height: int, width: int) -> list[int]:
    grid = np.arange(height * width).reshape(height, width)
    positions: list[int] = []
    while grid.size:
        positions += grid[::-1, -1].tolist()  # the right column, from below
        grid = np.rot90(grid[:, :-1], -1)  # what is left, turned so that its top row becomes the right column
    return positions


def _by_bits(height: int, width: int, fine_first: bool) -> list[int]:
    """Positions by the alternating bits of row and column, from the lowest (`fine_first`) or from the highest."""
    bits = range(32) if fine_first else range(31, -1, -1)

    def key(position: int) -> list[int]:
        row, column = divmod(position, width)
        return [side >> bit & 1 for bit in bits for side in (row, column)]

    return sorted(range(height * width), key=key)
