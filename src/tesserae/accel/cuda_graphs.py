"""CUDA graphs: a function of tensors that is recorded once and then replayed without Python."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from tesserae.models.kv_cache import KVCache
from tesserae.models.transformer import LatentTransformer

ALIGNED = 16  # positions: fused attention reads masks of such widths without a copy


class Recorder:
    """Calls functions of tensors; each is recorded the second time it meets inputs of the same shapes.

    From then on the recording is replayed with the new inputs, and its result is overwritten by the next replay. So
    the functions must do the same operations each time, and whatever else they read must stay where it is: a Recorder
    lives no longer than that, nor than the autocast it was first called in. The first call runs as it is, which
    settles what kernels choose and autocast keeps.
    """

    def __init__(self) -> None:
        self.pool = None
        self.known: dict[Hashable, tuple | None] = {}

    def __call__(self, name: Hashable, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """function(*inputs), a tensor; `name` distinguishes functions."""
        key = (name, *(part.shape for part in inputs))
        if key not in self.known:
            self.known[key] = None
            return function(*inputs)
        if self.known[key] is None:
            self.known[key] = self.record(function, inputs)
        graph, own_inputs, result = self.known[key]
        for own, part in zip(own_inputs, inputs):
            own.copy_(part)
        graph.replay()
        return result

    def record(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple:
        """A graph, the inputs it reads, and the result it writes."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        own, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = function(*own)
        return graph, own, result


class StaticKVCache(KVCache):
    """A cache that is attended as a whole, masked behind the position: a step is always the same operations.

    The position of the next codes is a tensor, `at`, the same for every sample. Buffers begin as zeros, because what
    is masked must still be a number.
    """

    def __init__(self, like: KVCache, capacity: int) -> None:
        super().__init__(len(like.buffers), like.batch, capacity)
        self.buffers = [tuple(part.new_zeros((like.batch, part.shape[1], capacity, part.shape[3])) for part in pair)
                        for pair in like.buffers]
        self.positions = self.mask = None

    def copy_from(self, other: KVCache) -> None:
        """Hold what another cache of the same batch holds."""
        self.length = other.length
        for own, theirs in zip(self.buffers, other.buffers):
            for buffer, part in zip(own, theirs):
                buffer[:, :, :other.length] = part[:, :, :other.length]

    def at(self, positions: Tensor) -> None:
        """The next codes lie at positions (t,) int64, and attend to all up to themselves."""
        keys = self.buffers[0][0]
        behind = torch.arange(self.capacity, device=keys.device) > positions[:, None]
        zeros = torch.zeros(behind.shape, dtype=keys.dtype, device=keys.device)
        self.positions, self.mask = positions, zeros.masked_fill_(behind, -torch.inf)  # (t,capacity)

    def next_positions(self, count: int) -> Tensor:
        """Where the next codes lie, (t,) int64, as `at` said."""
        return self.positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.buffers[layer]
        keys.index_copy_(2, self.positions, k)
        values.index_copy_(2, self.positions, v)
        return keys, values

    def advance(self, positions: int) -> None:
        """The host counts, see `RecordedSteps.step`."""


class RecordedSteps:
    """A network's `prefill` and `step`, whose steps are CUDA graphs."""

    def __init__(self, model: LatentTransformer, recorder: Recorder | None = None) -> None:
        self.model, self.recorder = model, recorder or Recorder()
        self.every = torch.arange(model.config.block_size, device=model.device)
        self.caches: dict[int, StaticKVCache] = {}  # by batch: recordings write to them

    def prefill(self, prefix: Tensor, indices: Tensor | None = None,
                max_tokens: int | None = None) -> tuple[Tensor, StaticKVCache]:
        """As `LatentTransformer.prefill`, for all codes. The cache is overwritten by the next of the same batch."""
        logits, cache = self.model.prefill(prefix, indices)
        if cache.batch not in self.caches:
            capacity = -(-self.model.config.block_size // ALIGNED) * ALIGNED
            self.caches[cache.batch] = StaticKVCache(cache, capacity)
        own = self.caches[cache.batch]
        own.copy_from(cache)
        return logits, own

    def step(self, indices: Tensor, cache: StaticKVCache) -> Tensor:
        """The next codes of every sample, (B,) or (B,t) int64 -> logits (B,K), overwritten by the next step."""
        indices = indices if indices.ndim == 2 else indices[:, None]
        positions = self.every[cache.length:cache.length + indices.shape[1]]
        cache.length += indices.shape[1]

        def recorded(codes: Tensor, positions: Tensor) -> Tensor:
            cache.at(positions)
            return self.model.step(codes, cache)

        return self.recorder(cache.batch, recorded, indices, positions)
