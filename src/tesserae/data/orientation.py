"""Which way up pictures lie: EXIF's orientation, of a picture and of what is paired with it."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageOps

from tesserae.data.entries import Rejected

_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what brings a picture of that orientation upright
TURNED, UNSURE = "turned", "unsure"


class Stance(NamedTuple):
    """How a picture came. orientation: EXIF's, 1 to 8; 0 where the file has none. size: (width, height), upright."""

    orientation: int
    size: tuple[int, int]


def tiff_orientation(opened: Image.Image) -> int:
    """The orientation of a TIFF before it is loaded, for Pillow turns it then and forgets; 0 of other files."""
    found = opened.tag_v2.get(_TAG, 0) if hasattr(opened, "tag_v2") else 0
    return found if found in _TURNS else 0


def orientation_of(loaded: Image.Image, tiff: int = 0) -> int:
    """EXIF's orientation of a loaded picture, 1 to 8; 0: it has none. tiff: what `tiff_orientation` said."""
    try:
        found = tiff or loaded.getexif().get(_TAG, 0)
        return found if found in _TURNS or found == 1 else 0
    except Exception:  # EXIF that cannot be read turns nothing
        return 0


def turned_upright(picture: Image.Image) -> Image.Image:
    """A loaded picture, turned as its own EXIF says."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF that cannot be read turns nothing
        return picture


def beside(name: str, pair: Image.Image, own: int, stance: Stance) -> tuple[Image.Image, str]:
    """A paired picture, loaded, as its picture lies upright; and what is odd about that: "", TURNED or UNSURE.

    own: the orientation of its own file. What fits upright is taken as that. Else it lies as the picture's pixels are
    stored, and is turned with them (TURNED); or its own EXIF is a leftover, and is not followed. UNSURE: it has no
    EXIF, and would fit its picture turned and unturned. Raises Rejected where it fits in no way.
    """
    standing = turned_upright(pair)
    turn = _TURNS.get(stance.orientation)
    if standing.size == stance.size:
        either = turn is not None and own == 0 and pair.transpose(turn).size == stance.size
        return standing, UNSURE if either else ""
    if own <= 1 and turn is not None and pair.transpose(turn).size == stance.size:
        return pair.transpose(turn), TURNED
    if pair.size == stance.size:
        return pair, ""
    raise Rejected(misfit(name, standing, stance))


def misfit(name: str, pair: Image.Image, stance: Stance) -> str:
    """Why a pair of this size goes with no picture of that stance."""
    said = f"{name} is {pair.width} x {pair.height}, the picture {stance.size[0]} x {stance.size[1]} pixels"
    if stance.orientation > 1:
        return f"{said} once its EXIF has turned it"
    if pair.size == stance.size[::-1]:
        return f"{said}: it lies on its side, and no EXIF says how to turn it"
    return said


def remark(column: str, odd: str, count: int, first: str) -> str:
    """A sentence about the pairs of a column of which `beside` says the same: how many, and the first picture."""
    which = f"{first} and {count - 1:,} more" if count > 1 else first
    if odd == TURNED:
        return f"EXIF turns {which} but not the {column}, which lay on its side and was turned with it."
    return (f"EXIF turns or mirrors {which}, and the {column} has no EXIF and fits either way: it is taken as "
            "upright; where it lies as the picture is stored, remove the orientation from the picture's EXIF.")
