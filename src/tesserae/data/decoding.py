"""One raw file -> one prepared picture, or the reason why not.

Raster formats are read that Pillow decodes by itself. It opens more than that: PostScript and PDF by a program of
their own, films, tables of numbers. These are never tried, whatever a file is called. Pictures are turned upright by
their EXIF; what is paired with one, as that one lies.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tesserae.data.splitting import look_of
from tesserae.data.values import (
    BYTE,
    COLOUR,
    DEPTHS,
    FULL,
    NO_RANGES,
    Extent,
    Ranges,
    Rejected,
    as_depth,
    as_grey,
    as_indices,
    check_colours,
    coloured,
    file_maximum,
    finished,
    fit_values,
    in_colours_of_16_bits,
    is_deep,
    is_depth,
    is_lossy,
    is_mask,
    kind_of,
    range_of,
    stored_values,
    unscaled,
    values_of,
)
from tesserae.data.workers import Memory

RASTER = ("AVIF", "BMP", "DDS", "DIB", "GIF", "HEIF", "ICNS", "ICO", "JPEG", "JPEG2000", "JXL", "PCX", "PNG", "PPM",
          "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM")  # HEIF, JXL: where there is a plugin
OF_JPEG = ("MPO",)  # read as a JPEG, whose first frame it is
UNREADABLE = {".heic": "HEIC", ".heif": "HEIF", ".avif": "AVIF", ".jxl": "JPEG XL", ".svg": "SVG", ".dng": "DNG",
              ".cr2": "raw", ".cr3": "raw", ".nef": "raw", ".arw": "raw", ".raf": "raw", ".orf": "raw", ".rw2": "raw",
              ".xcf": "XCF", ".kra": "KRA"}  # pictures that Pillow does not read, where it has no plugin for them
LARGEST = 120_000_000  # pixels; more is taken for a decompression bomb
MEMORY = 2_400_000_000  # bytes that pictures take while they are decoded, all threads of a process together
READING = 1 << 30  # bytes of files that are read and not yet decoded
PLAIN, DEEP = 20, 40  # bytes a pixel, all copies on the way to RGB counted; DEEP: 16 and 32 bit values, which are
# computed with in double precision
ENOUGH = 1024  # pixels: JPEGs whose short side is a multiple of it are decoded at a fraction of their size
HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # of common formats
_SRGB = ImageCms.createProfile("sRGB")
_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what brings a picture of that orientation upright
TURNED, UNSURE = "turned", "unsure"


_PIXELS, _FILES = Memory(MEMORY), Memory(READING)  # of all threads


@dataclass(frozen=True)
class Picture:
    """A usable picture: its PNG, those of its paired columns, the hash of its decoded pixels, its look.

    found: by column, the kind of the file and what its values run over. Files of more than 8 bits are not a PNG yet,
    but keep their values until the range of their column is known: see `values`. odd: by paired column, what is odd
    about its way up (`beside`).
    """

    image: bytes
    pairs: dict[str, bytes]
    sha: str
    width: int  # as it came, turned upright
    height: int
    look: bytes  # by which near-copies are found
    found: dict[str, tuple[str, Extent]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    def shown(self, ranges: Ranges) -> Image.Image:
        """The picture in RGB, by the range of a column, or by its own where that has none of its kind."""
        kind, extent = self.found["image"]
        if kind in (BYTE, COLOUR):
            return Image.open(io.BytesIO(self.image))
        black_white = ranges.of(kind) or range_of(extent, kind, paired=False)
        return Image.open(io.BytesIO(finished(self.image, black_white, is_picture=True)))


Source = bytes | str | Path  # the content of a file, or where it lies
Size = int | tuple[int, int]  # pixels a side, or (height, width)


def decode(source: Source, size: Size, fit: str, min_side: int,
           pairs: Mapping[str, Source] | None = None) -> Picture | Rejected:
    """Read, decode, turn upright, convert to RGB, resize, hash. Never raises.

    pairs: the files of the paired columns. Values of more than 8 bits are resized as they are.
    """
    pairs, longest = pairs or {}, size if isinstance(size, int) else max(size)
    try:
        with _FILES.taken(sum(map(_bytes_of, (source, *pairs.values())))):
            opened = _open(_content(source), min_side)
            needed = opened.width * opened.height * DEEP if pairs else 0
            width, height = opened.size  # of the file: JPEGs may come smaller
            if opened.format == "JPEG":  # decoded in a half, quarter or eighth of its size, by whole multiples
                opened.draft(None, (max(ENOUGH, longest), max(ENOUGH, longest)))
            with _PIXELS.taken(needed + memory_of(opened.width * opened.height, opened.mode)):
                return _decoded(opened, (width, height), size, fit, pairs)
    except Rejected as reason:
        return reason
    except MemoryError:
        return Rejected("too large for the memory")
    except OSError as error:
        return Rejected(f"cannot be read: {error.strerror or error}")
    except Exception as error:  # of a library, on a file that nobody has thought of
        return Rejected(_reason(error))


def _content(source: Source) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def _bytes_of(source: Source) -> int:
    return 0 if isinstance(source, bytes) else os.path.getsize(source)


def _decoded(opened: Image.Image, whole: tuple[int, int], size: Size, fit: str,
             pairs: Mapping[str, Source]) -> Picture:
    """What `decode` makes of an opened picture, whose size in the file is `whole`."""
    (width, height), tiff, deep_colours = whole, tiff_orientation(opened), in_colours_of_16_bits(opened)
    orientation = orientation_of(_loaded(opened), tiff)
    picture = turned_upright(opened)
    picture = picture if is_deep(picture) else to_rgb(picture)
    if deep_colours:
        check_colours(picture)
    if (picture.width > picture.height) != (width > height):
        width, height = height, width
    sha, stance = content_hash(picture), Stance(orientation, (width, height))
    made = {name: _fit_pair(name, pair, stance, size, fit) for name, pair in pairs.items()}
    image, look = _fit_picture(picture, size, fit)
    found = {name: (each.kind, each.extent) for name, each in (made | {"image": image}).items() if each.extent}
    return Picture(image.content, {name: each.content for name, each in made.items()}, sha, width, height, look,
                   found, {name: each.odd for name, each in made.items() if each.odd})


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB in sRGB: deep greys by their own range, colour profiles applied, transparency over white."""
    if is_deep(picture):
        return as_grey(picture, NO_RANGES)
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alone = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return _in_srgb(Image.alpha_composite(alone, picture).convert("RGB"), picture.info.get("icc_profile"))
    try:
        return _in_srgb(picture, picture.info.get("icc_profile")).convert("RGB")
    except ValueError:
        raise Rejected(f"its colour mode {picture.mode} cannot be turned to RGB") from None


def upright(content: bytes) -> Image.Image:
    """The bytes of a picture file, decoded in the mode they have and turned upright. Raises Rejected.

    Greys are the numbers that the file holds.
    """
    opened = _open(content, 1)
    full = file_maximum(opened)
    return turned_upright(unscaled(_loaded(opened), full))


def decode_depth(content: bytes, size: Size, fit: str) -> tuple[np.ndarray, str, Extent]:
    """The bytes of a file of depth -> values (H,W) float32, NaN for holes; its kind; what its values run over.

    Raises Rejected.
    """
    opened = _open(content, 1)
    deep_colours, full = in_colours_of_16_bits(opened), file_maximum(opened)
    picture = as_depth(_numbers(turned_upright(_loaded(opened)), full, DEPTHS[0]), deep_colours)
    values = values_of(picture)
    return (fit_values(values, partial(_resize_values, size=size, fit=fit), 0, marks=is_deep(picture)),
            kind_of(picture), Extent.of(values))


def content_hash(picture: Image.Image) -> str:
    """40 hex digits of the decoded pixels and their size; of 8 bits where those of 16 use them all."""
    if is_deep(picture):
        values = values_of(picture)
        full = range_of(Extent.of(values), kind_of(picture), paired=True) == FULL
        picture = as_grey(picture, Ranges(FULL, FULL)) if full else Image.fromarray(values)
    digest = hashlib.blake2b(f"{picture.width}x{picture.height}".encode(), digest_size=20)
    digest.update(picture.tobytes())
    return digest.hexdigest()


def resize(picture: Image.Image, size: Size, fit: str, how: Image.Resampling, padding) -> Image.Image:
    """To that size. cover: cut the middle; contain: pad with `padding`; stretch: as it comes."""
    height, width = (size, size) if isinstance(size, int) else size
    wide = picture.width * height > picture.height * width  # wider than what is wanted
    if fit == "stretch":
        return picture.resize((width, height), how)
    if fit == "cover":
        across = picture.height * width / height if wide else picture.width
        down = picture.height if wide else picture.width * height / width
        left, top = (picture.width - across) / 2, (picture.height - down) / 2
        return picture.resize((width, height), how, box=(left, top, left + across, top + down))
    inner = (max(1, round(picture.width * height / picture.height)), height)
    if wide:
        inner = (width, max(1, round(picture.height * width / picture.width)))
    whole = Image.new(picture.mode, (width, height), padding)
    if picture.mode == "P":
        whole.putpalette(picture.getpalette())
    whole.paste(picture.resize(inner, how), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return whole


def _open(content: bytes, min_side: int) -> Image.Image:
    if not content:
        raise Rejected("empty")
    try:
        picture = open_picture(content)
    except UnidentifiedImageError:
        raise Rejected("broken at its head" if content.startswith(HEADS) else "not a picture") from None
    except Image.DecompressionBombError:
        raise Rejected("a decompression bomb: far too many pixels") from None
    except Exception as error:  # a plugin that stumbles over a broken header
        raise Rejected(_reason(error)) from None
    width, height = picture.size
    needed = memory_of(width * height, picture.mode)
    if width * height > LARGEST or needed > MEMORY:
        raise Rejected(f"a decompression bomb: {width} x {height} pixels of mode {picture.mode}, which take "
                       f"{needed / 1e9:.1f} GB to decode")
    if min(width, height) < min_side:
        raise Rejected(f"too small: {width} x {height} pixels, and prepare.min_side is {min_side}")
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except Image.DecompressionBombError:
        raise Rejected("a decompression bomb: far too many pixels") from None
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise Rejected(_reason(error)) from None
    return picture


def _in_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply an embedded colour profile, unless it is sRGB's or does not fit."""
    if not profile:
        return picture
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(own).lower():
            return picture
        return ImageCms.profileToProfile(picture, own, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture


class _Fitted(NamedTuple):
    """One file, fitted. kind, extent: of its values, "" and None for indices; odd: from `beside`."""

    content: bytes
    kind: str = ""
    extent: Extent | None = None
    odd: str = ""


def _fit_picture(picture: Image.Image, size: Size, fit: str) -> tuple[_Fitted, bytes]:
    """The picture fitted, padded with white, and its look."""
    fitted = resize(to_rgb(picture) if is_deep(picture) else picture, size, fit, Image.Resampling.LANCZOS,
                    (255, 255, 255))
    if is_deep(picture):
        return _fit_deep(picture, size, fit, padding=np.inf, marks=False), look_of(fitted)
    return _Fitted(_png(fitted), *_about(fitted)), look_of(fitted)


def _fit_pair(name: str, source: Source, stance: Stance, size: Size, fit: str) -> _Fitted:
    """A paired picture, turned and fitted as its picture was: indices by nearest neighbour, all else smoothly."""
    try:
        content = _content(source)
        opened = _open(content, 1)
        tiff, full, kind = tiff_orientation(opened), file_maximum(opened), opened.format
        deep_colours = in_colours_of_16_bits(opened)
        fits = sorted(opened.size) == sorted(stance.size)  # others are not even decoded
        pair = _loaded(opened) if fits else opened
    except Rejected as reason:
        raise Rejected(f"{name}: {reason}") from None
    except OSError as error:
        raise Rejected(f"{name} cannot be read: {error.strerror or error}") from None
    if not fits:
        raise Rejected(misfit(name, pair, stance))
    own = orientation_of(pair, tiff)
    pair, odd = beside(name, _numbers(pair, full, name), own, stance)
    if is_mask(name):
        pair = as_indices(name, pair, is_lossy(kind, content))
        return _Fitted(_png(resize(pair, size, fit, Image.Resampling.NEAREST, 0)), odd=odd)
    return _fit_values(name, pair, deep_colours, size, fit)._replace(odd=odd)


def _numbers(pair: Image.Image, full: int | None, name: str) -> Image.Image:
    """A pair with the numbers that its file holds, where these mean something: indices, depth of more than 8 bits."""
    return unscaled(pair, full) if is_mask(name) or (is_depth(name) and (full or 0) > 255) else pair


def _fit_values(name: str, pair: Image.Image, deep_colours: bool, size: Size, fit: str) -> _Fitted:
    """A paired picture that holds no indices, upright."""
    try:
        if is_depth(name):
            pair = _in_one_channel(pair, deep_colours)
        elif deep_colours:
            check_colours(to_rgb(pair))
        if is_deep(pair):
            return _fit_deep(pair, size, fit, padding=0, marks=True)
    except Rejected as reason:
        raise Rejected(f"{name}{'' if str(reason).startswith(('has ', 'holds ')) else ':'} {reason}") from None
    how = Image.Resampling.NEAREST if pair.mode in ("P", "1") else Image.Resampling.LANCZOS
    fitted = resize(pair if pair.mode in ("P", "1", "L", "RGB") else to_rgb(pair), size, fit, how, 0)
    return _Fitted(_png(fitted), *_about(pair if pair.mode == "L" else fitted))


def _in_one_channel(pair: Image.Image, deep_colours: bool) -> Image.Image:
    try:
        return as_depth(pair, deep_colours)
    except Rejected as reason:
        raise Rejected(f"{reason}, or name the column otherwise if it is a picture to look at") from None


def _fit_deep(picture: Image.Image, size: Size, fit: str, padding: float, marks: bool) -> _Fitted:
    values, kind = values_of(picture), kind_of(picture)
    fitted, found = fit_values(values, partial(_resize_values, size=size, fit=fit), padding, marks), Extent.of(values)
    return _Fitted(stored_values(fitted, found, kind), kind, found)


def _resize_values(picture: Image.Image, padding: float, size: Size, fit: str) -> Image.Image:
    return resize(picture, size, fit, Image.Resampling.LANCZOS, padding)


def _about(picture: Image.Image) -> tuple[str, Extent]:
    """The kind of a picture of 8 bits, and what its values run over; of colours, the green ones."""
    if picture.mode == "L":
        return BYTE, Extent.of(np.asarray(picture))
    pixels = np.asarray(picture.convert("RGB"))
    return COLOUR if coloured(pixels) else BYTE, Extent.of(pixels[..., 1])


def _png(picture: Image.Image) -> bytes:
    picture.info.clear()  # no dates, no profiles: equal pixels, equal bytes
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return "truncated" if "truncated" in reason.lower() else f"broken: {reason}"


# ---- formats -----------------------------------------------------------------------------------------------


def open_picture(content: bytes | Path) -> Image.Image:
    """A picture's head, from its bytes or its file; raises what Pillow does: UnidentifiedImageError for others."""
    return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_known())


def is_picture_name(name: str) -> bool:
    """Whether a file's suffix is that of a picture, be it one that can be read here or not."""
    suffix = Path(name).suffix.lower()
    return suffix in UNREADABLE or Image.registered_extensions().get(suffix) in (*RASTER, *OF_JPEG)


def unreadable(name: str) -> str | None:
    """The name of a format that would be a picture's, but is not read here."""
    suffix = Path(name).suffix.lower()
    return None if suffix in Image.registered_extensions() else UNREADABLE.get(suffix)


def is_picture(file: Path | BinaryIO) -> bool:
    """Whether a file begins as a picture does; formats that begin like anything are not looked for."""
    certain = [name for name in _known() if Image.OPEN[name][1] is not None]
    try:
        with Image.open(file, formats=certain):
            return True
    except Exception:  # PIL's plugins raise what they like on strange bytes
        return False


def _known() -> list[str]:
    Image.init()
    return [name for name in RASTER if name in Image.OPEN]


def memory_of(pixels: int, mode: str) -> int:
    """Bytes that decoding so many pixels of a mode takes."""
    return pixels * (DEEP if mode.startswith("I") or mode == "F" else PLAIN)


# ---- which way up ------------------------------------------------------------------------------------------


class Stance(NamedTuple):
    """How a picture came. orientation: EXIF's, 1 to 8; 0 where the file has none. size: (width, height), upright."""

    orientation: int
    size: tuple[int, int]


def tiff_orientation(opened: Image.Image) -> int:
    """The orientation of a TIFF before it is loaded, for Pillow turns it then and forgets; 0 of other files."""
    found = opened.tag_v2.get(_TAG, 0) if hasattr(opened, "tag_v2") else 0
    return found if found in _TURNS else 0


def orientation_of(loaded: Image.Image, tiff: int = 0) -> int:
    """EXIF's orientation of a loaded picture, 1 to 8; 0: it has none. tiff: the result of `tiff_orientation`."""
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
    sizes = f"{name} is {pair.width} x {pair.height}, the picture {stance.size[0]} x {stance.size[1]} pixels"
    if stance.orientation > 1:
        return f"{sizes} once its EXIF has turned it"
    if pair.size == stance.size[::-1]:
        return f"{sizes}: it lies on its side, and no EXIF says how to turn it"
    return sizes
