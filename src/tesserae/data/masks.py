"""Masks: at each pixel the index of a class, from 0 to 255. What is no index is refused with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tesserae.data.entries import Rejected
from tesserae.data.palette import MOST, VOID

MASKS = ("segmentation", "mask", "label", "instance", "semantic")  # words in the names of such columns
LOSSY = ("JPEG", "MPO", "JPEG2000")


def is_mask(column: str) -> bool:
    """Whether a paired column holds indices, by its name."""
    return any(word in column.lower() for word in MASKS)


def as_indices(column: str, picture: Image.Image, lossy: bool) -> Image.Image:
    """A mask as it came -> mode P or L, a pixel's value its index. Raises Rejected.

    Bitmaps give 0 and 1. Colours are accepted where red, green and blue are the same, as painting programs save grey.
    lossy: from a file that keeps no exact values, such as a JPEG: fine where no third value has come in.
    """
    if picture.mode == "P":
        indices = _whole_palette(picture)
    elif picture.mode == "F":
        raise Rejected(f"{column} holds floats: save it as a PNG of whole numbers")
    else:
        indices = Image.fromarray(_values(column, picture))
        if picture.mode == "PA":
            indices.putpalette(picture.getpalette("RGB"))
            indices = _whole_palette(indices)
    if lossy and (count := len(np.unique(np.asarray(indices)))) > 2:
        raise Rejected(f"{column} is a JPEG or the like, which smears the borders between indices ({count} values "
                       "occur): save masks as PNG")
    return indices


def file_maximum(opened: Image.Image) -> int | None:
    """The number that a grey file calls white, where Pillow makes 255 or 65,535 of it; None: numbers stay the same.

    It does so for PNG and TIFF files of 2 or 4 bits and for PGM files. To be asked before `load`.
    """
    arguments = opened.tile[0][3] if getattr(opened, "tile", None) else None
    first, *others = arguments if isinstance(arguments, tuple) else (arguments,)
    if opened.format == "PPM" and first == "L" and others and isinstance(others[0], int):
        return others[0]
    bits = re.match(r"L;([24])", first) if isinstance(first, str) else None
    return (1 << int(bits[1])) - 1 if bits else None


def unscaled(picture: Image.Image, full: int | None) -> Image.Image:
    """A loaded grey picture with the numbers that its file holds; full: what `file_maximum` said of it."""
    white = {"L": 255, "I": 65_535}.get(picture.mode)
    if full is None or white is None:
        return picture
    values = np.rint(np.asarray(picture).astype(np.float64) * full / white)
    found = Image.fromarray(values.astype(np.uint8 if full <= 255 else np.int32))
    found.info = picture.info  # its EXIF
    return found


def _whole_palette(picture: Image.Image) -> Image.Image:
    """Mode P with a palette of 256 colours: of a shorter one, PNG would store too few bits for the indices."""
    colours = picture.getpalette("RGB") or []
    whole = picture.copy()
    whole.putpalette(colours + [0] * (3 * MOST - len(colours)))
    return whole


def _values(column: str, picture: Image.Image) -> np.ndarray:
    """(H,W) uint8."""
    if picture.mode not in ("1", "L", "LA", "La", "PA") and not picture.mode.startswith("I"):
        pixels = np.asarray(picture.convert("RGB"))
        if (pixels != pixels[..., :1]).any():
            raise Rejected(f"{column} is in colours, not in indices: save it in grey or with a palette, a number for "
                           "each class")
        return np.ascontiguousarray(pixels[..., 0])
    pixels = np.asarray(picture)
    pixels = pixels.reshape(*pixels.shape[:2], -1)[..., 0]
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high >= MOST:
        raise Rejected(f"{column} holds the index {high if high >= MOST else low}: 0 to {MOST - 1} can be kept")
    return np.ascontiguousarray(pixels.astype(np.uint8))


def is_lossy(kind: str | None, content: bytes) -> bool:
    """Whether a file of this format, with these bytes, keeps no exact values."""
    return kind in LOSSY or (kind == "WEBP" and b"VP8L" not in content[:64])


@dataclass
class MaskUse:
    """What the masks of one column have in common, gathered one by one. void: how many of them hold index VOID."""

    column: str
    masks: int = 0
    void: int = 0
    indices: set[int] = field(default_factory=set)
    colours: dict[int, set[tuple]] = field(default_factory=dict)  # of each index, by the masks' palettes

    def add(self, mask: Image.Image) -> None:
        """One more, as `as_indices` gives it."""
        found = np.flatnonzero(mask.histogram()).tolist()
        self.masks += 1
        self.void += VOID in found
        self.indices.update(found)
        if mask.mode == "P":
            colours = mask.getpalette("RGB") or []
            for index in found:
                self.colours.setdefault(index, set()).add(tuple(colours[3 * index:3 * index + 3]))

    def notes(self) -> list[str]:
        """What is odd about them, a sentence each."""
        classes = self.indices - {VOID}
        said, highest = [self._of_void(classes)] if self.void else [], max(classes, default=0)
        if highest + 1 > 2 * len(classes) and len(classes) > 0:
            said.append(f"{self.column} holds {len(classes)} different indices, the largest {highest}, so its "
                        f"VQGAN would have {highest + 1} classes, of which most never occur: number them from 0 "
                        "without gaps.")
        if any(len(found) > 1 for found in self.colours.values()):
            said.append(f"The palettes of {self.column} give one index several colours: see that it means the same "
                        "everywhere.")
        return said

    def _of_void(self, classes: set[int]) -> str:
        where = f"{self.void:,} of {self.masks:,} masks"
        if len(classes) < 2:
            return (f"{self.column} holds {len(self.indices)} different indices, the largest 255, so its VQGAN would "
                    "have 256 classes: where 255 is the second class, save the masks with 1 bit or as 0 and 1; where "
                    "it marks void, set ignore_index: 255 in the VQGAN's block.")
        return (f"{self.column} holds the index 255 in {where}, which usually marks void, pixels of no class: "
                "ignore_index: 255 in the block of its VQGAN, as in presets/own-masks.yaml, leaves them out of the "
                "network's input, loss, error and mIoU; without it 255 is a class, and the VQGAN has 256.")
