"""Depth: one number a pixel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tesserae.data.views.base import View

FULL = 65535  # of 16 bits


class Depth(View):
    """One channel in [-1,1], from pictures of 8 or 16 bits."""

    kind = "depth"
    channels = 1
    judged = "depth_error"
    perceptual = False

    def stored(self, pictures, indices) -> Tensor:
        return pictures.batch(indices, self.column, deep=True)

    def seen(self, stored: Tensor) -> Tensor:
        return stored[:, :1].to(torch.float32) * (2 / FULL) - 1

    def drawn(self, seen: Tensor) -> Tensor:
        return seen.float().clamp(-1, 1).expand(-1, 3, -1, -1)

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """`depth_error`: mean absolute difference, depth running from 0 to 1."""
        return {"depth_error": (made.clamp(-1, 1) - real).abs().mean((1, 2, 3)) / 2}

    def of_picture(self, images: Tensor) -> Tensor | None:
        return None
