"""Which files are pictures: raster formats that Pillow decodes by itself, and what decoding one may take.

Pillow opens more than that: PostScript and PDF by a program of their own, films, tables of numbers. These are never
tried, whatever a file is called.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

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


class Memory:
    """Memory that threads share: who needs more than is free waits for others to end."""

    def __init__(self, total: int) -> None:
        self._free, self._total = total, total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        """Around work that needs so many bytes; what needs more than there is works alone."""
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
