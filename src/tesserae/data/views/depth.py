"""Depth: one number a pixel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tesserae.data.pictures import PicturesError
from tesserae.data.values import BYTE, FLOAT, WHOLE, Held, is_mask
from tesserae.data.values import FULL as BITS
from tesserae.data.views.base import View

FULL = int(BITS[1])  # of 16 bits


class Depth(View):
    """One channel in [-1,1], from pictures of 8 or 16 bits."""

    kind = "depth"
    channels = 1
    judged = "depth_error"
    perceptual = False

    @classmethod
    def found_in(cls, pictures, column: str) -> Depth:
        """The view of a column of depth. Raises PicturesError where it holds something else, or no one measure."""
        pictures.check_column(column)
        wanted = "view: depth reads a column of depth, and"
        if is_mask(column):
            raise PicturesError(f"{wanted} {column} holds masks: name the column that holds depth, or take view: "
                                "segmentation.")
        if where := pictures.find_coloured(column):
            raise PicturesError(f"{wanted} {column} holds pictures in colour ({where}): name the column that holds "
                                "depth, saved as grey of 8 or 16 bits, or take view: image.")
        held = pictures.held.get(column, Held())
        if column != "image":
            _check_measure(column, held)
        return cls(column, held.ranges)

    def raw(self, pictures, indices) -> Tensor:
        return pictures.batch(indices, self.column, "deep")

    def network_input(self, raw: Tensor) -> Tensor:
        return raw[:, :1].to(torch.float32) * (2 / FULL) - 1

    def rendered(self, x: Tensor) -> Tensor:
        return x.float().clamp(-1, 1).expand(-1, 3, -1, -1)

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """`depth_error`: mean absolute difference, black being 0 and white 1.

        `depth_error_unscaled`: the same in the unit of the files, such as millimetres, where they have one scale.
        """
        error = (made.clamp(-1, 1) - real).abs().mean((1, 2, 3)) / 2
        known = self.ranges.whole or self.ranges.floats
        if not known or known == BITS:
            return {"depth_error": error}
        return {"depth_error": error, "depth_error_unscaled": error * (known[1] - known[0])}

    def of_picture(self, images: Tensor) -> Tensor | None:
        return None


def _check_measure(column: str, held: Held) -> None:
    """Raise PicturesError where files of different kinds have no unit in common."""
    names = {BYTE: "8 bits", WHOLE: "whole numbers of more bits", FLOAT: "floats"}
    kinds = [kind for kind in names if held.files.get(kind)]
    if len(kinds) < 2 or (kinds == [BYTE, WHOLE] and held.ranges.whole == BITS):
        return
    listed = " and ".join(f"{names[kind]} ({held.first[kind]})" for kind in kinds)
    raise PicturesError(f"view: depth needs one measure, and {column} holds {listed}: save all of its files alike, "
                        "as grey of 16 bits.")
