"""One raw file -> one prepared picture, or the reason why not."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from tesserae.data.entries import Entry, Rejected
from tesserae.data.formats import DEEP, LARGEST, MEMORY, READING, Memory, memory_of, open_picture
from tesserae.data.masks import as_indices, file_maximum, is_lossy, is_mask, unscaled
from tesserae.data.near import look_of
from tesserae.data.orientation import Stance, beside, misfit, orientation_of, tiff_orientation, turned_upright
from tesserae.data.scales import NO_RANGES, Ranges, as_grey, finished, range_of
from tesserae.data.values import (
    BYTE,
    COLOUR,
    DEPTHS,
    FULL,
    Extent,
    as_depth,
    check_colours,
    coloured,
    fit_values,
    in_colours_of_16_bits,
    is_deep,
    is_depth,
    kind_of,
    stored_values,
    values_of,
)

ENOUGH = 1024  # pixels: JPEGs whose short side is a multiple of it are decoded at a fraction of their size
HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # of common formats
_PIXELS, _FILES = Memory(MEMORY), Memory(READING)  # that all threads share
_SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Picture:
    """A picture that is good: its PNG, those of its paired columns, the hash of its decoded pixels, its look.

    found: by column, the kind of the file and what its values run over. Files of more than 8 bits are no PNG yet, but
    keep their values until the scale of their set is known: see `scales`. odd: of the paired columns about whose way
    up something is to be said, what (`orientation.beside`).
    """

    image: bytes
    pairs: dict[str, bytes]
    sha: str
    width: int  # as it came, turned upright
    height: int
    look: bytes  # what near-copies are known by
    found: dict[str, tuple[str, Extent]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    def shown(self, ranges: Ranges) -> Image.Image:
        """The picture in RGB, by the scale of a column, or by its own where that has none of its kind."""
        kind, extent = self.found["image"]
        if kind in (BYTE, COLOUR):
            return Image.open(io.BytesIO(self.image))
        black_white = ranges.of(kind) or range_of(extent, kind, paired=False)
        return Image.open(io.BytesIO(finished(self.image, black_white, is_picture=True)))


def decode(entry: Entry, size: int, fit: str, min_side: int) -> Picture | Rejected:
    """Read, decode, turn upright, convert to RGB, resize to (size, size), hash. Never raises.

    Values of more than 8 bits are resized as they are.
    """
    try:
        if entry.fault:
            raise Rejected(entry.fault)
        with _FILES.taken(entry.size):
            opened = _open(entry.read(), min_side)
            needed = opened.width * opened.height * DEEP if entry.pairs else 0
            width, height = opened.size  # of the file: JPEGs may come smaller
            if opened.format == "JPEG":  # decoded in a half, quarter or eighth of its size, by whole multiples
                opened.draft(None, (max(ENOUGH, size), max(ENOUGH, size)))
            with _PIXELS.taken(needed + memory_of(opened.width * opened.height, opened.mode)):
                return _decoded(entry, opened, (width, height), size, fit)
    except Rejected as reason:
        return reason
    except MemoryError:
        return Rejected("too large for the memory")
    except OSError as error:
        return Rejected(f"cannot be read: {error.strerror or error}")
    except Exception as error:  # of a library, on a file that nobody has thought of
        return Rejected(_fault(error))


def _decoded(entry: Entry, opened: Image.Image, whole: tuple[int, int], size: int, fit: str) -> Picture:
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
    made = {name: _fit_pair(name, read, stance, size, fit) for name, read in entry.pairs.items()}
    image, look = _fit_picture(picture, size, fit)
    found = {name: (each.kind, each.extent) for name, each in (made | {"image": image}).items() if each.extent}
    return Picture(image.content, {name: each.content for name, each in made.items()}, sha, width, height, look,
                   found, {name: each.odd for name, each in made.items() if each.odd})


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB in sRGB: deep greys by their own scale, colour profiles applied, transparency over white."""
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


def decode_depth(content: bytes, size: int, fit: str) -> tuple[np.ndarray, str, Extent]:
    """The bytes of a file of depth -> values (size,size) float32, NaN for holes; its kind; what its values run over.

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


def resize(picture: Image.Image, size: int, fit: str, how: Image.Resampling, padding) -> Image.Image:
    """To (size, size). cover: cut the middle; contain: pad with `padding`; stretch: as it comes."""
    width, height = picture.size
    if fit == "stretch":
        return picture.resize((size, size), how)
    if fit == "cover":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return picture.resize((size, size), how, box=(left, top, left + side, top + side))
    side = max(width, height)
    inner = (max(1, round(width * size / side)), max(1, round(height * size / side)))
    whole = Image.new(picture.mode, (size, size), padding)
    if picture.mode == "P":
        whole.putpalette(picture.getpalette())
    whole.paste(picture.resize(inner, how), ((size - inner[0]) // 2, (size - inner[1]) // 2))
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
        raise Rejected(_fault(error)) from None
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
        raise Rejected(_fault(error)) from None
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
    """One file, fitted. kind, extent: of its values, "" and None for indices; odd: what `orientation.beside` says."""

    content: bytes
    kind: str = ""
    extent: Extent | None = None
    odd: str = ""


def _fit_picture(picture: Image.Image, size: int, fit: str) -> tuple[_Fitted, bytes]:
    """The picture fitted, padded with white, and its look."""
    square = resize(to_rgb(picture) if is_deep(picture) else picture, size, fit, Image.Resampling.LANCZOS,
                    (255, 255, 255))
    if is_deep(picture):
        return _fit_deep(picture, size, fit, padding=np.inf, marks=False), look_of(square)
    return _Fitted(_png(square), *_about(square)), look_of(square)


def _fit_pair(name: str, read: Callable[[], bytes], stance: Stance, size: int, fit: str) -> _Fitted:
    """A paired picture, turned and fitted as its picture was: indices by nearest neighbour, all else smoothly."""
    try:
        content = read()
        opened = _open(content, 1)
        tiff, full, kind = tiff_orientation(opened), file_maximum(opened), opened.format
        deep_colours = in_colours_of_16_bits(opened)
        fits = sorted(opened.size) == sorted(stance.size)  # what does not is not even decoded
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


def _fit_values(name: str, pair: Image.Image, deep_colours: bool, size: int, fit: str) -> _Fitted:
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


def _fit_deep(picture: Image.Image, size: int, fit: str, padding: float, marks: bool) -> _Fitted:
    values, kind = values_of(picture), kind_of(picture)
    fitted, found = fit_values(values, partial(_resize_values, size=size, fit=fit), padding, marks), Extent.of(values)
    return _Fitted(stored_values(fitted, found, kind), kind, found)


def _resize_values(picture: Image.Image, padding: float, size: int, fit: str) -> Image.Image:
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


def _fault(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return "truncated" if "truncated" in reason.lower() else f"broken: {reason}"
