"""Segmentation: each pixel belongs to one of a few classes, or to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tesserae.data.palette import BLACK, NO_CLASS, VOID, Colour, LegendEntry, colours_of, legend
from tesserae.data.pictures import PicturesError
from tesserae.data.views.base import View
from tesserae.scenes.names import SEGMENT_NAMES, SEGMENT_PALETTE


class Classes(View):
    """One-hot maps; the decoder gives logits, trained with cross-entropy.

    colours: (classes,3), each 0 to 255, of the masks' own palette where they have one that tells them apart.
    ignore_index: the index of void, pixels of no class, which have no channel set; -1: there is none. void: its
    colour.
    """

    kind = "segmentation"
    judged = "error"
    perceptual = False
    smooth = False

    def __init__(self, column: str, colours: Sequence[Colour], ignore_index: int = -1,
                 void: Colour = BLACK) -> None:
        super().__init__(column)
        self.colours = [tuple(map(int, colour)) for colour in colours]
        self.channels, self.ignore_index, self.void = len(self.colours), ignore_index, tuple(map(int, void))

    @classmethod
    def found_in_all(cls, splits: Sequence, column: str, ignore_index: int = -1, key: str = "") -> Classes:
        """The view of a column of these Pictures, whose highest index, but for void, says how many classes there are.

        key: the parameter that names the column, for the sentence. Raises PicturesError where it holds no masks.
        """
        used = sorted({index for pictures in splits for index in pictures.mask_indices(column, key)})
        classes = [index for index in used if index != ignore_index]
        if not classes:
            raise PicturesError(f"The masks of {column} hold nothing but the index {ignore_index}, which "
                                "ignore_index leaves out: set it to -1, or repair the masks.")
        colours = colours_of(used, next(filter(None, (each.own_palette(column) for each in splits)), []))
        void = colours[ignore_index] if ignore_index >= 0 else BLACK
        return cls(column, colours[:classes[-1] + 1], ignore_index, void)

    @classmethod
    def found_in(cls, pictures, column: str) -> Classes:
        return cls.found_in_all([pictures], column)

    @classmethod
    def recorded(cls, config) -> Classes:
        return cls(config.column, [_unpacked(colour) for colour in config.colours], config.ignore_index,
                   _unpacked(config.void_colour))

    def record(self) -> dict:
        return super().record() | {"colours": tuple(_packed(colour) for colour in self.colours),
                                   "ignore_index": self.ignore_index, "void_colour": _packed(self.void)}

    @property
    def names(self) -> dict[int, str]:
        """Words for the classes, where they are known: those of the built-in scenes."""
        return dict(enumerate(SEGMENT_NAMES)) if self.of_scenes else {}

    @property
    def of_scenes(self) -> bool:
        """Whether the classes are those of the built-in scenes, to judge by their colours."""
        return self.colours == list(SEGMENT_PALETTE[:self.channels])

    def notes(self, splits: Sequence, block: str) -> list[str]:
        used = {index for pictures in splits for index in pictures.mask_indices(self.column)}
        notes, missing = [], self.channels - len(used - {self.ignore_index})
        if VOID in used and self.ignore_index < 0:
            notes.append(f"The masks of {self.column} hold the index {VOID}, which usually marks void: {block}."
                         f"ignore_index: {VOID} leaves these pixels out of network input, loss, error and mIoU; now "
                         "they are a class.")
        if self.ignore_index >= 0 and self.ignore_index not in used:
            notes.append(f"{block}.ignore_index = {self.ignore_index} occurs in no mask of {self.column}.")
        if missing > 0:
            notes.append(f"Of the {self.channels} classes of {self.column}, 0 to {self.channels - 1}, {missing} "
                         "occur in no mask.")
        return notes

    def raw(self, pictures, indices) -> Tensor:
        """(B,1,H,W) uint8. Raises PicturesError where it holds an index that is no class and not void."""
        found = pictures.batch(indices, self.column)
        index = found.to(torch.int16)
        strange = index[(index >= self.channels) & (index != self.ignore_index)]
        if len(strange):
            raise PicturesError(f"{self.column} holds the index {int(strange.max())}, and this VQGAN's classes are 0 "
                                f"to {self.channels - 1}: it was trained on other masks; run dvc repro.")
        return found

    def network_input(self, raw: Tensor) -> Tensor:
        index = raw[:, 0].long().clamp_max(self.channels)
        if self.ignore_index >= 0:
            index = index.masked_fill(index == min(self.ignore_index, self.channels), self.channels)
        return rearrange(F.one_hot(index, self.channels + 1)[..., :-1].float(), "b h w c -> b c h w")

    def targets(self, raw: Tensor) -> Tensor:
        """Raw form (B,1,H,W) -> (B,H,W) int16: the class of each pixel, NO_CLASS where it is void."""
        index = raw[:, 0].to(torch.int16)
        return index.masked_fill(index == self.ignore_index, NO_CLASS) if self.ignore_index >= 0 else index

    def rendered(self, x: Tensor) -> Tensor:
        palette = torch.tensor([*self.colours, self.void], dtype=torch.float32, device=x.device)
        index = torch.where(x.any(1), x.argmax(1), self.channels)  # void has no channel set
        return rearrange(palette[index], "b h w c -> b c h w") / 127.5 - 1

    def legend(self, rendered: Tensor) -> list[LegendEntry]:
        """The classes that occur in pictures that `rendered` gave, (B,3,H,W), with their colours and names."""
        pixels = rendered.detach().cpu()
        if pixels.is_floating_point():
            pixels = pixels.add(1).mul(127.5).round()
        red, green, blue = pixels.long().unbind(1)
        colours, counts = (red << 16 | green << 8 | blue).unique(return_counts=True)
        own = {_packed(colour): index for index, colour in reversed(list(enumerate(self.colours)))}
        void = {_packed(self.void)} if self.ignore_index >= 0 else set()
        found = dict(zip(colours.tolist(), counts.tolist()))
        shown = {own[colour]: count for colour, count in found.items() if colour in own and colour not in void}
        return legend(shown, self.colours, self.names) + [LegendEntry("void", self.void)] * len(void & found.keys())

    def measures(self, made: Tensor, real: Tensor) -> Mapping[str, Tensor]:
        """`error`: fraction of pixels of a wrong class; `pixel_accuracy`; `miou` over the classes that occur.

        Pixels of no class count nowhere; a picture of nothing else has NaN.
        """
        known = rearrange(real.any(1), "b h w -> b 1 (h w)")
        guess, truth = (rearrange(F.one_hot(x.argmax(1), self.channels), "b h w c -> b c (h w)").bool() & known
                        for x in (made, real))
        both, either = (guess & truth).sum(-1), (guess | truth).sum(-1)  # (B,classes)
        right = both.sum(-1) / known.sum((1, 2))
        iou = (both / either.clamp_min(1)).sum(-1) / (either > 0).sum(-1)
        return {"error": 1 - right, "pixel_accuracy": right, "miou": iou}

    def of_picture(self, images: Tensor) -> Tensor | None:
        return None


def _packed(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _unpacked(colour: int) -> Colour:
    return colour >> 16, colour >> 8 & 255, colour & 255
