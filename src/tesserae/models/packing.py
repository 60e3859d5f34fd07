"""Wide layers for a few rows on a CPU: their weights lie as oneDNN's products read them.

A step of drawing multiplies every weight with a row a sample. From FEWEST rows on a plain product first copies the
weight into blocks, each time, which takes longer than to read it. Here that is done once, for many steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tesserae.allocation import give_back_memory

FEWEST, MOST = 4, 128  # rows: with fewer nothing is copied, with more the sums take longer than the copies
LARGE = 2**20  # numbers: smaller weights are read from caches, where a call of oneDNN costs more than it saves


class PackedLinear(nn.Module):
    """What a linear layer gives, of its weight in blocks; the layer's own is empty meanwhile."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def unpacked(self) -> Tensor:
        """The weight (out,in), bit for bit."""
        return self.blocks.to_dense()

    def forward(self, x: Tensor) -> Tensor:  # (...,in) -> (...,out)
        return torch.ops.mkldnn._linear_pointwise.default(x, self.blocks, self.linear.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of what `forward` gives, in the same pass."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self.blocks, self.linear.bias, "gelu", [], "none")


@contextmanager
def packed(model: nn.Module, rows: int) -> Iterator[None]:
    """Meanwhile the large layers are packed, where that pays for products with so many rows; without gradients.

    In fp32 on a CPU alone. Each weight is there once, in one layout or the other, and comes back bit for bit.
    """
    found: list[tuple[nn.Module, str]] = []
    try:
        pack(model, rows, found)
        yield
    finally:
        for parent, name in found:
            if isinstance(own := getattr(parent, name), PackedLinear):  # a stop may have come before
                own.linear.weight.data = own.unpacked()
                setattr(parent, name, own.linear)
                del own
                give_back_memory()


def pack(model: nn.Module, rows: int, found: list[tuple[nn.Module, str]]) -> None:
    """The same, for good; `found` takes where each layer is, (parent, name), before it is packed."""
    if not FEWEST <= rows <= MOST:
        return
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _gains(child):
                found.append((parent, name))
                setattr(parent, name, PackedLinear(child))
                child.weight.data = child.weight.new_empty(0)
                give_back_memory()  # the next one's blocks do not always fit where this weight lay


def _gains(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear) or type(layer.weight) is not nn.Parameter:  # sharded ones are not
        return False
    plain = layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return plain and built and layer.weight.numel() >= LARGE and not torch.is_autocast_enabled("cpu")
