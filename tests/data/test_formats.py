"""What counts as a picture, and how much memory decoding may take."""

import io
import struct
import subprocess
import threading
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import pictures_of

from tesserae.data.decoding import MEMORY, decode, is_picture_name, memory_of
from tesserae.data.values import Rejected
from tesserae.data.workers import Memory

EPS = (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\nshowpage\n%%EOF\n")


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_head(width, height, bits, colour):
    """A PNG that claims this and holds nothing."""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def tiff_head(width, height, bits, kind):
    """A TIFF that claims this and holds nothing. kind: 1: whole numbers, 3: floats."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, height), (279, 4, width * height * bits // 8), (339, 3, kind)]
    rows = b"".join(struct.pack("<HHI", tag, form, 1) + struct.pack("<I", value) for tag, form, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + rows + b"\0" * 4


def decoded(content, pairs=None):
    return decode(content, 32, "cover", 8, pairs)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("content", [png_head(8000, 8000, 16, 0), tiff_head(8000, 8000, 32, 3),
                                     tiff_head(8000, 8000, 32, 1), png_head(11_000, 11_000, 8, 2)])
def test_the_limit_counts_bytes(content):
    result = decoded(content)
    assert isinstance(result, Rejected)
    assert "a decompression bomb: " in str(result)
    assert "GB to decode" in str(result)


@pytest.mark.parametrize("bits", [8, 16])
def test_what_fits_is_not_refused_for_its_size(bits):
    assert "bomb" not in str(decoded(png_head(6000, 6000, bits, 0)))


@pytest.mark.parametrize("size", [(40, 40), (9000, 5000)])
def test_a_pair_of_another_size_is_not_decoded(size):
    picture = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(picture, "PNG")
    reason = str(decoded(picture.getvalue(), {"depth": png_head(*size, 16, 0)}))
    assert reason == f"depth is {size[0]} x {size[1]}, the picture 50 x 40 pixels"


def test_no_interpreter_is_started(monkeypatch):
    def refuse(*arguments, **_):
        pytest.fail(f"{arguments} is started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(subprocess, "check_call", refuse)
    for content in (EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + b"\0\0" + EPS):
        assert str(decoded(content)) == "not a picture"


@pytest.mark.parametrize("name", ["a.pdf", "b.eps", "c.ps", "d.wmf", "e.fits", "f.grib", "g.h5", "h.mpg", "i"])
def test_names_of_what_is_no_picture(name):
    assert not is_picture_name(name)


@pytest.mark.parametrize("name", ["a.PNG", "b.jpeg", "c.tif", "d.webp", "e.heic", "f.jxl", "g.svg", "h.jp2", "i.mpo"])
def test_names_of_pictures(name):
    assert is_picture_name(name)


def test_threads_share_the_memory():
    memory, there, most, lock = Memory(100), [], [], threading.Lock()

    def work(amount):
        with memory.taken(amount):
            with lock:
                there.append(amount)
                most.append(sum(there))
            time.sleep(0.005)
            with lock:
                there.remove(amount)

    amounts = [30, 40, 500, 20, 60, 10, 90, 100] * 3
    threads = [threading.Thread(target=work, args=(amount,)) for amount in amounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == len(amounts), "somebody waits for ever"
    assert all(total <= 100 or total == 500 for total in most), "more than there is, but for one that works alone"


def test_more_is_counted_for_deep_pictures():
    assert memory_of(10, "I;16") == memory_of(10, "F") > memory_of(10, "RGB")
    assert memory_of(120_000_000, "RGB") <= MEMORY


def test_a_palette_is_found_without_the_whole_column():
    masks = [np.full((64, 64), number % 7, np.uint8) for number in range(4000)]
    found = pictures_of(segmentation=masks, image=np.zeros((4000, 8, 8, 3), np.uint8))
    tracemalloc.start()
    try:
        assert len(found.mask_indices("segmentation")) == 7
        assert tracemalloc.get_traced_memory()[1] < 4000 * 64 * 64 / 2
    finally:
        tracemalloc.stop()
