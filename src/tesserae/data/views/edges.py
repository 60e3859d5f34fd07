"""Edges, computed from the picture: so they exist in any folder of pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.views.base import View

_LUMA = (0.299, 0.587, 0.114)
_REACH = 2  # pixels of blur on each side, against noise
STRONG = 0.25  # step of brightness, of 1, that counts as a whole edge


class Edges(View):
    """How steep the brightness is, one channel: -1 plain, 1 an edge.

    The length of the Sobel gradient of the blurred brightness, over STRONG and cut off at 1, with its square root
    taken so that faint lines show.
    """

    kind = "edges"
    channels = 1
    judged = "edge_error"
    perceptual = False

    def raw(self, pictures, indices) -> Tensor:
        return self.of_picture(pictures.batch(indices, self.column, "colour"))

    def network_input(self, raw: Tensor) -> Tensor:
        return raw.to(torch.float32) / 127.5 - 1

    def rendered(self, x: Tensor) -> Tensor:
        return -x.float().clamp(-1, 1).expand(-1, 3, -1, -1)  # dark lines on white

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """`edge_error`: mean absolute difference, a whole edge being 1."""
        return {"edge_error": (made.clamp(-1, 1) - real).abs().mean((1, 2, 3)) / 2}

    def of_picture(self, images: Tensor) -> Tensor | None:
        luma = torch.tensor(_LUMA, device=images.device)[None, :, None, None]
        grey = (images.float() * luma).sum(1, keepdim=True) / 255  # (B,1,H,W)
        blur = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
        grey = F.pad(grey, (_REACH,) * 4, mode="replicate")
        grey = F.conv2d(F.conv2d(grey, blur.view(1, 1, 1, 5)), blur.view(1, 1, 5, 1))
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device) / 8
        kernels = torch.stack([across, across.t()])[:, None]
        steep = F.conv2d(F.pad(grey, (1,) * 4, mode="replicate"), kernels).norm(dim=1, keepdim=True)
        return (steep / STRONG).clamp(0, 1).sqrt().mul(255).round().to(torch.uint8)
