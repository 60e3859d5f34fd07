"""The windows of maps that grow: where their codes lie, what goes through the network together, their conditions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.steps import Recorder
from tesserae.sampling.wavefront import Block, Form, Size, Turn, alike

# numbers of samples (n,), tops (n,), lefts (n,) int64 -> prefix tokens (n,P) int64 of those windows
Prefixes = Callable[[Tensor, Tensor, Tensor], Tensor]
Choose = Callable[[Tensor, Tensor], Tensor]  # logits (n,K), places in the flat maps (n,) -> codes (n,)
ROWS = 4  # from that many rows on a CPU rounds products of small matrices alike, whatever their number
AT_ONCE = 2**21  # numbers in the widest layer: on a CPU more of them take memory and are no faster


def filled(count: int, multiple: int, device: torch.device) -> Tensor:
    """Rows 0 to count - 1, the last one repeated up to the next multiple."""
    return torch.arange(-(-count // multiple) * multiple, device=device).clamp(max=count - 1)


@dataclass(frozen=True)
class Batch:
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


class Slide:
    """Maps (N,H,W) and the windows in them; `flat` is a view of the maps, (N H W,)."""

    def __init__(self, model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: Size,
                 first: int = 0) -> None:
        self.model, self.prefixes, self.window, self.first = model, prefixes, window, first
        self.count, self.height, self.width = maps.shape
        self.flat, to = maps.view(-1), {"device": maps.device}
        self.inside = torch.arange(window[0], **to)[:, None] * self.width + torch.arange(window[1], **to)
        self.inside = self.inside.flatten()  # (h w,) from a window's first code
        self.fitting = AT_ONCE // (4 * model.config.n_embd) if maps.device.type == "cpu" else sys.maxsize
        self.recorder = Recorder(maps.device)
        self.told = torch.full((2,), torch.iinfo(torch.int64).max, device=maps.device)  # least and -largest token

    def batches(self, waves: Sequence[Sequence[Block]], batch_size: int,
                together: bool = False) -> Iterator[tuple[Sequence[Block], Iterator[Batch]]]:
        """Each wave with its blocks in every map, by form; `together`: all forms, of single codes, at once."""
        to = {"device": self.flat.device}
        groups = [[(Form(0, 0, 1, 1), wave)] if together and wave else list(alike(wave).items()) for wave in waves]
        facts = torch.tensor([(block.top, block.left, block.form.row, block.form.col)
                              for wave in groups for _, group in wave for block in group])
        facts = facts.view(-1, 4).to(self.flat.device)
        tops, lefts, rows, cols = repeat(facts, "m facts -> facts (m n)", n=self.count)
        maps = repeat(torch.arange(self.count, **to), "n -> (m n)", m=len(facts))
        origins = self.first_code(maps, tops, lefts)
        every, done = (maps + self.first, tops, lefts, origins, rows * self.window[1] + cols), 0

        def cut(form: Form, group: Sequence[Block], start: int) -> Iterator[Batch]:
            stop = start + len(group) * self.count
            longest = 1 + max(block.form.row * self.window[1] + block.form.col for block in group)
            most = max(1, min(batch_size, self.fitting // longest))
            for parts in zip(*(part[start:stop].split(most) for part in every)):
                samples, top, left, origin, starts = parts
                yield Batch(form, samples, top, left, origin[:, None] + self.inside, starts, longest)

        for wave, parts in zip(waves, groups):
            starts = done + self.count * np.cumsum([0, *(len(group) for _, group in parts)])
            yield wave, chain.from_iterable(cut(*part, int(start)) for part, start in zip(parts, starts))
            done = int(starts[-1])

    def first_code(self, maps: Tensor | int, tops: Tensor | int, lefts: Tensor | int) -> Tensor | int:
        """Where in the flat maps the first codes of windows lie."""
        return (maps * self.height + tops) * self.width + lefts

    def beginning(self, form: Form, turns: Sequence[Turn]) -> tuple[Batch, Tensor]:
        """The windows of turns of one form, and their slots."""
        facts = torch.tensor([(turn.number, turn.block.top, turn.block.left, turn.slot) for turn in turns])
        maps, tops, lefts, slots = facts.to(self.flat.device).T
        first = form.row * self.window[1] + form.col
        places = self.first_code(maps, tops, lefts)[:, None] + self.inside
        return Batch(form, maps + self.first, tops, lefts, places, torch.full_like(maps, first), first + 1), slots

    def prefix(self, batch: Batch) -> Tensor:
        """`tokens` of a batch of windows."""
        return self.tokens(batch.samples, batch.tops, batch.lefts)

    def tokens(self, samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        """The prefix tokens of windows, (n,P), checked; their values on a GPU by `check`, in the end."""
        tokens, most = self.prefixes(samples, tops, lefts), self.model.config.prefix_vocab - 1
        if len(tokens) != len(samples):
            raise TesseraeError(f"prefixes were asked for {len(samples)} windows and gave tokens of the shape "
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
