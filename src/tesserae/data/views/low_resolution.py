"""The picture at a fraction of its resolution: conditioning on it is super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.views.base import View

FACTOR = 4  # pixels that are averaged to one, a side


class LowResolution(View):
    """Three channels in [-1,1]: the picture averaged over FACTOR x FACTOR pixels and brought back to its size."""

    kind = "low_resolution"

    def raw(self, pictures, indices) -> Tensor:
        return self.of_picture(pictures.batch(indices, self.column, "colour"))

    def of_picture(self, images: Tensor) -> Tensor | None:
        size = images.shape[-2:]
        small = F.interpolate(images.float(), [max(1, side // FACTOR) for side in size], mode="area")
        large = F.interpolate(small, size, mode="bicubic", align_corners=False)
        return large.round().clamp(0, 255).to(torch.uint8)
