"""Layouts from files: by index, by colour, by a painting program's palette; and the one that is drawn here."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from tesserae.data.layouts import LayoutError, draw_layout, read_layout, write_layout
from tesserae.data.palette import class_colours
from tesserae.scenes.render import SEGMENT_NAMES, SEGMENT_PALETTE

CLASSES = len(SEGMENT_NAMES)
COLOURS = np.array(SEGMENT_PALETTE, dtype=np.uint8)


@pytest.fixture
def indices():
    return np.random.default_rng(0).integers(0, CLASSES, (24, 32), dtype=np.uint8)


def saved(folder, picture, name="layout.png", **how):
    picture.save(folder / name, **how)
    return folder / name


def read(path, **how):
    """No layout that is exact comes with a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_layout(path, CLASSES, SEGMENT_PALETTE, **how).numpy()


def coloured(indices):
    return Image.fromarray(COLOURS[indices])


def paletted(indices, palette):
    picture = Image.fromarray(indices)
    picture.putpalette([int(value) for colour in palette for value in colour])
    return picture


@pytest.mark.parametrize("make", [
    Image.fromarray, coloured,
    lambda indices: paletted(indices, SEGMENT_PALETTE),
    lambda indices: paletted(indices, np.random.default_rng(1).integers(0, 256, (CLASSES, 3))),
    lambda indices: Image.fromarray(indices.astype(np.uint16)),
    lambda indices: Image.fromarray(indices).convert("LA"),
    lambda indices: coloured(indices).convert("RGBA"),
], ids=["grey", "colours", "palette", "another palette", "16 bit", "grey with alpha", "colours with alpha"])
def test_one_layout_in_every_kind_of_file(tmp_path, indices, make):
    found = read(saved(tmp_path, make(indices)))
    assert found.dtype == np.int64
    assert np.array_equal(found, indices)


def test_a_palette_in_another_order_is_read_by_its_colours(tmp_path, indices):
    order = np.random.default_rng(2).permutation(CLASSES)  # file's number -> class
    numbered = np.argsort(order)[indices].astype(np.uint8)
    assert np.array_equal(read(saved(tmp_path, paletted(numbered, COLOURS[order]))), indices)


def test_two_colours_of_a_bilevel_picture_are_the_classes_0_and_1(tmp_path, indices):
    found = read(saved(tmp_path, Image.fromarray(indices > 4)))
    assert np.array_equal(found, indices > 4)


def test_other_colours_go_to_the_nearest_and_are_counted(tmp_path, indices):
    pixels = COLOURS[indices].astype(int)
    pixels[0, :5] += 3 * (1 - 2 * (pixels[0, :5] > 128))
    path = saved(tmp_path, Image.fromarray(pixels.astype(np.uint8)))
    with pytest.warns(UserWarning, match=r"layout\.png: 5 of 768 pixels have no colour of the palette"):
        found = read_layout(path, CLASSES, SEGMENT_PALETTE)
    assert np.array_equal(found, indices)


def test_colours_of_no_class_are_refused(tmp_path):
    path = saved(tmp_path, coloured(np.full((2, 2), CLASSES - 1)))
    with pytest.raises(LayoutError, match="no layout of these classes: 100% of it has the colour of none"):
        read_layout(path, 3, SEGMENT_PALETTE)


@pytest.mark.parametrize("classes", [9, 182, 255])
def test_a_photograph_is_no_layout(tmp_path, classes):
    noise = np.random.default_rng(0).normal(0, 40, (12, 12, 3))
    photo = Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    with pytest.raises(LayoutError, match="is no layout of these classes"):
        read_layout(saved(tmp_path, photo), classes, class_colours())


def blots(classes, side=160):
    """A painted layout: smooth regions of many classes."""
    coarse = np.random.default_rng(classes).integers(0, classes, (6, 6)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).rotate(20, fillcolor=1))


@pytest.mark.parametrize("classes", [9, 150, 182, 255])
@pytest.mark.parametrize("quality", [95, 75])
def test_a_painted_layout_comes_back_from_a_jpeg(tmp_path, classes, quality):
    layout, path = blots(classes), tmp_path / "mine.jpg"
    Image.fromarray(np.array(class_colours(), np.uint8)[layout]).save(path, quality=quality)
    with pytest.warns(UserWarning, match="given the nearest one, small patches what surrounds them"):
        found = read_layout(path, classes, class_colours()).numpy()
    assert (found == layout).mean() > 0.96  # but for the outlines
    assert np.isin(found, layout).mean() > 0.999  # no class by chance, where two colours run into each other


def test_soft_borders_become_one_class_or_the_other(tmp_path):
    layout = blots(182)
    large = Image.fromarray(np.array(class_colours(), np.uint8)[layout.repeat(4, 0).repeat(4, 1)])
    path = saved(tmp_path, large.resize((160, 160), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(0.7)))
    with pytest.warns(UserWarning, match="nearest one"):
        found = read_layout(path, 182, class_colours()).numpy()
    assert (found == layout).mean() > 0.97
    assert np.isin(found, layout).mean() > 0.999


def test_lines_of_one_pixel_stay_where_colours_are_exact(tmp_path):
    layout = np.zeros((32, 32), np.uint8)
    layout[:, 9], layout[20, 20] = 5, 7
    path = saved(tmp_path, Image.fromarray(np.array(class_colours(), np.uint8)[layout]))
    assert np.array_equal(read_layout(path, 182, class_colours()), layout)


@pytest.mark.parametrize("save", [
    lambda layout, colours: Image.fromarray(layout),  # indices
    lambda layout, colours: Image.fromarray(layout).convert("RGB"),  # indices, as programs save grey in colour
    lambda layout, colours: Image.fromarray(colours[layout]),
    lambda layout, colours: Image.fromarray(colours[layout]).quantize(8, dither=Image.Dither.NONE),  # numbered anew
])
def test_void_of_a_layout_is_void(tmp_path, save):
    layout = blots(3).copy()
    layout[:40] = 255
    path = saved(tmp_path, save(layout, np.array(class_colours(), np.uint8)))
    found = read_layout(path, 3, class_colours(), None, 255, class_colours()[255])
    assert np.array_equal(found, layout)


def test_void_that_nobody_expects_is_named(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full((4, 5), 255, np.uint8)))
    with pytest.raises(LayoutError, match=r"255 at 20 pixels.* 255 usually marks void, which ignore_index: 255"):
        read_layout(path, 3, class_colours())


def test_grey_jpegs_of_indices_are_refused(tmp_path):
    Image.fromarray(blots(9)).save(tmp_path / "mine.jpg")
    with pytest.raises(LayoutError, match="a JPEG or the like in grey, which smears the borders"):
        read_layout(tmp_path / "mine.jpg", 9, class_colours())


@pytest.mark.parametrize("make", [Image.fromarray, coloured])
@pytest.mark.parametrize(("size", "part"), [
    ((12, 16), (slice(1, None, 2), slice(1, None, 2))),  # half of it: every second pixel
    ((24, 24), (slice(None), slice(4, 28))),  # cut left and right
    ((8, 32), (slice(8, 16), slice(None))),  # cut above and below
])
def test_fitting_cuts_the_middle_and_mixes_no_classes(tmp_path, indices, make, size, part):
    assert np.array_equal(read(saved(tmp_path, make(indices)), size=size), indices[part])


def test_enlarging_repeats_pixels(tmp_path, indices):
    found = read(saved(tmp_path, Image.fromarray(indices)), size=(72, 96))
    assert np.array_equal(found, indices.repeat(3, 0).repeat(3, 1))


def test_a_picture_on_its_side_is_turned_upright(tmp_path, indices):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter, clockwise
    found = read(saved(tmp_path, coloured(indices), exif=exif))
    assert np.array_equal(found, np.rot90(indices, -1))


@pytest.mark.parametrize(("write", "words"), [
    (lambda path: None, "does not exist"),
    (lambda path: path.mkdir(), "cannot be read"),
    (lambda path: path.write_text("sky above, grass below"), "not a picture"),
    (lambda path: path.write_bytes(b""), "empty"),
    (lambda path: Image.fromarray(np.full((4, 5), 9, np.uint8)).save(path), "index 9 at 20 pixels.* 0 to 8"),
    (lambda path: Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(path, "TIFF"), "holds floats"),
])
def test_what_is_no_layout_is_refused_in_a_sentence(tmp_path, write, words):
    path = tmp_path / "mine.png"
    write(path)
    with pytest.raises(LayoutError, match=words) as caught:
        read_layout(path, CLASSES)
    assert str(path) in str(caught.value)
    assert re.search(r"[:;,] (name|save|paint) ", str(caught.value))  # the remedy


def test_colours_need_a_palette(tmp_path, indices):
    with pytest.raises(LayoutError, match="no palette to read it by: save it as a grey"):
        read_layout(saved(tmp_path, coloured(indices)), CLASSES)


def test_written_layouts_are_read_again(tmp_path):
    layout = draw_layout(0, (32, 48))
    write_layout(tmp_path / "mine.png", layout, SEGMENT_PALETTE)
    assert torch.equal(read_layout(tmp_path / "mine.png", CLASSES, SEGMENT_PALETTE), layout)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mine.png").convert("RGB")), COLOURS[layout])


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (96, 64)])
def test_a_drawn_layout_is_a_landscape_in_every_class(size):
    for seed in range(3):
        layout = draw_layout(seed, size)
        assert layout.shape == size
        assert layout.dtype == torch.int64
        assert set(layout.unique().tolist()) == set(range(CLASSES))
        height = torch.arange(size[0], dtype=torch.float32)[:, None].expand(size) / size[0]
        above = [float(height[layout == SEGMENT_NAMES.index(name)].mean())
                 for name in ("sky", "mountain", "water", "sand")]
        assert above == sorted(above)


def test_drawn_layouts_follow_from_the_seed():
    assert torch.equal(draw_layout(3, (48, 48)), draw_layout(3, (48, 48)))
    assert not torch.equal(draw_layout(3, (48, 48)), draw_layout(4, (48, 48)))


def test_a_layout_drawn_larger_is_the_same_one():
    small, large = draw_layout(1, (64, 96)), draw_layout(1, (128, 192))
    assert float((large[1::2, 1::2] == small).float().mean()) > 0.93
