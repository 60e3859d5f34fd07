"""One file in, one picture or one reason out."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from tesserae.data.decoding import Picture, content_hash, decode, resize, to_rgb
from tesserae.data.values import Rejected


def smooth(width=64, height=48):
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // width, y * 255 // height, (x + y) % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def half(content):
    return content[: len(content) // 2]


def saved(picture, kind, **how):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **how)
    return buffer.getvalue()


def decoded(content, pairs=None, size=32, fit="stretch", min_side=8):
    return decode(content, size, fit, min_side, pairs)


def pixels(result):
    assert isinstance(result, Picture), result
    return np.asarray(Image.open(io.BytesIO(result.image)))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text", "not a picture"),
        (half(saved(smooth(), "PNG")), "truncated"),
        (saved(smooth(), "JPEG")[:-40], "truncated"),
        (saved(smooth(), "JPEG")[:100], "truncated"),
        (b"RIFF, or so it says", "broken at its head"),
        (saved(smooth(6, 90), "PNG"), "too small: 6 x 90"),
        (saved(Image.new("1", (11_000, 11_000)), "PNG"), "decompression bomb"),
        (saved(Image.new("1", (20_000, 20_000)), "PNG"), "decompression bomb"),
        (saved(smooth(), "PNG").replace(b"IDAT", b"IDAX", 1), "broken"),
    ],
    ids=range(10),
)
def test_bad_files_are_rejected_with_a_reason(content, reason):
    result = decoded(content)
    assert isinstance(result, Rejected)
    assert re.search(reason, str(result))


def test_an_unreadable_file_is_a_reason_too(tmp_path):
    result = decode(tmp_path / "gone.png", 32, "cover", 8)
    assert "No such file" in str(result)


@pytest.mark.parametrize("turn", range(2, 9))
def test_exif_turns_pictures_upright(turn):
    upright = smooth(64, 40)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # the transposition that EXIF's value undoes
    exif = Image.Exif()
    exif[0x112] = turn
    plain = decoded(saved(upright, "PNG"))
    turned = decoded(saved(upright.transpose(Image.Transpose(undo)), "PNG", exif=exif))
    assert np.array_equal(pixels(turned), pixels(plain))
    assert (turned.width, turned.height, turned.sha) == (64, 40, plain.sha)


def test_modes_become_rgb():
    rgb = smooth()
    grey = np.asarray(rgb.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(to_rgb(deep))[..., 0], grey)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(grey.astype(np.int32) * 257)))[..., 1], grey)
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(grey.astype(np.float32) / 255)))[..., 2], grey)
    assert np.array_equal(np.asarray(to_rgb(rgb.convert("L")))[..., 0], grey)
    close = {"CMYK": 2, "YCbCr": 4, "P": 60, "HSV": 12, "RGBX": 0}
    for mode, tolerance in close.items():
        out = to_rgb(rgb.convert(mode))
        assert out.mode == "RGB"
        assert np.abs(np.asarray(out).astype(int) - np.asarray(rgb)).mean() <= tolerance, mode
    assert set(np.unique(np.asarray(to_rgb(rgb.convert("1"))))) == {0, 255}


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    half = Image.new("RGBA", (16, 16), (0, 0, 0, 128))
    assert np.asarray(to_rgb(clear)).min() == 255
    assert abs(int(np.asarray(to_rgb(half))[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(palette)).min() == 255
    grey = Image.new("LA", (16, 16), (0, 0))
    assert np.asarray(to_rgb(grey)).min() == 255


def test_animations_give_their_first_frame():
    first = Image.new("RGB", (40, 40), (200, 30, 30))
    moving = saved(first, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), (0, 0, 250))])
    assert np.abs(pixels(decoded(moving)).astype(int) - (200, 30, 30)).max() < 8


def test_colour_profiles_are_applied():
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decoded(saved(smooth(), "PNG", icc_profile=srgb))
    assert same.sha == decoded(saved(smooth(), "PNG")).sha
    assert isinstance(decoded(saved(smooth(), "PNG", icc_profile=lab_like)), Picture)
    assert decoded(saved(smooth(), "PNG", icc_profile=b"nonsense")).sha == same.sha


def test_hash_knows_pixels_and_nothing_else():
    content = saved(smooth(), "PNG")
    assert decoded(content).sha == decoded(saved(smooth(), "BMP")).sha
    assert decoded(content, size=16).sha == decoded(content, size=32, fit="cover").sha
    assert content_hash(Image.new("RGB", (8, 2))) != content_hash(Image.new("RGB", (4, 4)))
    changed = smooth()
    changed.putpixel((3, 3), (1, 2, 3))
    assert decoded(saved(changed, "PNG")).sha != decoded(content).sha


def test_large_jpegs_come_at_a_fraction_and_keep_their_names():
    big = smooth(4200, 2100)
    result = decoded(saved(big, "JPEG", quality=95), size=64)
    assert (result.width, result.height) == (4200, 2100)
    small = np.asarray(big.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)[4:-4, 4:-4, :2]
    assert np.abs(pixels(result).astype(int)[4:-4, 4:-4, :2] - small).mean() < 3


def test_fits():
    bars = Image.new("RGB", (90, 30), (0, 255, 0))
    bars.paste((255, 0, 0), (0, 0, 30, 30))
    bars.paste((0, 0, 255), (60, 0, 90, 30))
    how = Image.Resampling.NEAREST
    cover = np.asarray(resize(bars, 30, "cover", how, (255, 255, 255)))
    assert (cover == (0, 255, 0)).all()
    contain = np.asarray(resize(bars, 30, "contain", how, (255, 255, 255)))
    assert (contain[:10] == 255).all()
    assert (contain[20:] == 255).all()
    assert (contain[15, 5] == (255, 0, 0)).all()
    assert (contain[15, 25] == (0, 0, 255)).all()
    stretch = np.asarray(resize(bars, 30, "stretch", how, (255, 255, 255)))
    assert (stretch[15, [2, 15, 27]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]).all()


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_paired_columns_keep_their_values(fit):
    y, x = np.mgrid[0:48, 0:64]
    names = Image.fromarray(((x // 8 + y // 8) % 5).astype(np.uint8))
    deep = Image.fromarray((x * 1000).astype(np.uint16))
    pairs = {"segmentation": saved(names, "PNG"), "depth": saved(deep, "PNG")}
    result = decoded(saved(smooth(), "PNG"), pairs, fit=fit)
    mask = np.asarray(Image.open(io.BytesIO(result.pairs["segmentation"])))
    assert set(np.unique(mask)) <= set(range(5))
    depth = Image.open(io.BytesIO(result.pairs["depth"]))
    assert depth.mode == "I;16"
    row = np.asarray(depth)[16].astype(int)
    assert 30_000 < row.max() <= 65_535
    assert (np.diff(row) >= 0).all()


def test_pairs_that_do_not_fit_are_reasons():
    picture = saved(smooth(), "PNG")
    assert "depth is 10 x 10" in str(decoded(picture, {"depth": saved(Image.new("L", (10, 10)), "PNG")}))
    assert "depth: not a picture" in str(decoded(picture, {"depth": b"text"}))
