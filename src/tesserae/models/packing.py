"""Layers for drawing on a CPU: their weights lie as oneDNN's products read them, in fp32 or, under autocast, in bf16.

A step of drawing multiplies every weight with a row a sample. From FEWEST rows on a plain product copies a large
weight into blocks, each time, which takes longer than to read it; in bf16, and on some processors that MKL does not
know well, plain products are slow with any number of rows. Here weights are laid into blocks once, for many steps.
"""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from tesserae.allocation import give_back_memory
from tesserae.processor import has_bf16

FEWEST, MOST = 4, 128  # rows: with fewer nothing is copied, with more the sums take longer than the copies
PIECE = 2**16  # numbers that are taken apart, or put together, at once
LEFT = 2**26  # bytes that were let go before the system has them again: the next blocks do not always fit there
LARGE = 2**20  # numbers: smaller weights are read from caches, where a call of oneDNN costs more than it saves


class PackedLinear(nn.Module):
    """What a linear layer gives, of its weight in blocks; the layer's own is empty meanwhile.

    dtype: the product's, float32 or bfloat16, whatever that of its input.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear, self.dtype = linear, dtype
        weight, self.rest = (linear.weight.detach(), None) if dtype == torch.float32 else _halves(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.held, self.freed = None, False  # the weight where it was, and whether that is empty

    def take(self) -> None:
        """Empty the layer's weight, whose memory is let go unless others lie in it."""
        weight = self.linear.weight
        self.held, weight.data = weight.detach(), weight.new_empty(0)
        if _alone(self.held):
            self.freed = True
            self.held.untyped_storage().resize_(0)

    def bring_back(self) -> nn.Linear:
        """The layer, with its weight where it was: an optimiser may have views of it."""
        if self.freed:
            self.held.untyped_storage().resize_(self.held.nbytes)
            self.held.copy_(self.unpacked())
            self.freed = False
        if self.held is not None:
            self.linear.weight.data, self.held = self.held, None
        return self.linear

    def unpacked(self) -> Tensor:
        """The weight (out,in), bit for bit."""
        dense = self.blocks.to_dense()
        return dense if self.rest is None else _joined(dense, *self.rest)

    def forward(self, x: Tensor) -> Tensor:
        """(...,in) -> (...,out), in the input's precision."""
        return self.product()(x).to(x.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of what `forward` gives, in the same pass and in the product's precision, for the next product."""
        return self.product("gelu", "none")(x)

    def product(self, then: str = "none", how: str = "") -> Callable[[Tensor], Tensor]:
        """What makes the product of an input, in the product's precision, with the weights looked up now."""
        multiply, blocks, bias = torch.ops.mkldnn._linear_pointwise.default, self.blocks, self.bias
        if self.dtype == torch.bfloat16:
            return lambda x: multiply(x.bfloat16(), blocks, bias, then, [], how)
        return lambda x: multiply(x, blocks, bias, then, [], how)


def _alone(weight: Tensor) -> bool:
    """Whether nothing else lies in its memory, which is this process's own."""
    storage = weight.untyped_storage()
    return storage.nbytes() == weight.nbytes and storage.resizable()


def _halves(weight: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """fp32 as the nearest bf16, and what that leaves: the lower 16 bits, and where a half was rounded down."""
    near, low = (torch.empty(weight.numel(), dtype=dtype) for dtype in (torch.bfloat16, torch.int16))
    down = []
    for start, part in _parts(weight.detach()):
        to, stay = (whole[start:start + len(part)] for whole in (near, low))
        to.copy_(part)
        stay.copy_(part.view(torch.int32))
        half = (stay == -2**15).nonzero().squeeze(1)
        down.append(start + half[part[half].abs() > to[half].abs()])
    return near.view_as(weight), (low, torch.cat(down))


def _joined(near: Tensor, low: Tensor, down: Tensor) -> Tensor:
    """What `_halves` made its two of."""
    bits = torch.empty(len(low), dtype=torch.int32)
    for start, part in _parts(near.view(torch.int16)):
        whole = bits[start:start + len(part)].copy_(part)
        whole.bitwise_left_shift_(16).add_(low[start:start + len(part)])  # less than nothing where rounded up
    bits[down] += 2**16
    return bits.view(torch.float32).view(near.shape)


def _parts(numbers: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Pieces that stay in caches, each with where it begins."""
    flat = numbers.reshape(-1)
    return ((start, flat[start:start + PIECE]) for start in range(0, len(flat), PIECE))


@contextmanager
def packed(model: nn.Module, rows: int) -> Iterator[None]:
    """Meanwhile layers are packed, where that pays for products with so many rows, 0: none; without gradients.

    On a CPU alone, in fp32, or in bf16 where autocast has begun, which is off meanwhile: all else is in fp32, so
    that few queries find their way through many keys as quickly as they can. Each weight is there once, in one
    layout or the other, and comes back bit for bit, to where it was.
    """
    found: list[tuple[nn.Module, str]] = []
    try:
        pack(model, rows, found)
        with torch.autocast("cpu", enabled=False) if _has(model, torch.bfloat16) else nullcontext():
            yield
    finally:
        left = 0
        for parent, name in found:
            if isinstance(own := getattr(parent, name), PackedLinear):  # a stop may have come before
                setattr(parent, name, layer := own.bring_back())
                del own
                left = _given_back(left + layer.weight.nbytes)


def pack(model: nn.Module, rows: int, found: list[tuple[nn.Module, str]]) -> None:
    """The same, for good; `found` takes where each layer is, (parent, name), before it is packed."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if not rows or not _built(dtype):
        return
    left = 0
    for parent in [module for module in model.modules() if not isinstance(module, PackedLinear)]:
        for name, child in parent.named_children():
            if _gains(child, rows, dtype):
                found.append((parent, name))
                left += child.weight.nbytes
                setattr(parent, name, own := PackedLinear(child, dtype))
                own.take()
                left = _given_back(left)


def _given_back(left: int) -> int:
    """How many bytes that were let go are still kept: where they are many, none."""
    if left < LEFT:
        return left
    give_back_memory()
    return 0


def _has(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether layers are packed in that precision, by this use of `packed` or by one around it."""
    return any(isinstance(module, PackedLinear) and module.dtype == dtype for module in model.modules())


def _built(dtype: torch.dtype) -> bool:
    """Whether there are such products here."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bf16())


def _gains(layer: nn.Module, rows: int, dtype: torch.dtype) -> bool:
    if not isinstance(layer, nn.Linear) or type(layer.weight) is not nn.Parameter:  # sharded ones are not
        return False
    if layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return False
    if dtype == torch.bfloat16 or (foreign() and wide()):
        return True
    return FEWEST <= rows <= MOST and (layer.weight.numel() >= LARGE or foreign())


@functools.cache
def foreign() -> bool:
    """Whether plain products are those of a library, MKL, that another maker's processors are not known to.

    With AVX-512 they are slow there whatever their size, with AVX2 alone for a few rows. A product is not timed for
    it: next to others' work the result would change from run to run, and codes by rounding with it.
    """
    return torch.backends.mkl.is_available() and _maker() not in ("", "GenuineIntel")


def wide() -> bool:
    """Whether the processor has AVX-512."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _maker() -> str:
    """Of the processor, as it calls itself; empty where it does not say."""
    with suppress(OSError):
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else ""
    found = re.search(r"\w*(?:Genuine|Authentic|Centaur)\w*", platform.processor())  # as Windows has it
    return found[0] if found else ""
