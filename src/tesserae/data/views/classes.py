"""Segmentation: each pixel belongs to one of a few classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tesserae.data.views.base import View

MOST = 256  # classes: masks hold a byte a pixel


class Classes(View):
    """One-hot maps; the decoder gives logits, trained with cross-entropy.

    colours: (classes,3), each 0 to 255, of the masks' own palette where they have one.
    """

    kind = "segmentation"
    judged = "error"
    perceptual = False
    smooth = False

    def __init__(self, column: str, colours: list[tuple[int, int, int]]) -> None:
        super().__init__(column)
        self.colours = [tuple(map(int, colour)) for colour in colours]
        self.channels = len(self.colours)

    @classmethod
    def found_in(cls, pictures, column: str) -> Classes:
        pictures.check_column(column)
        return cls(column, pictures.palette(column))

    @classmethod
    def recorded(cls, config) -> Classes:
        return cls(config.column, [(c >> 16, c >> 8 & 255, c & 255) for c in config.colours])

    def record(self) -> dict:
        return super().record() | {"colours": tuple(r << 16 | g << 8 | b for r, g, b in self.colours)}

    def seen(self, stored: Tensor) -> Tensor:
        index = stored[:, 0].long().clamp_max(self.channels - 1)
        return rearrange(F.one_hot(index, self.channels), "b h w c -> b c h w").float()

    def drawn(self, seen: Tensor) -> Tensor:
        palette = torch.tensor(self.colours, dtype=torch.float32, device=seen.device)
        return rearrange(palette[seen.argmax(1)], "b h w c -> b c h w") / 127.5 - 1

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """`error`: share of pixels of a wrong class; `pixel_accuracy`; `miou` over the classes that occur."""
        guess, truth = (rearrange(F.one_hot(x.argmax(1), self.channels), "b h w c -> b c (h w)").bool()
                        for x in (made, real))
        both, either = (guess & truth).sum(-1), (guess | truth).sum(-1)  # (B,classes)
        right = both.sum(-1) / guess.shape[-1]
        iou = (both / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)
        return {"error": 1 - right, "pixel_accuracy": right, "miou": iou}

    def of_picture(self, images: Tensor) -> Tensor | None:
        return None
