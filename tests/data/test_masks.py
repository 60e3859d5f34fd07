"""Masks keep the very numbers of their files, lie as their picture does, and odd ones are named."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tesserae.data.decoding import Picture, decode
from tesserae.data.layouts import read_layout
from tesserae.data.report import MaskUse

SIDE = 12
UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that EXIF's value undoes


def saved(picture, kind="PNG", turn=0, **how):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = turn
    picture.save(buffer, kind, **how, **({"exif": exif} if turn else {}))
    return buffer.getvalue()


def plain_png(values, bits, palette=None):
    """A PNG written by hand: grey, or with a palette that may be shorter than its largest index."""
    height, width = values.shape
    padded = np.pad(values, ((0, 0), (0, -width % (8 // bits)))).reshape(height, -1, 8 // bits).astype(int)
    packed = (padded << (8 - bits * np.arange(1, 8 // bits + 1))).sum(-1).astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(value for colour in palette for value in colour)) if palette else b""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def pgm(values, maximum):
    head = f"P5\n{values.shape[1]} {values.shape[0]}\n{maximum}\n".encode()
    return head + values.astype(">u2" if maximum > 255 else np.uint8).tobytes()


def ids(largest=3, shape=(SIDE, SIDE), seed=1):
    found = np.random.default_rng(seed).integers(0, largest + 1, shape).astype(np.uint8)
    found[0, 0] = largest
    return found


def picture(width=SIDE, height=SIDE, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def stored(mask, image=None, size=SIDE, fit="stretch"):
    """The mask as it is prepared: (size,size) indices; or the reason why not."""
    content = image or saved(picture())
    found = decode(content, size, fit, 4, {"segmentation": mask})
    return opened(found.pairs["segmentation"]) if isinstance(found, Picture) else str(found)


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def coloured(values, colours, order=None):
    mask = Image.fromarray(values)
    mask.putpalette([value for colour in colours for value in colour])
    return mask if order is None else mask.remap_palette(order)


# ------------------------------------------------------------------ indices


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_pngs_of_few_bits_keep_their_numbers(bits, palette):
    values = ids((1 << bits) - 1)
    colours = [(k * 7 % 256, 0, k) for k in range(1 << bits)] if palette else None
    assert np.array_equal(stored(plain_png(values, bits, colours)), values)


@pytest.mark.parametrize("maximum", [3, 15, 170, 255, 1000])
def test_pgms_keep_their_numbers(maximum):
    assert np.array_equal(stored(pgm(ids(), maximum)), ids())


def test_an_index_beyond_the_palette_stays():
    values = ids()
    values[:4] = 255
    assert np.array_equal(stored(plain_png(values, 8, [(1, 2, 3), (4, 5, 6), (7, 8, 9)])), values)


@pytest.mark.parametrize(("mask", "how"), [
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)]), {}),
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)], [3, 1, 0, 2]), {}),  # in another order
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)]), {"optimize": True}),
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)]), {"transparency": 1}),
    (coloured(ids(), [(7, 7, 7)] * 4), {}),  # colours say nothing
    (Image.fromarray(ids()).convert("LA"), {}),
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)]), {"kind": "TIFF"}),
    (coloured(ids(), [(9, 9, 9), (200, 0, 0), (0, 200, 0), (0, 0, 200)]), {"kind": "GIF"}),
    (Image.fromarray(ids().astype(np.uint16)), {}),
    (Image.fromarray(ids(1) > 0), {}),
])
@pytest.mark.parametrize("fit", ["stretch", "cover", "contain"])
def test_ids_are_the_files_numbers_whatever_its_palette(mask, how, fit):
    content = saved(mask, **how)
    file = np.asarray(Image.open(io.BytesIO(content)))
    file = (file if file.ndim == 2 else file[..., 0]).astype(int)
    assert np.array_equal(stored(content, fit=fit), file)
    doubled = stored(content, size=2 * SIDE, fit=fit)  # no index between two others comes in
    assert np.array_equal(doubled, file.repeat(2, 0).repeat(2, 1))


def test_a_layout_of_four_bits_is_read_as_its_numbers(tmp_path):
    (tmp_path / "mine.png").write_bytes(plain_png(ids(9), 4))
    assert np.array_equal(read_layout(tmp_path / "mine.png", 10).numpy(), ids(9))


# ------------------------------------------------------------------ EXIF


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_mask_that_lies_as_its_picture_is_stored_is_turned_with_it(turn, kind):
    mask = Image.fromarray(ids(shape=(8, SIDE)))
    as_it_lies = mask.transpose(Image.Transpose(UNDO[turn]))
    photo = saved(picture(*as_it_lies.size), kind, turn)
    if turn > 4:  # the only way the sizes fit
        assert np.array_equal(stored(saved(as_it_lies), photo), np.asarray(mask.resize((SIDE, SIDE), 0)))
    assert np.array_equal(stored(saved(mask), photo), np.asarray(mask.resize((SIDE, SIDE), 0)))  # upright already
    turned = saved(as_it_lies, turn=turn)  # by its own EXIF
    assert np.array_equal(stored(turned, photo), np.asarray(mask.resize((SIDE, SIDE), 0)))


@pytest.mark.parametrize(("turn", "shape", "own", "odd"), [
    (6, (8, SIDE), 0, "turned"), (5, (8, SIDE), 1, "turned"),  # a mask whose EXIF says upright lies on its side
    (3, (8, SIDE), 0, "unsure"), (2, (8, SIDE), 0, "unsure"), (8, (SIDE, SIDE), 0, "unsure"),
    (3, (8, SIDE), 1, None), (8, (SIDE, SIDE), 8, None), (1, (8, SIDE), 0, None), (0, (8, SIDE), 0, None),
])
def test_what_sizes_cannot_tell_is_said(turn, shape, own, odd):
    mask = Image.fromarray(ids(shape=shape))
    photo, content = saved(picture(*mask.size), turn=turn), saved(mask, turn=own)
    found = decode(photo, SIDE, "stretch", 4, {"segmentation": content})
    assert found.odd == ({"segmentation": odd} if odd else {})


def test_a_mask_whose_own_exif_is_a_leftover_is_not_turned():
    mask = Image.fromarray(ids(shape=(8, SIDE)))
    found = stored(saved(mask, turn=6), saved(picture(SIDE, 8)))
    assert np.array_equal(found, np.asarray(mask.resize((SIDE, SIDE), 0)))


def test_depth_is_turned_as_masks_are():
    depth = (np.arange(96).reshape(8, 12) * 600).astype(np.uint16)
    photo = saved(picture(12, 8), turn=6)

    def read(content):
        found = decode(photo, 8, "cover", 4, {"depth": content})
        return opened(found.pairs["depth"])

    upright = np.ascontiguousarray(np.rot90(depth, -1))
    assert np.array_equal(read(saved(Image.fromarray(depth))), read(saved(Image.fromarray(upright))))


@pytest.mark.parametrize(("photo", "mask", "words"), [
    (picture(12, 8), ids(shape=(12, 8)), "segmentation is 8 x 12, the picture 12 x 8 pixels: it lies on its side, "
                                         "and no EXIF says how to turn it"),
    (picture(12, 8), ids(shape=(5, 5)), "segmentation is 5 x 5, the picture 12 x 8 pixels"),
])
def test_sizes_that_do_not_fit_are_refused(photo, mask, words):
    assert stored(saved(Image.fromarray(mask)), saved(photo)) == words
    turned = stored(saved(Image.fromarray(ids(shape=(5, 5)))), saved(photo, turn=6))
    assert turned == "segmentation is 5 x 5, the picture 8 x 12 pixels once its EXIF has turned it"


# ------------------------------------------------------------------ what they have in common


@pytest.mark.parametrize(("indices", "expected", "unexpected"), [
    ([*range(171), 255], ["255 in 1 of 1 masks, which usually marks void", "ignore_index: 255"], "without gaps"),
    ([0, 7, 11, 200], ["4 different indices, the largest 200", "201 classes"], "void"),
    ([0, 7, 11, 200, 255], ["usually marks void", "4 different indices, the largest 200"], "256 classes"),
    ([0, 255], ["the largest 255", "256 classes", "with 1 bit or as 0 and 1"], "without gaps"),
    (range(9), [], "segmentation"),
    (range(255), [], "void"),
])
def test_notes_name_void_and_gaps(indices, expected, unexpected):
    use = MaskUse("segmentation")
    use.add(Image.fromarray(np.array([list(indices)], dtype=np.uint8)))
    notes = "\n".join(use.notes())
    assert all(words in notes for words in expected), notes
    assert unexpected not in notes
