"""Keys and values of the positions that a transformer has processed, so that each is processed once."""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """Buffers (batch, heads, capacity, head size) for the keys and for the values of every layer.

    length: how many positions are cached, the same for every sample. mask: what is added to the scores of the next
    positions, None where they attend to all that is cached and to those before them. The buffers are allocated at the
    first write, because only then is their type known under autocast.
    """

    mask: Tensor | None = None

    def __init__(self, n_layer: int, batch: int, capacity: int) -> None:
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.buffers: list[tuple[Tensor, Tensor] | None] = [None] * n_layer

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (batch, heads, t, d) of one layer, and return those of all `length` + t positions.

        `length` grows by `advance`, once for all layers.
        """
        start, end = self.length, self.length + k.shape[2]
        if self.buffers[layer] is None:
            shape = (self.batch, k.shape[1], self.capacity, k.shape[3])
            self.buffers[layer] = k.new_empty(shape), v.new_empty(shape)
        keys, values = self.buffers[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def next_positions(self, count: int) -> slice | Tensor:
        """Where the next `count` positions lie."""
        return slice(self.length, self.length + count)

    def advance(self, positions: int) -> None:
        """So many positions were appended in every layer."""
        self.length += positions
