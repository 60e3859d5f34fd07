"""What a transformer keeps of the positions that it has seen, so that each goes through it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

# queries (B,heads,last,d), keys, values (B,heads,t,d), what is added to scores or None -> (B,heads,last,d)
Look = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Cache:
    """Keys and values of the positions seen so far, in buffers made once for the longest sequence.

    The buffers are made at the first write, because only then is their type known under autocast. Positions follow
    each other, the same for every sample, until `at` says where they lie.
    """

    def __init__(self, layers: int, batch: int, capacity: int) -> None:
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.buffers: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.where: tuple[Tensor, Tensor] | None = None
        self.seen: Tensor | None = None

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take k, v (B or 1,heads,t,d) of one layer; returns those of all positions that they may look at.

        A batch of one is written to every sample: so a shared prefix is computed once. After `at` what lies within
        its reach is returned, filled or not.
        """
        if self.where is not None:
            samples, places = self.where
            for buffer, part in zip(self.buffers[layer], (k, v)):
                buffer[samples, :, places] = part.transpose(1, 2)
            return tuple(buffer[:, :, :self.seen.shape[3]] for buffer in self.buffers[layer])
        start, end = self.length, self.length + k.shape[2]
        if self.buffers[layer] is None:
            shape = (self.batch, k.shape[1], self.capacity, k.shape[3])
            self.buffers[layer] = (k.new_empty(shape), v.new_empty(shape))
        keys, values = self.buffers[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return (keys[:, :, :end], values[:, :, :end]) if start else (k, v)

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        """What queries (B,heads,last,d) find in k, v of their own positions (B,heads,t,d) and in all before them."""
        return look(q, *self.extend(layer, k, v), self.seen)

    def parts(self, batch: int) -> list[Cache]:
        """One for every so many samples; what they hold is there once."""
        found = []
        for start in range(0, self.batch - batch + 1, batch):
            part = Cache(len(self.buffers), batch, self.capacity)
            part.length = self.length
            part.buffers = [(k[start:start + batch], v[start:start + batch]) for k, v in self.buffers]
            found.append(part)
        return found

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.buffers)

    def blank(self, batch: int, capacity: int) -> Cache:
        """One of another size for the same network, its buffers made and zero: `at` may lead anywhere."""
        other = Cache(len(self.buffers), batch, capacity)
        other.buffers = [tuple(part.new_zeros((batch, part.shape[1], capacity, part.shape[3])) for part in pair)
                         for pair in self.buffers]
        return other

    def take(self, other: Cache, samples: Tensor) -> None:
        """What another cache holds of its first samples becomes that of these, (n,) int64."""
        for pair, given in zip(self.buffers, other.buffers):
            for mine, theirs in zip(pair, given):
                mine[samples, :, :other.length] = theirs[:len(samples), :, :other.length]

    def at(self, places: Tensor, reach: int = 0) -> None:
        """The next positions of each sample lie at places (B,t) int64, and look at all up to themselves.

        reach: more than the largest of them, 0: the capacity. `seen` (B,1,t,reach) is added to scores, the same in
        every layer of a step. The buffers are `blank`'s: what is masked must still be a number.
        """
        keys = self.buffers[0][0]
        behind = torch.arange(reach or self.capacity, device=keys.device) > places[:, None, :, None]
        self.seen = torch.zeros(behind.shape, dtype=keys.dtype, device=keys.device).masked_fill_(behind, -torch.inf)
        self.where = torch.arange(self.batch, device=keys.device)[:, None], places


class Caches:
    """Several caches as one: samples that are known to different lengths go through all else together."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        self.caches, self.sizes = caches, [cache.batch for cache in caches]
        self.batch, self.seen = sum(self.sizes), None

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        """See `Cache.attended`; rows beyond the samples are copies of the last of these."""
        parts = zip(self.caches, *(part[:self.batch].split(self.sizes) for part in (q, k, v)))
        found = [cache.attended(layer, *own, look) for cache, *own in parts]
        return torch.cat(found + [found[-1][-1:]] * (len(q) - self.batch))


class Mixed:
    """One position of each sample of a cache, and whole sequences beside them, which fill caches of their own: a row
    for each position."""

    def __init__(self, cache: Cache, others: Sequence[Cache]) -> None:
        """others: empty, with room for just their sequences."""
        self.cache, self.others = cache, others
        self.sizes = [cache.batch, *(other.batch * other.capacity for other in others)]
        self.batch = sum(self.sizes)

    def attended(self, layer: int, q: Tensor, k: Tensor, v: Tensor, look: Look) -> Tensor:
        """See `Cache.attended`: (N,heads,1,d) each."""
        own, *rest = zip(*(part.split(self.sizes) for part in (q, k, v)))
        found = [self.cache.attended(layer, *own, look)]
        for other, parts in zip(self.others, rest):
            sequences = (rearrange(part, "(b t) h 1 d -> b h t d", b=other.batch) for part in parts)
            found.append(rearrange(other.attended(layer, *sequences, look), "b h t d -> (b t) h 1 d"))
        return torch.cat(found)
