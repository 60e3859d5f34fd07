"""One raw file -> one prepared picture, or the reason why not."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from tesserae.data.entries import Entry, Rejected
from tesserae.data.masks import as_indices, is_lossy, is_mask

LARGEST = 120_000_000  # pixels; more is taken for a decompression bomb
ENOUGH = 1024  # pixels: JPEGs whose short side is a multiple of it are decoded at a fraction of their size
HEADS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")  # of common formats
_SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Picture:
    """A picture that is good: its PNG, those of its paired columns, the hash of its decoded pixels."""

    image: bytes
    pairs: dict[str, bytes]
    sha: str
    width: int  # as it came, turned upright
    height: int


def decode(entry: Entry, size: int, fit: str, min_side: int) -> Picture | Rejected:
    """Read, decode, turn upright, convert to RGB, resize to (size, size), hash. Never raises."""
    try:
        if entry.fault:
            raise Rejected(entry.fault)
        opened = _open(entry.read(), min_side)
        width, height = opened.size  # of the file: JPEGs may come smaller
        if opened.format == "JPEG":  # decoded in a half, quarter or eighth of its size, by whole multiples
            opened.draft(None, (max(ENOUGH, size), max(ENOUGH, size)))
        picture = to_rgb(_upright(_loaded(opened)))
        if (picture.width > picture.height) != (width > height):
            width, height = height, width
        sha = content_hash(picture)
        pairs = {name: _png(_fit_pair(name, read, (width, height), size, fit)) for name, read in entry.pairs.items()}
        image = _png(resize(picture, size, fit, Image.Resampling.LANCZOS, (255, 255, 255)))
        return Picture(image, pairs, sha, width, height)
    except Rejected as reason:
        return reason
    except MemoryError:
        return Rejected("too large for the memory")
    except OSError as error:
        return Rejected(f"cannot be read: {error.strerror or error}")
    except Exception as error:  # of a library, on a file that nobody has thought of
        return Rejected(_fault(error))


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB in sRGB: deep greys scaled, colour profiles applied, transparency over white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_grey(picture).convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alone = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return _in_srgb(Image.alpha_composite(alone, picture).convert("RGB"), picture.info.get("icc_profile"))
    try:
        return _in_srgb(picture, picture.info.get("icc_profile")).convert("RGB")
    except ValueError:
        raise Rejected(f"its colour mode {picture.mode} cannot be turned to RGB") from None


def upright(content: bytes) -> Image.Image:
    """The bytes of a picture file, decoded in the mode they have and turned upright. Raises Rejected."""
    return _upright(_loaded(_open(content, 1)))


def content_hash(picture: Image.Image) -> str:
    """40 hex digits of the decoded pixels and their size."""
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
        picture = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise Rejected("broken at its head" if content.startswith(HEADS) else "not a picture") from None
    except Image.DecompressionBombError:
        raise Rejected("a decompression bomb: far too many pixels") from None
    except Exception as error:  # a plugin that stumbles over a broken header
        raise Rejected(_fault(error)) from None
    width, height = picture.size
    if width * height > LARGEST:
        raise Rejected(f"a decompression bomb: {width} x {height} pixels")
    if min(width, height) < min_side:
        raise Rejected(f"too small: {width} x {height} pixels")
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except Image.DecompressionBombError:
        raise Rejected("a decompression bomb: far too many pixels") from None
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise Rejected(_fault(error)) from None
    return picture


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # EXIF that cannot be read turns nothing
        return picture


def _deep_grey(picture: Image.Image) -> Image.Image:
    """16 and 32 bit integers and floats -> 8 bit grey."""
    values = np.asarray(picture, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Rejected("holds values that are no numbers")
    high = values.max()
    if picture.mode == "F":
        full = 1.0 if high <= 1 else 255.0 if high <= 255 else high
    else:
        full = 65535.0 if high <= 65535 else high
    return Image.fromarray(np.rint(np.clip(values / full, 0, 1) * 255).astype(np.uint8))


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


def _fit_pair(name: str, read: Callable[[], bytes], expected: tuple[int, int], size: int, fit: str) -> Image.Image:
    """A paired picture, fitted as its picture was: indices by nearest neighbour, all else smoothly."""
    try:
        content = read()
        opened = _open(content, 1)
        pair = _upright(_loaded(opened))
    except Rejected as reason:
        raise Rejected(f"{name}: {reason}") from None
    except OSError as error:
        raise Rejected(f"{name} cannot be read: {error.strerror or error}") from None
    if pair.size != expected:
        sizes = f"{pair.width} x {pair.height}, the picture {expected[0]} x {expected[1]} pixels"
        raise Rejected(f"{name} is {sizes}")
    if is_mask(name):
        pair = as_indices(name, pair, is_lossy(opened.format, content))
    if pair.mode in ("P", "1") or is_mask(name):
        return resize(pair, size, fit, Image.Resampling.NEAREST, 0)
    if pair.mode.startswith("I"):
        smooth = Image.fromarray(np.asarray(pair, dtype=np.float32))
        values = np.asarray(resize(smooth, size, fit, Image.Resampling.LANCZOS, 0))
        return Image.fromarray(np.rint(np.clip(values, 0, 65535)).astype(np.uint16))
    if pair.mode == "F":
        raise Rejected(f"{name} holds floats: store it as a 16 bit PNG")
    pair = pair if pair.mode in ("L", "RGB") else to_rgb(pair)
    return resize(pair, size, fit, Image.Resampling.LANCZOS, 0)


def _png(picture: Image.Image) -> bytes:
    picture.info.clear()  # no dates, no profiles: equal pixels, equal bytes
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _fault(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return "truncated" if "truncated" in reason.lower() else f"broken: {reason}"
