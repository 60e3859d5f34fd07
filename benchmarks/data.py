"""What the cases compute on: pictures and codes from a seed, the same for both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.configs import code_side, prefix_of

BATCHES = 4  # different ones, in turn


def pictures(size: Mapping[str, Any], seed: int) -> Tensor:
    """Soft random pictures, BATCHES batches of them, (N,3,H,W) uint8."""
    generator, side = torch.Generator().manual_seed(seed), size["image_size"]
    coarse = torch.rand(BATCHES * size["batch_size"], 3, 8, 8, generator=generator)
    fine = 0.1 * torch.rand(len(coarse), 3, side, side, generator=generator)
    return (0.9 * F.interpolate(coarse, side, mode="bilinear") + fine).mul(255).round().to(torch.uint8)


def random_codes(size: Mapping[str, Any], count: int, side: int, seed: int) -> Tensor:
    """(count,side,side) int64 codes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size["codebook_size"], (count, side, side), generator=generator)


def prefix_and_codes(size: Mapping[str, Any], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What logits are compared on: prefix (count,P) and codes (count,T), int64."""
    length, vocab = prefix_of(size)
    generator = torch.Generator().manual_seed(seed)
    prefix = torch.randint(vocab, (count, length), generator=generator)
    return prefix, random_codes(size, count, code_side(size), seed + 1).flatten(1)


def vectors(size: Mapping[str, Any], seed: int) -> Tensor:
    """z_hat (B,n_z,h,w), drawn as the codes of the search are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size["batch_size"], size["codebook_dim"], size["side"], size["side"], generator=generator)


class HeldPictures:
    """Pictures (N,3,H,W) uint8 in memory behind as much of `tesserae.data.pictures.Pictures` as a step reads."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.size = images, images.shape[-1]
        self.held = {}  # no column of more than 8 bits

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int] | np.ndarray, column: str = "image", form: str = "raw") -> Tensor:
        return self.images[torch.as_tensor(np.asarray(indices))]

    def check_column(self, column: str) -> None:
        pass
