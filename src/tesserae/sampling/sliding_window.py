"""Maps larger than the transformer's, code after code in a window that slides (arXiv 2012.09841, sec. 3.3).

The window is placed so that the code lies in its middle, or further out at the edges of the map. The code is sampled
from those that come before it in the window, and from the window's own condition.

These reach up to half a window to the right in the rows above. So codes that lie slantwise below each other, one in
every few rows, form a wavefront: they do not depend on each other and go through the network as one batch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.kv_cache import KVCache
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.autoregressive import (
    DEFAULTS,
    Given,
    Progress,
    SampleOptions,
    check_given,
    evaluating,
    uniforms,
)

Size = tuple[int, int]  # rows, columns of codes
# numbers of samples (n,), tops (n,), lefts (n,) int64 -> prefix tokens (n,P) int64 of those windows
Prefixes = Callable[[Tensor, Tensor, Tensor], Tensor]
Preview = Callable[[Tensor, Tensor], None]  # codes (B,H,W) so far, which of them are sampled (B,H,W) bool

PREVIEWS = 64  # a growing map is shown so often at most
CACHED_BYTES = 2**30  # of keys and values that windows at the upper and lower edge keep from row to row


@dataclass(frozen=True)
class Form:
    """What blocks share that go through the network together: (row, col) of their first code in the window, size."""

    row: int
    col: int
    rows: int
    cols: int


@dataclass(frozen=True)
class Block:
    """The codes that one window samples: `form.rows` x `form.cols` of the map from (row, col) on."""

    row: int
    col: int
    form: Form

    @property
    def window(self) -> tuple[int, int]:
        """(top, left): the first code of the window."""
        return self.row - self.form.row, self.col - self.form.col


def local_position(i: int, size: int, window: int, block: int = 1) -> int:
    """Where in its window the code i of an axis of `size` codes lies, 0 <= i < size, window <= size.

    With w = window: i if i <= w/2, w - (size - i) if size - i < w/2, else w/2 (arXiv 2012.09841, sec. 3.3). So the
    window begins at i - local_position(i, ...). Where i is the first of a block of codes, the block is in the middle
    instead, one code below it where it cannot be.
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
    the left and right edge, form one block: after its first code, each needs one step of the network.
    """
    columns = [(j, local_position(j, shape[1], window[1], stride), min(stride, shape[1] - j))
               for j in range(0, shape[1], stride)]  # first code, its position in the window, codes
    if stride == 1:
        runs = [list(run) for _, run in groupby(columns, key=lambda column: column[0] - column[1])]
        columns = [(*run[0][:2], len(run)) for run in runs]
    blocks = []
    for i in range(0, shape[0], stride):
        row, rows = local_position(i, shape[0], window[0], stride), min(stride, shape[0] - i)
        blocks += [Block(i, j, Form(row, col, rows, cols)) for j, col, cols in columns]
    return blocks


def wavefronts(blocks: Sequence[Block], shape: Size, window: Size) -> list[list[Block]]:
    """Blocks in row-major order -> wavefronts: each block is in the first that comes after all it depends on.

    These are the codes of its window in the rows above, and those to its left.
    """
    level = np.full(shape, -1)  # number of the wavefront that samples a code
    found: list[list[Block]] = []
    for block in blocks:
        top, left = block.window
        rows, cols = slice(block.row, block.row + block.form.rows), slice(block.col, block.col + block.form.cols)
        above = level[top:block.row, left:left + window[1]]
        beside = level[rows, left:block.col]
        own = 1 + max(above.max(initial=-1), beside.max(initial=-1))
        level[rows, cols] = own
        if own == len(found):
            found.append([])
        found[own].append(block)
    return found


@torch.no_grad()
def sample_map(model: LatentTransformer, prefixes: Prefixes, shape: Size, window: Size, count: int = 1,
               options: SampleOptions = DEFAULTS, given: Given | None = None, progress: Progress | None = None,
               preview: Preview | None = None) -> Tensor:
    """Sample `count` code maps of any shape: (count,H,W) int64 on the model's device.

    prefixes: the condition of windows. shape (H,W), no side smaller than the window's (h,w), which is the shape of
    the maps that the transformer models. given (count,H,W): codes under the mask are kept, the others are sampled in
    row-major order, each from those before it.

    The random number of a code belongs to (seed, sample, position in the map). options.stride s > 1 samples blocks of
    s x s codes from one window: about s^2 times fewer passes through the network, but codes inside of a block have
    less context. Codes beside the block that the window needs before their time are sampled for the block alone.
    options.wavefront = False samples block after block, for comparison: the codes are the same up to the rounding of
    the network's sums. Raises TesseraeError for what does not fit.
    """
    sampler = MapSampler(model, prefixes, shape, window, count, options, given)
    previews, done = _Previews(sampler.maps, preview), 0
    with evaluating(model, steps=options.stride > 1):
        for wavefront in sampler.wavefronts:
            done += sampler.sample(wavefront)
            if progress:
                progress(done, sampler.maps.numel())
            previews.add(wavefront)
    return sampler.maps


@torch.no_grad()
def window_nll(model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
               batch_size: int = 64) -> Tensor:
    """-log p of each code of given maps, each in the window that would have sampled it: (N,H,W) -> (N,H,W) nats.

    maps int64; prefixes and window as for `sample_map`, map n is sample n. The map's own codes are the context
    (teacher forcing). So maps that were sampled with different strides are compared under one definition. Raises
    TesseraeError for what does not fit.
    """
    SampleOptions(batch_size=batch_size).check()
    _check(model, maps.shape[1:], window)
    size = model.config.codebook_size
    if maps.numel() and not 0 <= int(maps.min()) <= int(maps.max()) < size:
        raise TesseraeError(f"the maps' codes run from {int(maps.min())} to {int(maps.max())}; this transformer "
                            f"knows 0 to {size - 1}.")
    windows = _Windows(model, prefixes, maps.to(model.device).contiguous(), window)
    nll = torch.empty(windows.flat.shape, device=model.device)
    with evaluating(model):
        for group in _grouped(blocks_of(maps.shape[1:], window), lambda block: block.form):
            for batch in windows.batches(group, batch_size):
                codes = windows.flat[batch.positions[:, :batch.end]]  # (n,t)
                logits = model(windows.prefix(batch), codes)[:, batch.start:].float()  # (n,t-start,K)
                own = F.cross_entropy(logits.mT, codes[:, batch.start:], reduction="none")
                nll[batch.positions[:, batch.start:batch.end]] = own
    return nll.view(maps.shape).to(maps.device)


def _grouped(blocks: Sequence[Block], key: Callable[[Block], Hashable]) -> list[list[Block]]:
    groups = defaultdict(list)
    for block in blocks:
        groups[key(block)].append(block)
    return list(groups.values())


@dataclass(frozen=True)
class _Batch:
    """Windows of one form that go through the network together: n of them.

    samples, tops, lefts (n,) int64. positions (n,h w): of the windows' codes in the flat maps. start, end: the first
    code of the block in the window, in row-major order, and the one after its last. first: (top, left, number of the
    map) of the first of them.
    """

    form: Form
    samples: Tensor
    tops: Tensor
    lefts: Tensor
    positions: Tensor
    start: int
    end: int
    first: tuple[int, int, int]


class _Windows:
    """Maps (N,H,W) and the windows in them; `flat` is a view of the maps, (N H W,)."""

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
                 first: int = 0) -> None:
        self.model, self.prefixes, self.window, self.first = model, prefixes, window, first
        self.count, self.height, self.width = maps.shape
        self.flat = maps.view(-1)
        rows, cols = (torch.arange(side, device=maps.device) for side in window)
        self.inside = (rows[:, None] * self.width + cols).flatten()  # (h w,) from the first code of a window on

    def batches(self, blocks: Sequence[Block], batch_size: int) -> Iterator[_Batch]:
        """These blocks of one form in every map, at most `batch_size` windows at once."""
        form = blocks[0].form
        start = form.row * self.window[1] + form.col
        end = start + (form.rows - 1) * self.window[1] + form.cols
        every = [(*block.window, number) for block in blocks for number in range(self.count)]
        for begin in range(0, len(every), batch_size):
            some = every[begin:begin + batch_size]
            tops, lefts, numbers = torch.tensor(some, device=self.flat.device).unbind(1)
            corners = (numbers * self.height + tops) * self.width + lefts  # of the windows in the flat maps
            yield _Batch(form, numbers + self.first, tops, lefts, corners[:, None] + self.inside, start, end, some[0])

    def prefix(self, batch: _Batch) -> Tensor:
        """Prefix tokens (n,P) of a batch of windows. Raises TesseraeError for those that the model does not have."""
        tokens, size = self.prefixes(batch.samples, batch.tops, batch.lefts), self.model.config.prefix_vocab
        if len(tokens) != len(batch.samples):
            raise TesseraeError(f"prefixes were requested for {len(batch.samples)} windows and came as tokens of the "
                                f"shape {tuple(tokens.shape)}: a row for each window is needed.")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise TesseraeError(f"prefix tokens run from {int(tokens.min())} to {int(tokens.max())}; this "
                                f"transformer knows 0 to {size - 1}.")
        return tokens


class MapSampler:
    """Samples maps wavefront by wavefront; `sample_map` says how. maps: (count,H,W), 0 where nothing is sampled yet.

    Each block is sampled from its window: one pass over the codes that are known, then a step a code. A window at the
    upper or lower edge of the map serves several rows. With stride = 1 it keeps its keys and values from row to row,
    as far as CACHED_BYTES allow; beyond that it is processed again.
    """

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, shape: Size, window: Size, count: int = 1,
                 options: SampleOptions = DEFAULTS, given: Given | None = None) -> None:
        """Raises TesseraeError for what does not fit."""
        options.check()
        _check(model, shape, window)
        if not 1 <= options.stride <= min(window):
            raise TesseraeError(f"a stride of {options.stride} does not fit a window of {window[0]}x{window[1]} "
                                f"codes: take 1 to {min(window)}.")
        check_given(model, given, (count, *shape))
        blocks, device = blocks_of(shape, window, options.stride), model.device
        self.model, self.options = model, options
        self.wavefronts = wavefronts(blocks, shape, window) if options.wavefront else [[block] for block in blocks]
        self.maps = torch.zeros(count, *shape, dtype=torch.int64, device=device)
        self._windows = _Windows(model, prefixes, self.maps, window, options.first)
        numbers = range(options.first, options.first + count)
        self._noise = uniforms(options.seed, numbers, shape[0] * shape[1]).flatten().to(device)
        self._given = None if given is None else tuple(part.flatten().to(device) for part in given)
        self._last_row = {block.window: block.row for block in blocks}
        rows = Counter(block.window for block in blocks)
        self._serve_rows = {place for place, number in rows.items() if number > 1 and options.stride == 1}
        self._caches: dict[tuple[int, int, int], tuple[KVCache, int]] = {}  # each with how many codes it holds

    @torch.no_grad()
    def sample(self, wavefront: Sequence[Block]) -> int:
        """Sample the blocks of a wavefront in every map; returns how many codes these are."""
        # of one form, but a window that keeps a cache by itself
        groups = _grouped(wavefront, lambda block: (block.form, block.window if block.window in self._serve_rows
                                                    else None))
        return sum(self._sample(batch) for group in groups
                   for batch in self._windows.batches(group, self.options.batch_size))

    def _sample(self, batch: _Batch) -> int:
        logits, cache = self._begin(batch)
        flat, form, width = self._windows.flat, batch.form, self._windows.window[1]
        span = range(batch.start, batch.end)
        codes = flat[batch.positions[:, batch.start:batch.end]]  # (n,t), on which the windows work
        for step, position in enumerate(span):
            if position % width >= form.col:  # what is to the left of the block is known
                codes[:, step] = self._pick(logits, batch.positions[:, position])
            if position + 1 < batch.end:
                logits = self.model.step(codes[:, step], cache)
        own = [step for step, position in enumerate(span) if form.col <= position % width < form.col + form.cols]
        flat[batch.positions[:, batch.start:batch.end][:, own]] = codes[:, own]
        return len(codes) * len(own)

    def _pick(self, logits: Tensor, positions: Tensor) -> Tensor:
        sampled = self.options.pick(logits, self._noise[positions])
        if self._given is None:
            return sampled
        mask, indices = self._given
        return torch.where(mask[positions], indices[positions], sampled)

    def _begin(self, batch: _Batch) -> tuple[Tensor, KVCache]:
        """Logits (n,K) of the blocks' first code, and the cache of what is before it."""
        top, left, _ = batch.first
        flat, again = self._windows.flat, (top, left) in self._serve_rows and (
            top + batch.form.row < self._last_row[top, left])
        if batch.first in self._caches:
            cache, known = self._caches.pop(batch.first)
            logits = self.model.step(flat[batch.positions[:, known:batch.start]], cache)
        else:
            capacity = batch.positions.shape[1] if again else batch.end
            logits, cache = self.model.prefill(self._windows.prefix(batch), flat[batch.positions[:, :batch.start]],
                                               max_tokens=capacity)
        kept = sum(other.nbytes for other, _ in self._caches.values())
        if again and kept + cache.nbytes <= CACHED_BYTES:
            self._caches[batch.first] = cache, batch.end - 1
        return logits, cache


class _Previews:
    """Shows growing maps now and then."""

    def __init__(self, maps: Tensor, preview: Preview | None) -> None:
        self.maps, self.preview, self.shown = maps, preview, 0
        self.sampled = torch.zeros(maps.shape[1:], dtype=torch.bool)

    def add(self, blocks: Sequence[Block]) -> None:
        """These blocks have been sampled."""
        if self.preview is None:
            return
        for block in blocks:
            self.sampled[block.row:block.row + block.form.rows, block.col:block.col + block.form.cols] = True
        total, done = self.sampled.numel(), int(self.sampled.sum())
        if done == total or (done - self.shown) * PREVIEWS >= total:
            self.shown = done
            self.preview(self.maps.clone(), self.sampled.expand_as(self.maps).to(self.maps.device, copy=True))


def _check(model: LatentTransformer, shape: Sequence[int], window: Size) -> None:
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
