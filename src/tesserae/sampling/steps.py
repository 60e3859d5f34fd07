"""One step of the transformer after the other, without the host in between: on a GPU as recorded graphs.

A step of one code is some hundred small operations, which a GPU is done with sooner than Python has asked for them.
Recorded once as a CUDA graph, they are asked for together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tesserae.models.packing import packed
from tesserae.models.transformer import Cache, LatentTransformer

ALIGNED = 16  # positions: fused attention reads masks of such widths without a copy


def aligned(positions: int) -> int:
    """So many positions, or a few more, as fused attention likes them."""
    return -(-positions // ALIGNED) * ALIGNED


class Recorder:
    """Calls functions of tensors; on a GPU each is recorded the second time it sees inputs of the same shapes.

    From then on its recording is played with the new inputs, and what it returns is overwritten by the next playing.
    So the functions must do the same operations each time, and whatever else they read must stay where it is: a
    Recorder lives no longer than that, nor than the autocast it was first called in. The first call runs as it is,
    which settles what kernels choose and autocast keeps.
    """

    allowed = True

    def __init__(self, device: torch.device) -> None:
        self.records = device.type == "cuda" and self.allowed
        self.pool = torch.cuda.graph_pool_handle() if self.records else None
        self.known: dict[Hashable, tuple | None] = {}

    def __call__(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), a tensor; `name` tells functions apart."""
        if not self.records:
            return function(*inputs)
        key = (name, *(part.shape for part in inputs))
        if key not in self.known:
            self.known[key] = None
            return function(*inputs)
        if self.known[key] is None:
            self.known[key] = self._recorded(function, inputs)
        graph, places, result = self.known[key]
        for place, part in zip(places, inputs):
            place.copy_(part)
        graph.replay()
        return result

    def _recorded(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple:
        places, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = function(*places)
        return graph, places, result


@contextmanager
def unrecorded() -> Iterator[None]:
    """Recorders that are made meanwhile record nothing, for those who want to see every operation."""
    Recorder.allowed, before = False, Recorder.allowed
    try:
        yield
    finally:
        Recorder.allowed = before


@contextmanager
def drawing(model: LatentTransformer, rows: int = 0) -> Iterator[None]:
    """Without dropout, and ready for many products of so few rows, 0: none; afterwards the model is what it was."""
    training = model.training
    model.eval()
    try:
        with packed(model, rows), model.steady():
            yield
    finally:
        model.train(training)


class Steps:
    """`LatentTransformer.step` from a cache on, as often as asked: `steps.start(cache)`, then `steps(codes)`."""

    def __init__(self, model: LatentTransformer) -> None:
        self.model, device = model, model.device
        self.recorder = Recorder(device)
        self.every = torch.arange(model.config.block_size, device=device)
        self.kept: dict[int, Cache] = {}  # by batch: buffers that recordings write to
        self.cache: Cache | None = None

    def start(self, cache: Cache) -> None:
        """Go on from what `cache` holds, which must be at least a prefix."""
        self.cache = self._kept(cache) if self.recorder.records else cache

    def __call__(self, codes: Tensor) -> Tensor:
        """The next codes of every sample, (B,) or (B,t) int64 -> logits (B,K) of the one after them."""
        cache = self.cache
        if not self.recorder.records:
            return self.model.step(codes, cache)
        codes = codes if codes.ndim == 2 else codes[:, None]
        places = self.every[cache.length:cache.length + codes.shape[1]].expand(cache.batch, -1)
        cache.length += codes.shape[1]
        return self.recorder(cache.batch, lambda *given: self.model.step_at(*given, cache), codes, places)

    def _kept(self, cache: Cache) -> Cache:
        """The buffers for a batch of this size, filled from `cache`."""
        if cache.batch not in self.kept:
            self.kept[cache.batch] = cache.blank(cache.batch, aligned(self.model.config.block_size))
        kept = self.kept[cache.batch]
        kept.length = cache.length
        kept.take(cache, torch.arange(cache.batch, device=self.every.device))
        return kept
