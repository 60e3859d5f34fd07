"""Sets of pictures that are computed batch by batch, so that memory holds a batch and not the set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.views import Viewed, view_of
from tesserae.models.vqgan import VQGAN

AT_ONCE = 32  # pictures that are made and measured together


def as_floats(images: Tensor) -> Tensor:
    """Pictures, uint8 or floats in [-1,1] -> float32 in [-1,1]."""
    return to_unit(images) if images.dtype == torch.uint8 else images.float()


@dataclass(frozen=True)
class Images:
    """A set of pictures in [-1,1], made batch by batch.

    make: numbers (B,) int64 in [0, count) -> pictures (B,3,H,W), on the device that they are measured on. Iterating
    gives all of them in batches of AT_ONCE, any number of times; each time they are computed again.
    """

    count: int
    make: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, numbers: Tensor | Sequence[int]) -> Tensor:
        return self.make(torch.as_tensor(numbers, dtype=torch.int64))

    def __iter__(self) -> Iterator[Tensor]:
        return (self.make(numbers) for numbers in torch.arange(self.count).split(AT_ONCE) if len(numbers))

    def some(self, numbers: Tensor | Sequence[int]) -> Images:
        """The pictures of these numbers, in this order."""
        numbers = torch.as_tensor(numbers, dtype=torch.int64)
        return Images(len(numbers), lambda chosen: self.make(numbers[chosen]))


def of_tensor(images: Tensor, device: torch.device | str = "cpu") -> Images:
    """Pictures that are in memory, (N,3,H,W): uint8, or floats in [-1,1]."""
    return Images(len(images), lambda numbers: as_floats(images[numbers].to(device)))


def of_pictures(pictures: Viewed, device: torch.device | str = "cpu") -> Images:
    """The prepared pictures, as their view shows them."""
    return Images(len(pictures), lambda numbers: to_unit(pictures.batch(numbers.tolist()).to(device)))


def of_codes(vqgan: VQGAN, maps: Tensor) -> Images:
    """Code maps (N,h,w) decoded, as the VQGAN's view shows them, on its device."""
    device, view = vqgan.codebook.device, view_of(vqgan.config)

    @torch.no_grad()
    def make(numbers: Tensor) -> Tensor:
        return view.rendered(vqgan.decode(maps[numbers].long().to(device)))

    return Images(len(maps), make)


def joined(first: Images, second: Images) -> Images:
    """The pictures of two sets, one after the other."""
    def make(numbers: Tensor) -> Tensor:
        early = numbers < len(first)
        parts = [each[chosen] for each, chosen in ((first, numbers[early]), (second, numbers[~early] - len(first)))
                 if len(chosen)]
        order = torch.cat([early.nonzero()[:, 0], (~early).nonzero()[:, 0]]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]

    return Images(len(first) + len(second), make)
