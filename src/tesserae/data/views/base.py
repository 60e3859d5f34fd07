"""What all views have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tesserae.data.values import NO_RANGES, Held, Ranges

Measures = dict[str, Tensor]  # (B,) each


class View:
    """The interface; this class itself is the view of a picture with three channels in [-1,1].

    A view has three forms. *Raw*: (B,c,H,W) integers as the prepared set holds them, which are mirrored, cut and
    enlarged. *Network input*: (B,channels,H,W) floats, what the encoder reads; the decoder's output is of the same
    kind (for classes: logits). *Rendered*: pictures to look at.

    kind: its name in params.yaml. channels: of the network input and of the decoder's output. judged: the measure of
    reconstructions whose best model is kept; the smaller the better. perceptual: whether LPIPS and a discriminator
    make sense of it. smooth: whether it may be interpolated. ranges: the scale of its column's files of more than 8
    bits, by which an external picture is read.
    """

    kind = "image"
    channels = 3
    judged = "lpips"
    perceptual = True
    smooth = True

    def __init__(self, column: str = "image", ranges: Ranges = NO_RANGES) -> None:
        self.column, self.ranges = column, ranges

    @classmethod
    def found_in(cls, pictures, column: str) -> View:
        """The view of a column of these Pictures. Raises PicturesError where it is none."""
        pictures.check_column(column)
        return cls(column, pictures.held.get(column, Held()).ranges)

    @classmethod
    def recorded(cls, config) -> View:
        """The view that a VQGANConfig describes."""
        return cls(config.column, Ranges(config.whole_range, config.float_range))

    def record(self) -> dict:
        """What VQGANConfig keeps of it, for `recorded`."""
        return {"view": self.kind, "column": self.column, "in_channels": self.channels,
                "out_channels": self.channels, "whole_range": self.ranges.whole, "float_range": self.ranges.floats}

    def raw(self, pictures, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The raw form of some pictures, (B,c,H,W) uint8 or int32."""
        return pictures.batch(indices, self.column, "colour")

    def network_input(self, raw: Tensor) -> Tensor:
        """Raw form -> what the encoder reads, (B,channels,H,W) float32."""
        return raw.to(torch.float32) / 127.5 - 1

    def rendered(self, x: Tensor) -> Tensor:
        """Network input, or the decoder's output -> pictures to look at, (B,3,H,W) in [-1,1]."""
        return x.float().clamp(-1, 1)

    def notes(self, splits: Sequence, block: str) -> list[str]:
        """What is odd about these Pictures, a sentence each, before training; block: its key in params.yaml."""
        return []

    def legend(self, rendered: Tensor) -> list:
        """The colours of pictures from `rendered`, a `palette.LegendEntry` each; [] where they have no meaning."""
        return []

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """How near reconstructions are, beside what `evaluation.images` measures of pictures: (B,) each."""
        return {}

    def of_picture(self, images: Tensor) -> Tensor | None:
        """The raw form computed from RGB pictures (B,3,H,W) uint8; None where it cannot be."""
        return images
