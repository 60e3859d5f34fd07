"""Windows at a map's edges rest: several codes have the same one, and what it knew for one it still knows.

Away from the edges a window moves on with each code. But those at the left and right edge stay where they are for
half of their width, and those at the upper and lower edge for half of their height. So their keys and values are kept
from code to code, and from row to row.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tesserae.models.cache import Cache
from tesserae.sampling.slide import ROWS, Choose, Slide, filled
from tesserae.sampling.wavefront import Block

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container's memory


@dataclass
class _Part:
    """A block in some of the maps: where its window's codes lie in the flat maps, places (n,h w); the block's codes
    are the places start to end."""

    block: Block
    key: Hashable
    samples: Tensor
    places: Tensor
    start: int
    end: int
    cache: Cache | None

    def facts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers of samples, tops and lefts of the windows."""
        return (self.samples, torch.full_like(self.samples, self.block.top),
                torch.full_like(self.samples, self.block.left))


class Resting:
    """Draws the blocks of resting windows, which are those that draw more than one code of a map.

    Keys are kept up to a quarter of the memory; windows beyond that are gone through again for each row.
    """

    def __init__(self, slide: Slide, blocks: Sequence[Block], batch_size: int) -> None:
        self.slide, self.batch_size, self.room = slide, batch_size, _quarter(slide.flat.device)  # bytes
        self.blocks = Counter((block.top, block.left) for block in blocks)  # still to be drawn, by window
        self.resting = {window for window, count in self.blocks.items() if count > 1}
        self.ends = {(block.top, block.left): self._ends(block)[1] for block in blocks}  # of each window's last
        self.caches: dict[Hashable, Cache] = {}
        most = max(1, min(batch_size, slide.fitting // len(slide.inside)))  # maps that go through the network at once
        self.maps = torch.arange(slide.count, device=slide.flat.device).split(most)

    def has(self, block: Block) -> bool:
        """Whether a block is to be drawn here."""
        return block.form.cols > 1 or (block.top, block.left) in self.resting

    def draw(self, blocks: Sequence[Block], choose: Choose) -> int:
        """Draw blocks of one wave in every map; how many codes these are."""
        parts = [self._part(block, maps) for block in blocks for maps in self.maps]
        for block in blocks:
            self.blocks[block.top, block.left] -= 1
        for some, logits in self._first(parts):
            self._write(some, [part.start for part in some], logits, choose)
        step = 0
        while running := [part for part in parts if part.end - part.start > step + 1]:
            step += 1
            codes = self._codes(running, [part.start + step for part in running], 1)
            logits = self.slide.model.step_each(codes[filled(len(codes), ROWS, codes.device)],
                                                [part.cache for part in running])
            self._write(running, [part.start + step for part in running], logits, choose)
        for part in parts:
            if part.cache is not None and not self.blocks[part.block.top, part.block.left]:
                self.room += self.caches.pop(part.key).nbytes if part.key in self.caches else 0
        return sum(len(part.samples) * (part.end - part.start) for part in parts)

    def _first(self, parts: Sequence[_Part]) -> Iterator[tuple[list[_Part], Tensor]]:
        """The logits of each part's first code, (n,K), for parts that go through the network together."""
        groups = defaultdict(list)
        for part in parts:
            new = part.start if part.cache is None else part.start - self._known(part.cache)
            keep = part.cache is None and self.blocks[part.block.top, part.block.left] > 0
            groups[part.cache is None, keep, new, self._last(part) if keep else part.end].append(part)
        for (fresh, keep, new, room), group in groups.items():
            for some in self._cut(group, max(1, new)):
                yield some, self._begin(some, room, keep) if fresh else self._go_on(some, new)

    def _begin(self, parts: list[_Part], room: int, keep: bool) -> Tensor:
        """Go through windows up to their first code, for the first time or again."""
        model, start = self.slide.model, parts[0].start
        samples, tops, lefts = (torch.cat(each) for each in zip(*(part.facts() for part in parts)))
        prefix = self.slide.tokens(samples, tops, lefts)
        codes, length = self._codes(parts, [start] * len(parts), start), model.config.prefix_length + start
        rows = filled(len(codes), ROWS if length < ROWS else 1, codes.device)
        logits, cache = model.prefill(prefix[rows], codes[rows], room=room, last=min(ROWS, length))
        for part, own in zip(parts, cache.parts(len(parts[0].samples))):
            part.cache = own
            if keep and own.nbytes <= self.room:
                self.room -= own.nbytes
                self.caches[part.key] = own
        return logits

    def _go_on(self, parts: list[_Part], new: int) -> Tensor:
        """Go through so many codes that the windows have come to know since."""
        codes = self._codes(parts, [part.start for part in parts], new)
        rows = filled(len(codes), ROWS if new < ROWS else 1, codes.device)
        return self.slide.model.step_each(codes[rows], [part.cache for part in parts], last=min(ROWS, new))

    def _codes(self, parts: Sequence[_Part], ends: Sequence[int], count: int) -> Tensor:
        """The last `count` codes before a place of each part's windows, (n,count)."""
        return torch.cat([self.slide.flat[part.places[:, end - count:end]] for part, end in zip(parts, ends)])

    def _write(self, parts: Sequence[_Part], places: Sequence[int], logits: Tensor, choose: Choose) -> None:
        """Draw the code at a place of each part's windows; rows of logits beyond these are left alone."""
        where = torch.cat([part.places[:, place] for part, place in zip(parts, places)])
        self.slide.flat[where] = choose(logits[:len(where)], where)

    def _cut(self, parts: list[_Part], rows: int) -> Iterator[list[_Part]]:
        """As many as fit, with so many rows for each window; all of a batch are of as many maps."""
        for size in dict.fromkeys(len(part.samples) for part in parts):
            alike = [part for part in parts if len(part.samples) == size]
            most = max(1, min(self.batch_size, self.slide.fitting // rows) // size)
            yield from (alike[first:first + most] for first in range(0, len(alike), most))

    def _part(self, block: Block, maps: Tensor) -> _Part:
        key, (start, end) = (block.top, block.left, int(maps[0])), self._ends(block)
        places = self.slide.first_code(maps, block.top, block.left)[:, None] + self.slide.inside
        return _Part(block, key, maps + self.slide.first, places, start, end, self.caches.get(key))

    def _ends(self, block: Block) -> tuple[int, int]:
        start = block.form.row * self.slide.window[1] + block.form.col
        return start, start + block.form.cols

    def _last(self, part: _Part) -> int:
        return self.ends[part.block.top, part.block.left]

    def _known(self, cache: Cache) -> int:
        """How many codes a cache holds."""
        return cache.length - self.slide.model.config.prefix_length


def _quarter(device: torch.device) -> int:
    """Of the memory that a GPU has free, or of the machine's, or of what a container may use of that, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    try:
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        most = 2**33
    for file in LIMITS:
        with suppress(OSError, ValueError):  # it is not there, or says that there is none
            most = min(most, int(Path(file).read_text()))
    return most // 4
