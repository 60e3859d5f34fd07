"""Maps larger than the transformer knows, code after code in a window that slides (arXiv 2012.09841, sec. 3.3).

The window is placed so that the code lies in its middle, or further out at the edges of the map; the codes
before it in the window and the window's own condition are all that it is drawn from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.filters import draw, rank
from tesserae.sampling.resting import Resting
from tesserae.sampling.sampler import check_given, uniforms
from tesserae.sampling.slide import ROWS, Batch, Choose, Prefixes, Slide, filled
from tesserae.sampling.steps import aligned, drawing
from tesserae.sampling.wavefront import (
    Block,
    Size,
    Turn,
    blocks_of,
    codes_of,
    local_place,
    stagger,
    waves,
)

__all__ = ["Prefixes", "local_place", "sample_map", "window_nll"]

LENGTHS, BATCHES = 16, 8  # on a GPU codes of windows, and windows, are filled up to multiples: fewer recordings
MOMENTS = 64  # that often, at most, a growing map is shown


@torch.no_grad()
def sample_map(model: LatentTransformer, prefixes: Prefixes, shape: Size, window: Size, count: int = 1,
               temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, first: int = 0,
               stride: int = 1, given: tuple[Tensor, Tensor] | None = None, wavefront: bool = True,
               batch_size: int = 64, progress: Callable[[int, int], None] | None = None,
               grown: Callable[[Tensor, Tensor], None] | None = None, together: bool | None = None) -> Tensor:
    """Draw `count` code maps of any shape: -> (count,H,W) int64 on the model's device.

    prefixes: the condition of windows, see `Prefixes`. shape (H,W), no side smaller than the window's (h,w), which
    is the map that the transformer knows. temperature, top_k, top_p: see `filters.rank`.

    The samples are numbered first, first + 1, ...; the random number of a draw belongs to (seed, sample,
    position in the map). stride s > 1 draws blocks of s x s codes from one window: about s^2 times fewer passes
    through the network, but codes inside of a block see less of what surrounds them. Codes beside the block that
    the window needs before their time are drawn for the moment, then dropped.

    given: (mask (count,H,W) bool, indices (count,H,W) int64): codes under the mask are kept, the others are drawn
    in order, each from those before it.

    wavefront: what does not depend on each other goes through the network together, up to `batch_size` windows;
    False draws block after block, for comparison. The codes are the same up to the rounding of the network's sums,
    which is alike for small networks in fp32 on a CPU. together: whether windows known to different lengths go
    through it at once, filled up to the longest, where stride is 1: more sums, in fewer and larger pieces; None: on a
    GPU, whose time goes by pieces. progress(done, total) counts codes; grown(codes, drawn),
    both (count,H,W), shows now and then the maps as they grow and which codes are drawn. Raises TesseraeError for
    what does not fit.
    """
    _check(model, shape, window, batch_size)
    if not 1 <= stride <= min(window):
        raise TesseraeError(f"a stride of {stride} does not fit a window of {window[0]}x{window[1]} codes: "
                            f"take 1 to {min(window)}.")
    check_given(model, given, (count, *shape))
    device = model.device
    codes = torch.zeros(count, *shape, dtype=torch.int64, device=device)
    noise = uniforms(seed, range(first, first + count), shape[0] * shape[1]).flatten().to(device)
    slide = Slide(model, prefixes, codes, window, first)
    together = stride == 1 and (device.type == "cuda" if together is None else together)
    blocks, album, done = blocks_of(shape, window, stride, runs=not together), _Album(codes, grown), 0
    mask, known = (None, None) if given is None else (part.flatten().to(device) for part in given)

    def chosen(logits: Tensor, where: Tensor) -> Tensor:
        drawn = draw(*rank(logits, temperature, top_k, top_p), noise[where])
        return drawn if mask is None else torch.where(mask[where], known[where], drawn)

    choose = partial(slide.recorder, "choose", chosen)

    def drawn(more: int) -> None:
        nonlocal done
        done += more
        if progress and more:
            progress(done, codes.numel())

    turns = stagger(blocks, count, shape, window, batch_size if wavefront else 1) if stride > 1 else []
    with drawing(model, rows=max(ROWS, _slots(turns))):
        if stride > 1:
            for more, ended in _draw_staggered(slide, turns, choose):
                drawn(more)
                album.add(ended)
        else:
            rest = None if together else Resting(slide, blocks, batch_size)
            order = waves(blocks, shape, window) if wavefront else [[block] for block in blocks]
            resting = [[block for block in wave if rest and rest.has(block)] for wave in order]
            moving = [[block for block in wave if not (rest and rest.has(block))] for wave in order]
            for (wave, batches), others in zip(slide.batches(moving, batch_size, together), resting):
                drawn(draw_wave(slide, batches, rest, others, choose))
                album.add([*wave, *others])
    slide.check()
    return codes


@torch.no_grad()
def window_nll(model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
               batch_size: int = 64) -> Tensor:
    """-log p of each code of given maps, each in the window that would have drawn it: (N,H,W) -> (N,H,W) nats.

    maps int64; prefixes and window as for `sample_map`, map n is sample n. The map's own codes are the context
    (teacher forcing). So maps drawn with different strides are compared under the one definition. Raises
    TesseraeError for what does not fit.
    """
    _check(model, maps.shape[1:], window, batch_size)
    known = model.config.codebook_size
    if maps.numel() and not 0 <= int(maps.min()) <= int(maps.max()) < known:
        raise TesseraeError(f"the maps' codes run from {int(maps.min())} to {int(maps.max())}; this transformer "
                            f"knows 0 to {known - 1}.")
    slide = Slide(model, prefixes, maps.to(model.device).contiguous(), window)
    nll = torch.empty(slide.flat.shape, device=slide.flat.device)
    with drawing(model):
        (_, batches), = slide.batches([blocks_of(maps.shape[1:], window)], batch_size)
        for batch in batches:
            start, end = batch.ends(window)
            codes = slide.flat[batch.places[:, :end]]  # (n,t)
            logits = model(slide.prefix(batch), codes)[:, start:].float()  # (n,t-start,K)
            nll[batch.places[:, start:end]] = F.cross_entropy(logits.mT, codes[:, start:], reduction="none")
    slide.check()
    return nll.view(maps.shape).to(maps.device)


def draw_wave(slide: Slide, batches: Iterable[Batch], rest: Resting | None, resting: Sequence[Block],
              choose: Choose) -> int:
    """Draw what does not wait for each other, batches of moving windows and blocks of resting ones: how many codes.

    Without `rest` the windows of a batch may be known to different lengths.
    """
    done = 0
    for batch in batches:
        (_draw_plain if rest else _draw_singles)(slide, batch, choose)
        done += len(batch.places)
    return done + (rest.draw(resting, choose) if resting else 0)


def _draw_plain(slide: Slide, batch: Batch, choose: Choose) -> None:
    """Draw single codes of windows of one form, each the end of a plain forward pass."""
    end = batch.ends(slide.window)[1]
    logits = slide.model(slide.prefix(batch), slide.flat[batch.places[:, :end]], last=min(ROWS, end))[:, -1]  # (n,K)
    where = batch.places[:, end - 1]
    slide.flat[where] = choose(logits, where)


def _draw_staggered(slide: Slide, turns: Sequence[Turn], choose: Choose) -> Iterator[tuple[int, list[Block]]]:
    """Draw blocks at their turns: how many codes each step draws, and the blocks that it ends in every map.

    A step takes every window on by one code, each at a place of its own, in the slots of one cache; slots between two
    turns do the same on what is never looked at. So batches are always of one size, which a GPU records once. On a
    CPU, what windows know when they begin goes through the network beside a step, so that weights are read once.
    """
    model, device, flat = slide.model, slide.flat.device, slide.flat
    rows = filled(_slots(turns), BATCHES if slide.recorder.records else ROWS, device)
    plan = _Plan.of(slide, turns, len(rows))
    where, places, own, kept = (torch.from_numpy(part).to(device) for part in (plan.where, plan.places, plan.own,
                                                                               plan.kept))
    store = torch.cat([flat, flat.new_zeros(1)])  # the last takes what is drawn for the moment alone
    kept = torch.where(kept, where, len(flat))
    inputs = (places + model.config.prefix_length - 1)[:, :, None]
    reaches = (plan.places.max(1) + model.config.prefix_length).tolist()
    codes, cache, logits = flat.new_zeros(len(rows)), None, None
    for step, (beginning, ended) in enumerate(zip(plan.beginning, plan.ended)):
        late, fresh, beside = [], [], bool(step) and not slide.recorder.records
        for batch, slots in beginning:
            start, prefix = batch.ends(slide.window)[0], slide.prefix(batch)
            if beside:
                fresh.append((prefix, store[batch.places[:, :start]]))
                continue
            enough = filled(len(prefix), ROWS if start < ROWS else 1, device)  # rows of the products
            first, known = model.prefill(prefix[enough], store[batch.places[:, :max(start - 1, 0)]][enough],
                                         room=max(start, 1))
            if cache is None:
                cache = known.blank(len(rows), aligned(model.config.block_size))
            if start:
                cache.take(known, slots)
                codes[slots] = store[batch.places[:, start - 1]]
            else:
                late.append((known, slots, first[:len(prefix)]))
        reach = 0 if slide.recorder.records else aligned(reaches[step])
        if fresh:
            logits, found = model.step_beside(codes[:, None], inputs[step], cache, reach, fresh)
            late = [(known, slots, first) for (first, known), (_, slots) in zip(found, beginning)]
        elif step:
            logits = slide.recorder("staggered", partial(model.step_at, cache=cache, reach=reach), codes[:, None],
                                    inputs[step])
        for known, slots, first in late:  # after what an empty slot has done
            cache.take(known, slots)
            logits = first.new_zeros(len(rows), first.shape[1]) if logits is None else logits
            logits[slots] = first
        drawn = choose(logits, where[step])
        codes = torch.where(own[step], drawn, store[where[step]])
        store[kept[step]] = drawn
        if ended:
            flat.copy_(store[:-1])
        yield int(plan.kept[step].sum()), ended


def _slots(turns: Sequence[Turn]) -> int:
    """How large a batch the turns need."""
    return 1 + max((turn.slot for turn in turns), default=-1)


@dataclass(frozen=True)
class _Plan:
    """Turns as steps. Of each step and slot, (steps,slots): where its code lies in the flat maps, its place in the
    window, whether it is drawn, and whether it is the block's. Of each step: windows that begin, with their slots,
    and blocks that end."""

    where: np.ndarray
    places: np.ndarray
    own: np.ndarray
    kept: np.ndarray
    beginning: list[list[tuple[Batch, Tensor]]]
    ended: list[list[Block]]

    @classmethod
    def of(cls, slide: Slide, turns: Sequence[Turn], slots: int) -> _Plan:
        width = slide.window[1]
        parts = [codes_of(turn.block.form, width) for turn in turns]
        steps = max(turn.step + len(places) for turn, (places, _, _) in zip(turns, parts))
        where, place = np.zeros((2, steps, slots), np.int64)
        own, kept = np.zeros((2, steps, slots), bool)
        starting, last = [defaultdict(list) for _ in range(steps)], {}
        for turn, (places, drawn, of_block) in zip(turns, parts):
            block, until = turn.block, turn.step + len(places)
            at = (slice(turn.step, until), turn.slot)
            corner = slide.first_code(turn.number, block.top, block.left)
            where[at] = corner + places // width * slide.width + places % width
            place[at], own[at], kept[at] = places, drawn, of_block
            starting[turn.step][block.form].append(turn)
            last[block] = max(last.get(block, 0), until - 1)
        ended = [[] for _ in range(steps)]
        for block, step in last.items():
            ended[step].append(block)
        beginning = [[slide.beginning(form, some) for form, some in groups.items()] for groups in starting]
        return cls(where, place, own, kept, beginning, ended)


def _draw_singles(slide: Slide, batch: Batch, choose: Choose) -> None:
    """Draw single codes of windows known to different lengths: behind a window's own nothing is looked at."""
    prefix, length, places, starts = slide.prefix(batch), batch.longest, batch.places, batch.starts
    rows = torch.arange(len(prefix), device=prefix.device)
    if slide.recorder.records:
        length = min(-(-length // LENGTHS) * LENGTHS, places.shape[1])
        rows = filled(len(prefix), BATCHES, prefix.device)
    codes = slide.flat[places[:, :length]]  # (n,t)
    logits = slide.recorder("at", slide.model.at, prefix[rows], codes[rows], starts[rows])[:len(prefix)]
    where = places.gather(1, starts[:, None])[:, 0]
    slide.flat[where] = choose(logits, where)


class _Album:
    """Shows growing maps now and then."""

    def __init__(self, codes: Tensor, grown: Callable[[Tensor, Tensor], None] | None) -> None:
        self.codes, self.grown, self.shown = codes, grown, 0
        self.drawn = torch.zeros(codes.shape[1:], dtype=torch.bool, device=codes.device)

    def add(self, blocks: Iterable[Block]) -> None:
        """These blocks have been drawn."""
        if self.grown is None:
            return
        for block in blocks:
            self.drawn[block.row:block.row + block.form.rows, block.col:block.col + block.form.cols] = True
        total, drawn = self.drawn.numel(), int(self.drawn.sum())
        if drawn == total or (drawn - self.shown) * MOMENTS >= total:
            self.shown = drawn
            self.grown(self.codes.clone(), self.drawn.expand_as(self.codes).clone())


def _check(model: LatentTransformer, shape: Sequence[int], window: Size, batch_size: int) -> None:
    c = model.config
    if c.order != "row":
        raise TesseraeError(f"this transformer draws codes in the order '{c.order}'; a sliding window needs the "
                            "codes above and to the left, so train one with the order 'row'.")
    if min(window) < 1 or window[0] * window[1] != c.max_tokens or tuple(c.window) not in ((), tuple(window)):
        knows = "x".join(map(str, c.window)) if c.window else c.max_tokens
        raise TesseraeError(f"a window of {window[0]}x{window[1]} codes was asked for; this transformer knows maps "
                            f"of {knows} codes: give the height and width that it was trained on.")
    if len(shape) != 2 or shape[0] < window[0] or shape[1] < window[1]:
        raise TesseraeError(f"a map of {'x'.join(map(str, shape))} codes is smaller than the window of "
                            f"{window[0]}x{window[1]}: take a larger map, or sample it without a window.")
    if batch_size < 1:
        raise TesseraeError(f"batch_size = {batch_size} is not allowed; it must be at least 1.")
