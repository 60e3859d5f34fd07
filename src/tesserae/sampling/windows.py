"""Maps larger than the transformer knows, code after code in a window that slides (arXiv 2012.09841, sec. 3.3).

The window is placed so that the code lies in its middle, or further out at the edges of the map; the codes
before it in the window and the window's own condition are all that it is drawn from.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.filters import draw, rank
from tesserae.sampling.sampler import check_given, uniforms
from tesserae.sampling.steps import Recorder, Steps, aligned, drawing
from tesserae.sampling.wavefront import (
    Block,
    Form,
    Size,
    Turn,
    alike,
    blocks_of,
    codes_of,
    local_place,
    stagger,
    waves,
)

__all__ = ["Prefixes", "local_place", "sample_map", "window_nll"]

# numbers of samples (n,), tops (n,), lefts (n,) int64 -> prefix tokens (n,P) int64 of those windows
Prefixes = Callable[[Tensor, Tensor, Tensor], Tensor]
ROWS = 4  # from that many rows on a CPU rounds products of small matrices alike, whatever their number
LENGTHS, BATCHES = 16, 8  # on a GPU codes of windows, and windows, are filled up to multiples: fewer recordings
AT_ONCE = 2**21  # numbers in the widest layer: on a CPU more of them take memory and are no faster
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
    slide = _Slide(model, prefixes, codes, window, first)
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
            order = waves(blocks, shape, window) if wavefront else [[block] for block in blocks]
            for wave, batches in slide.batches(order, batch_size, together):
                for batch in batches:
                    (_draw_singles if together else _draw_run)(slide, batch, choose)
                    drawn(len(batch.places) * batch.form.cols)
                album.add(wave)
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
    slide = _Slide(model, prefixes, maps.to(model.device).contiguous(), window)
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


@dataclass(frozen=True)
class _Batch:
    """Windows that go through the network together: numbers of samples, tops, lefts (n,), where their codes lie in
    the flat maps (n,h w), the first one that is drawn of each (n,), and how many the longest knows then, with it."""

    form: Form
    samples: Tensor
    tops: Tensor
    lefts: Tensor
    places: Tensor
    starts: Tensor
    longest: int

    def ends(self, window: Size) -> tuple[int, int]:
        """The block's first place in its window, in row-major order, and the one after its last."""
        form, width = self.form, window[1]
        return (form.row * width + form.col,
                (form.row + form.rows - 1) * width + form.col + form.cols)


class _Slide:
    """Maps (N,H,W) and the windows in them; `flat` is a view of the maps, (N H W,)."""

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
                 first: int = 0) -> None:
        self.model, self.prefixes, self.window, self.first = model, prefixes, window, first
        self.count, self.height, self.width = maps.shape
        self.flat, to = maps.view(-1), {"device": maps.device}
        self.inside = torch.arange(window[0], **to)[:, None] * self.width + torch.arange(window[1], **to)
        self.inside = self.inside.flatten()  # (h w,) from a window's first code
        self.fitting = AT_ONCE // (4 * model.config.n_embd) if maps.device.type == "cpu" else sys.maxsize
        self.steps, self.recorder = Steps(model), Recorder(maps.device)
        self.told = torch.full((2,), torch.iinfo(torch.int64).max, device=maps.device)  # least and -largest token

    def batches(self, waves: Sequence[Sequence[Block]], batch_size: int,
                together: bool = False) -> Iterator[tuple[Sequence[Block], Iterator[_Batch]]]:
        """Each wave with its blocks in every map, by form; `together`: all forms, of single codes, at once."""
        to = {"device": self.flat.device}
        groups = [[(Form(0, 0, 1, 1), wave)] if together else list(alike(wave).items()) for wave in waves]
        facts = torch.tensor([(block.top, block.left, block.form.row, block.form.col)
                              for wave in groups for _, group in wave for block in group]).to(self.flat.device)
        tops, lefts, rows, cols = repeat(facts, "m facts -> facts (m n)", n=self.count)
        maps = repeat(torch.arange(self.count, **to), "n -> (m n)", m=len(facts))
        origins = self.first_code(maps, tops, lefts)
        every, done = (maps + self.first, tops, lefts, origins, rows * self.window[1] + cols), 0

        def cut(form: Form, group: Sequence[Block], start: int) -> Iterator[_Batch]:
            stop = start + len(group) * self.count
            longest = 1 + max(block.form.row * self.window[1] + block.form.col for block in group)
            most = max(1, min(batch_size, self.fitting // longest))
            for parts in zip(*(part[start:stop].split(most) for part in every)):
                samples, top, left, origin, starts = parts
                yield _Batch(form, samples, top, left, origin[:, None] + self.inside, starts, longest)

        for wave, parts in zip(waves, groups):
            starts = done + self.count * np.cumsum([0, *(len(group) for _, group in parts)])
            yield wave, chain.from_iterable(cut(*part, int(start)) for part, start in zip(parts, starts))
            done = int(starts[-1])

    def first_code(self, maps: Tensor | int, tops: Tensor | int, lefts: Tensor | int) -> Tensor | int:
        """Where in the flat maps the first codes of windows lie."""
        return (maps * self.height + tops) * self.width + lefts

    def beginning(self, form: Form, turns: Sequence[Turn]) -> tuple[_Batch, Tensor]:
        """The windows of turns of one form, and their slots."""
        facts = torch.tensor([(turn.number, turn.block.top, turn.block.left, turn.slot) for turn in turns])
        maps, tops, lefts, slots = facts.to(self.flat.device).T
        first = form.row * self.window[1] + form.col
        places = self.first_code(maps, tops, lefts)[:, None] + self.inside
        return _Batch(form, maps + self.first, tops, lefts, places, torch.full_like(maps, first), first + 1), slots

    def prefix(self, batch: _Batch) -> Tensor:
        """The prefix tokens of a batch of windows, (n,P), checked; their values on a GPU by `check`, in the end."""
        tokens, most = self.prefixes(batch.samples, batch.tops, batch.lefts), self.model.config.prefix_vocab - 1
        if len(tokens) != len(batch.samples):
            raise TesseraeError(f"prefixes were asked for {len(batch.samples)} windows and gave tokens of the shape "
                                f"{tuple(tokens.shape)}: a row for each window is needed.")
        if tokens.numel():
            least, largest = tokens.aminmax()
            self.told = torch.minimum(self.told, torch.stack([least, -largest]))
        if tokens.device.type == "cpu":
            self.check()
        return tokens.clamp(0, most)

    def check(self) -> None:
        """Raise TesseraeError where a prefix held tokens that the transformer does not know."""
        least, largest = self.told.tolist()
        if least < 0 or -largest >= self.model.config.prefix_vocab:
            raise TesseraeError(f"prefix tokens run from {least} to {-largest}; this transformer knows 0 to "
                                f"{self.model.config.prefix_vocab - 1}.")


Choose = Callable[[Tensor, Tensor], Tensor]  # logits (n,K), places in the flat maps (n,) -> codes (n,)


def _draw_run(slide: _Slide, batch: _Batch, choose: Choose) -> None:
    """Draw neighbours of a row in a batch of windows into the maps.

    Products of matrices with very few rows are left to other routines, which round differently. So a single code
    is the end of a plain forward pass for ROWS codes, whose products have at least so many rows.
    Several start a cache with all that is known but the last code, and go on from there in steps of at least so many
    rows. Where steps are recorded the cache has these rows, too.
    """
    (start, end), prefix = batch.ends(slide.window), slide.prefix(batch)
    if end - start == 1:
        logits = slide.model(prefix, slide.flat[batch.places[:, :end]], last=min(ROWS, end))[:, -1]  # (n,K)
        slide.flat[batch.places[:, start]] = choose(logits, batch.places[:, start])
        return
    filled = _filled(len(prefix), BATCHES if slide.recorder.records else ROWS, prefix.device)
    if start:
        rows = filled if slide.recorder.records else slice(len(prefix))
        _, cache = slide.model.prefill(prefix[rows], slide.flat[batch.places[:, :start - 1]][rows], room=end)
    else:
        logits, cache = slide.model.prefill(prefix[filled], room=end)
    slide.steps.start(cache)
    for place in range(start, end):
        where = batch.places[:, place]
        if place:
            logits = slide.steps(slide.flat[batch.places[:, place - 1]][filled])
        slide.flat[where] = choose(logits[:len(where)], where)


def _draw_staggered(slide: _Slide, turns: Sequence[Turn], choose: Choose) -> Iterator[tuple[int, list[Block]]]:
    """Draw blocks at their turns: how many codes each step draws, and the blocks that it ends in every map.

    A step takes every window on by one code, each at a place of its own, in the slots of one cache; slots between two
    turns do the same on what is never looked at. So batches are always of one size, which a GPU records once.
    """
    model, device, flat = slide.model, slide.flat.device, slide.flat
    rows = _filled(_slots(turns), BATCHES if slide.recorder.records else ROWS, device)
    plan = _Plan.of(slide, turns, len(rows))
    where, places, own, kept = (torch.from_numpy(part).to(device) for part in (plan.where, plan.places, plan.own,
                                                                               plan.kept))
    store = torch.cat([flat, flat.new_zeros(1)])  # the last takes what is drawn for the moment alone
    kept = torch.where(kept, where, len(flat))
    inputs = (places + model.config.prefix_length - 1)[:, :, None]
    reaches = (plan.places.max(1) + model.config.prefix_length).tolist()
    codes, cache, logits = flat.new_zeros(len(rows)), None, None
    for step, (beginning, ended) in enumerate(zip(plan.beginning, plan.ended)):
        late = []
        for batch, slots in beginning:
            start, prefix = batch.ends(slide.window)[0], slide.prefix(batch)
            enough = _filled(len(prefix), ROWS if start < ROWS else 1, device)  # rows of the products
            first, known = model.prefill(prefix[enough], store[batch.places[:, :max(start - 1, 0)]][enough],
                                         room=max(start, 1))
            if cache is None:
                cache = known.blank(len(rows), aligned(model.config.block_size))
            if start:
                cache.take(known, slots)
                codes[slots] = store[batch.places[:, start - 1]]
            else:
                late.append((known, slots, first[:len(prefix)]))
        if step:
            reach = 0 if slide.recorder.records else aligned(reaches[step])
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
    beginning: list[list[tuple[_Batch, Tensor]]]
    ended: list[list[Block]]

    @classmethod
    def of(cls, slide: _Slide, turns: Sequence[Turn], slots: int) -> _Plan:
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


def _draw_singles(slide: _Slide, batch: _Batch, choose: Choose) -> None:
    """Draw single codes of windows known to different lengths: behind a window's own nothing is looked at."""
    prefix, length, places, starts = slide.prefix(batch), batch.longest, batch.places, batch.starts
    rows = torch.arange(len(prefix), device=prefix.device)
    if slide.recorder.records:
        length = min(-(-length // LENGTHS) * LENGTHS, places.shape[1])
        rows = _filled(len(prefix), BATCHES, prefix.device)
    codes = slide.flat[places[:, :length]]  # (n,t)
    logits = slide.recorder("at", slide.model.at, prefix[rows], codes[rows], starts[rows])[:len(prefix)]
    where = places.gather(1, starts[:, None])[:, 0]
    slide.flat[where] = choose(logits, where)


def _filled(count: int, multiple: int, device: torch.device) -> Tensor:
    """Rows 0 to count - 1, the last one repeated up to the next multiple."""
    return torch.arange(-(-count // multiple) * multiple, device=device).clamp(max=count - 1)


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
