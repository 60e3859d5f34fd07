"""Which window draws which codes of a large map, and which of them can be drawn at once.

A code waits for those of its window that come before it, which reach up to half a window to the right in the
rows above. So the rows follow each other slantwise, and a wave of codes, one in every few rows, is ready at
the same time. Blocks of many codes need not wait for each other's ends: `stagger` lets each begin as soon as what it
reads is drawn before it reads it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

Size = tuple[int, int]  # rows, columns of codes


def local_place(i: int, size: int, window: int, block: int = 1) -> int:
    """Where in its window the code i of an axis of `size` codes lies, 0 <= i < size, window <= size.

    With w = window: i if i <= w/2, w - (size - i) if size - i < w/2, else w/2 (arXiv 2012.09841, sec. 3.3). So the
    window begins at i - local_place(i, ...). Where i is the first of a block of codes, the block is in the middle
    instead, one code below it where it cannot be.
    """
    middle = (window - block + 1) // 2
    if i <= middle:
        return i
    if size - i < window - middle:
        return window - (size - i)
    return middle


@dataclass(frozen=True)
class Form:
    """What blocks must share to go through the network together: places in the window, sizes in codes."""

    row: int
    col: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Block:
    """Codes of a map that one window draws: `form.rows` x `form.cols` from (row, col); the window's first code
    is (top, left)."""

    row: int
    col: int
    form: Form

    @property
    def top(self) -> int:
        return self.row - self.form.row

    @property
    def left(self) -> int:
        return self.col - self.form.col


def blocks_of(shape: Size, window: Size, stride: int = 1, runs: bool = True) -> list[Block]:
    """A map cut into blocks of stride x stride codes, smaller ones at its end, in row-major order.

    With stride = 1 every code has the window of the definition. Neighbours of a row that have the same one, as
    at the left and right edge, make up one block where `runs`: after the first, each needs one step of the network.
    """
    columns = [(j, local_place(j, shape[1], window[1], stride), min(stride, shape[1] - j))
               for j in range(0, shape[1], stride)]  # first code, its place, codes
    if stride == 1 and runs:
        alike = [list(run) for _, run in groupby(columns, key=lambda column: column[0] - column[1])]
        columns = [(*run[0][:2], len(run)) for run in alike]
    return [
        Block(i, j, Form(local_place(i, shape[0], window[0], stride), place, min(stride, shape[0] - i), cols))
        for i in range(0, shape[0], stride) for j, place, cols in columns
    ]


def waves(blocks: Iterable[Block], shape: Size, window: Size) -> list[list[Block]]:
    """Blocks in the order of `blocks_of` -> waves: each block is in the first that comes after all it waits for.

    It waits for the codes that its window knows: those in the rows above, and those to its left.
    """
    level = np.full(shape, -1)  # of the wave that draws a code
    found: list[list[Block]] = []
    for block in blocks:
        rows, cols = slice(block.row, block.row + block.form.rows), slice(block.col, block.col + block.form.cols)
        above = level[block.top:block.row, block.left:block.left + window[1]]
        beside = level[rows, block.left:block.col]
        own = 1 + max(above.max(initial=-1), beside.max(initial=-1))
        level[rows, cols] = own
        if own == len(found):
            found.append([])
        found[own].append(block)
    return found


@dataclass(frozen=True)
class Turn:
    """A block of one map: in which slot of a batch, and at which step its first code is drawn; one step a code."""

    block: Block
    number: int
    slot: int
    step: int


def codes_of(form: Form, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a window of `width` columns goes through for a block, from its first code to its last, in row-major order:
    places in the window (n,), which of them it draws itself, and which of these are the block's, (n,) bool.

    It draws the block and, for the moment, what is to the right of it; what is to the left is known.
    """
    first = form.row * width + form.col
    places = np.arange(first, first + (form.rows - 1) * width + form.cols)
    columns = places % width
    return places, columns >= form.col, (columns >= form.col) & (columns < form.col + form.cols)


def stagger(blocks: Iterable[Block], count: int, shape: Size, window: Size, slots: int) -> list[Turn]:
    """The turns of the blocks of `count` maps, in the order of `blocks_of`, each as early as a batch of so many slots
    and what its window knows allow. What is known from before the block must be drawn before its first step, and a
    code beside it before the step that reads it."""
    when = np.full((count, *shape), -1)  # the step that draws a code
    turns, free = [], []  # free: the step from which on each slot is
    for block in blocks:
        form = block.form
        inside = (slice(block.top, block.top + window[0]), slice(block.left, block.left + window[1]))
        places, drawn, kept = codes_of(form, window[1])
        steps = np.arange(len(places))
        for number in range(count):
            known = when[number][inside].ravel()
            before = known[:places[0]].max(initial=-1)
            beside = (known[places] - steps)[~drawn].max(initial=-1)
            step = 1 + max(before, beside)
            fitting = [slot for slot, since in enumerate(free) if since <= step]
            if fitting:
                slot = max(fitting, key=free.__getitem__)
            elif len(free) < slots:
                slot = len(free)
                free.append(step)
            else:
                slot = min(range(slots), key=free.__getitem__)
                step = free[slot]
            free[slot] = step + len(places)
            rows = slice(block.row, block.row + form.rows), slice(block.col, block.col + form.cols)
            when[number][rows] = (step + steps)[kept].reshape(form.rows, form.cols)
            turns.append(Turn(block, number, slot, step))
    return turns


def alike(blocks: Sequence[Block]) -> dict[Form, list[Block]]:
    """Blocks by form: those of a form have sequences of equal length."""
    groups = defaultdict(list)
    for block in blocks:
        groups[block.form].append(block)
    return dict(groups)
