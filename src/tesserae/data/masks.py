"""Masks: at each pixel the index of a class, from 0 to 255. What is no index is refused with the reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tesserae.data.entries import Rejected

MASKS = ("segmentation", "mask", "label", "instance", "semantic")  # words in the names of such columns
MOST = 256  # indices: a mask is stored with a byte a pixel
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
        indices = picture
    elif picture.mode == "F":
        raise Rejected(f"{column} holds floats: save it as a PNG of whole numbers")
    else:
        indices = Image.fromarray(_values(column, picture))
        if picture.mode == "PA":
            indices.putpalette(picture.getpalette())
    if lossy and (count := len(np.unique(np.asarray(indices)))) > 2:
        raise Rejected(f"{column} is a JPEG or the like, which smears the borders between indices ({count} values "
                       "occur): save masks as PNG")
    return indices


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
    """What the masks of one column have in common, gathered one by one."""

    column: str
    indices: set[int] = field(default_factory=set)
    colours: dict[int, set[tuple]] = field(default_factory=dict)  # of each index, by the masks' palettes

    def add(self, mask: Image.Image) -> None:
        """One more, as `as_indices` gives it."""
        found = np.unique(np.asarray(mask)).tolist()
        self.indices.update(found)
        if mask.mode == "P":
            colours = mask.getpalette("RGB") or []
            for index in found:
                self.colours.setdefault(index, set()).add(tuple(colours[3 * index:3 * index + 3]))

    def notes(self) -> list[str]:
        """What is odd about them, a sentence each."""
        said, highest = [], max(self.indices, default=0)
        if highest + 1 > 2 * len(self.indices):
            said.append(f"{self.column} holds {len(self.indices)} different indices, the largest {highest}, so its "
                        f"VQGAN would have {highest + 1} classes: number them from 0 without gaps.")
        if any(len(found) > 1 for found in self.colours.values()):
            said.append(f"The palettes of {self.column} give one index several colours: see that it means the same "
                        "everywhere.")
        return said
