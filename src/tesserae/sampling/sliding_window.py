"""Maps larger than the transformer's, code after code in a window that slides (arXiv 2012.09841, sec. 3.3).

The window is placed so that the code lies in its middle, or further out at the edges of the map. The code is sampled
from those that come before it in the window, and from the window's own condition.

These reach up to half a window to the right in the rows above. So codes that lie slantwise below each other, one in
every few rows, form a wavefront: they do not depend on each other and go through the network as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling import autoregressive
from tesserae.sampling.autoregressive import DEFAULTS, Given, Progress, SampleOptions

Size = tuple[int, int]  # rows, columns of codes
# numbers of samples (n,), tops (n,), lefts (n,) int64 -> prefix tokens (n,P) int64 of those windows
Prefixes = Callable[[Tensor, Tensor, Tensor], Tensor]
Preview = Callable[[Tensor, Tensor], None]  # codes (B,H,W) so far, which of them are sampled (B,H,W) bool

PREVIEWS = 64  # a growing map is shown so often at most


@dataclass(frozen=True)
class Block:
    """The codes that one window samples: rows x cols of the map from (row, col) on; the window begins at (top, left).

    form: what blocks share that go through the network together, their position in the window and their size.
    """

    row: int
    col: int
    rows: int
    cols: int
    top: int
    left: int

    @property
    def form(self) -> tuple[int, int, int, int]:
        return self.row - self.top, self.col - self.left, self.rows, self.cols

    @property
    def area(self) -> tuple[slice, slice]:
        """The block's own codes in the map."""
        return slice(self.row, self.row + self.rows), slice(self.col, self.col + self.cols)


def local_position(i: int, size: int, window: int, block: int = 1) -> int:
    """Where in its window the code i of an axis of `size` codes lies, 0 <= i < size, window <= size.

    With w = window: i if i <= w/2, w - (size - i) if size - i < w/2, else w/2 (arXiv 2012.09841, sec. 3.3). Where i
    is the first of a block of codes, the block is in the middle instead, or one code below it.
    """
    middle = (window - block + 1) // 2
    if i <= middle:
        return i
    if size - i < window - middle:
        return window - (size - i)
    return middle


def blocks_of(shape: Size, window: Size, stride: int = 1) -> list[Block]:
    """A map cut into blocks of stride x stride codes, smaller ones at its end, in row-major order.

    With stride = 1 every code has the window of the definition, and neighbours of a row with the same window, as at
    the left and right edge, form one block.
    """
    columns = [(col, min(stride, shape[1] - col), col - local_position(col, shape[1], window[1], stride))
               for col in range(0, shape[1], stride)]  # first code, codes, the window's first
    if stride == 1:
        runs = [list(run) for _, run in groupby(columns, key=lambda column: column[2])]
        columns = [(run[0][0], len(run), run[0][2]) for run in runs]
    blocks = []
    for row in range(0, shape[0], stride):
        top = row - local_position(row, shape[0], window[0], stride)
        rows = min(stride, shape[0] - row)
        blocks += [Block(row, col, rows, cols, top, left) for col, cols, left in columns]
    return blocks


def wavefronts(blocks: Sequence[Block], shape: Size, window: Size) -> list[list[Block]]:
    """Blocks in row-major order -> wavefronts: each block is in the first that comes after all it depends on.

    These are the codes of its window in the rows above, and those to its left.
    """
    level = np.full(shape, -1)  # number of the wavefront that samples a code
    found: list[list[Block]] = []
    for block in blocks:
        above = level[block.top:block.row, block.left:block.left + window[1]]
        beside = level[block.area[0], block.left:block.col]
        own = 1 + max(above.max(initial=-1), beside.max(initial=-1))
        level[block.area] = own
        if own == len(found):
            found.append([])
        found[own].append(block)
    return found


@torch.no_grad()
def sample_map(model: LatentTransformer, prefixes: Prefixes, shape: Size, window: Size, count: int = 1,
               options: SampleOptions = DEFAULTS, given: Given | None = None, progress: Progress | None = None,
               preview: Preview | None = None) -> Tensor:
    """Sample `count` code maps of any shape: (count,H,W) int64 on the model's device.

    prefixes: the condition of windows. window (h,w): that of the maps that the transformer models, no side larger
    than shape's (H,W). given (count,H,W): codes under the mask are kept, the others are sampled in row-major order,
    each from those before it. The random number of a code belongs to (seed, sample, position in the map).

    options.stride s > 1 samples blocks of s x s codes from one window: about s^2 times fewer passes through the
    network, but codes inside of a block have less context. Codes beside the block that the window needs before their
    time are sampled for the block alone. Raises TesseraeError for what does not fit.
    """
    sampler = MapSampler(model, prefixes, shape, window, count, options, given)
    maps, done, shown = sampler.maps, 0, 0
    sampled = torch.zeros_like(maps, dtype=torch.bool)
    with autoregressive.decoding(model, steps=options.stride > 1):
        for wavefront in sampler.wavefronts:
            done += sampler.sample(wavefront)
            for block in wavefront:
                sampled[:, *block.area] = True
            if progress:
                progress(done, maps.numel())
            if preview and (done == maps.numel() or (done - shown) * PREVIEWS >= maps.numel()):
                shown = done
                preview(maps.clone(), sampled.clone())
    return maps


@dataclass(frozen=True)
class Batch:
    """Windows whose blocks are of one form and go through the network together: n of them.

    prefix (n,P) int64. positions (n,h w): of the windows' codes in the flat maps. start, end: of the block in the
    window, in row-major order. own: the block's codes in the window.
    """

    prefix: Tensor
    positions: Tensor
    start: int
    end: int
    own: list[int]


class Windows:
    """Maps (N,H,W) and the windows in them; `flat` is a view of the maps, (N H W,)."""

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
                 first: int = 0) -> None:
        self.model, self.prefixes, self.window, self.first = model, prefixes, window, first
        self.count, self.height, self.width = maps.shape
        self.flat = maps.view(-1)
        rows, cols = (torch.arange(side, device=maps.device) for side in window)
        self.inside = (rows[:, None] * self.width + cols).flatten()  # (h w,) from the first code of a window on

    def batches(self, blocks: Sequence[Block], batch_size: int) -> Iterator[Batch]:
        """These blocks in every map, those of one form together, at most `batch_size` windows at once."""
        corners = defaultdict(list)
        for block in blocks:
            corners[block.form] += [(block.top, block.left, number) for number in range(self.count)]
        for (row, col, rows, cols), windows in corners.items():
            start = row * self.window[1] + col
            end = start + (rows - 1) * self.window[1] + cols
            own = [position for position in range(start, end) if col <= position % self.window[1] < col + cols]
            for begin in range(0, len(windows), batch_size):
                chosen = torch.tensor(windows[begin:begin + batch_size], device=self.flat.device)
                tops, lefts, numbers = chosen.unbind(1)
                prefix = self.prefixes(numbers + self.first, tops, lefts)
                if len(prefix) != len(chosen):
                    raise TesseraeError(f"prefixes were requested for {len(chosen)} windows and came as tokens of "
                                        f"the shape {tuple(prefix.shape)}: a row for each window is needed.")
                autoregressive.check_range("prefix tokens", prefix, self.model.config.prefix_vocab)
                firsts = (numbers * self.height + tops) * self.width + lefts  # of the windows in the flat maps
                yield Batch(prefix, firsts[:, None] + self.inside, start, end, own)


class MapSampler(Windows):
    """Samples maps wavefront by wavefront; `sample_map` says how. maps: (count,H,W), 0 where nothing is sampled yet.

    Raises TesseraeError for what does not fit.
    """

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, shape: Size, window: Size, count: int = 1,
                 options: SampleOptions = DEFAULTS, given: Given | None = None) -> None:
        options.check()
        check_window(model, shape, window)
        if not 1 <= options.stride <= min(window):
            raise TesseraeError(f"a stride of {options.stride} does not fit a window of {window[0]}x{window[1]} "
                                f"codes: take 1 to {min(window)}.")
        autoregressive.check_given(model, given, (count, *shape))
        self.maps = torch.zeros(count, *shape, dtype=torch.int64, device=model.device)
        super().__init__(model, prefixes, self.maps, window, options.first)
        self.options, self.wavefronts = options, wavefronts(blocks_of(shape, window, options.stride), shape, window)
        numbers = range(options.first, options.first + count)
        noise = autoregressive.uniforms(options.seed, numbers, self.maps[0].numel())
        self.noise = noise.flatten().to(model.device)
        self.given = None if given is None else tuple(part.flatten().to(model.device) for part in given)

    @torch.no_grad()
    def sample(self, wavefront: Sequence[Block]) -> int:
        """Sample the blocks of a wavefront in every map; returns how many codes these are."""
        return sum(self._sample(batch) for batch in self.batches(wavefront, self.options.batch_size))

    def _sample(self, batch: Batch) -> int:
        """Sample each block in its window, from the codes above the block and to its left."""
        positions = batch.positions[:, :batch.end]
        codes = self.flat[positions]  # (n,end), on which the windows work
        inside = torch.arange(batch.end, device=codes.device)
        known = ((inside < batch.start) | (inside % self.window[1] < batch.own[0] % self.window[1])).expand_as(codes)
        if self.given is not None:
            mask, indices = (part[positions] for part in self.given)
            codes, known = torch.where(mask, indices, codes), known | mask
        for _ in autoregressive.decode(self.model, batch.prefix, codes, known, self.noise[positions], self.options):
            pass
        self.flat[batch.positions[:, batch.own]] = codes[:, batch.own]
        return len(codes) * len(batch.own)


def check_window(model: LatentTransformer, shape: Sequence[int], window: Size) -> None:
    """Raise TesseraeError where maps of this shape cannot be sampled in that window of the transformer."""
    c = model.config
    if c.order != "row":
        raise TesseraeError(f"this transformer samples codes in the order '{c.order}'; a sliding window needs the "
                            "codes above and to the left, so train one with the order 'row'.")
    if min(window) < 1 or window[0] * window[1] != c.max_tokens or tuple(c.window) not in ((), tuple(window)):
        own = "x".join(map(str, c.window)) if c.window else c.max_tokens
        raise TesseraeError(f"a window of {window[0]}x{window[1]} codes was requested; this transformer models maps "
                            f"of {own} codes: give the height and width that it was trained on.")
    if len(shape) != 2 or shape[0] < window[0] or shape[1] < window[1]:
        raise TesseraeError(f"a map of {'x'.join(map(str, shape))} codes is smaller than the window of "
                            f"{window[0]}x{window[1]}: take a larger map, or sample it without a window.")
