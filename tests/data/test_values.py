"""Pictures of more than 8 bits and paired columns in grey: one scale for the set, three channels where colours are
looked at, one where depth is."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import pictures_of, smooth

from tesserae.data.external import large_conditions, read_condition
from tesserae.data.listing import list_source
from tesserae.data.pictures import Pictures, PicturesError
from tesserae.data.prepare import SHARDS, PrepareError, aside_of, decode_shards, prepare
from tesserae.data.views import make_view, view_of
from tesserae.errors import TesseraeError
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import ParamsError, PrepareParams, check_params, load_params
from tesserae.playground.work import read_picture

PLAIN = Path(__file__).parents[1] / "plain.yaml"
COUNT, SIDE = 8, 16
SPLITS = ("train", "validation")


def params(**changes):
    values = {"source": "data", "image_size": SIDE, "fit": "cover", "holdout": 0.25, "min_side": 8,
              "max_rejected": 0.1}
    return PrepareParams(**values | changes)


def grey(number, side=SIDE):
    """(side,side) float64 in 0 to 255, from end to end; another for each number."""
    blots = smooth(1, side, number)[0, ..., 0].astype(float)
    return (blots - blots.min()) * 255 / (blots.max() - blots.min())


def whole(values):
    return Image.fromarray(np.rint(values).astype(np.uint16))


def floats(values):
    return Image.fromarray(np.asarray(values, np.float32))


def colours(number):
    return Image.fromarray(smooth(1, SIDE, number)[0])


def save(picture, folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    suffix = {"F": "tif", "I": "tif", "CMYK": "tif"}.get(picture.mode, "png")
    picture.save(folder / f"{name}.{suffix}")
    return f"{name}.{suffix}"


def prepared(folder, picture=colours, column=None, pair=None, count=COUNT, **changes):
    """Prepare `count` pictures, each with its pair; the report and both splits."""
    rows = []
    for number in range(count):
        rows.append({"file_name": save(picture(number), folder / "data", f"{number}")})
        if pair:
            rows[-1][f"{column}_file_name"] = save(pair(number), folder / "data", f"{column}-{number}")
    if pair:
        (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare(folder / "data", folder / "prepared", params(**changes), 0)
    return report, [Pictures.load(folder / "prepared", split) for split in SPLITS]


def by_number(splits, read):
    """What `read(pictures, indices)` gives of each picture, by the number in its name."""
    return {int(path.split(".")[0]): part for pictures in splits
            for path, part in zip(pictures.paths, read(pictures, range(len(pictures))))}


def depth_of(splits, column="depth"):
    """Depth as the network reads it, (H,W) in 0 to 1, by number."""
    view = make_view("depth", column, *splits)
    read = lambda pictures, indices: (view.network_input(view.raw(pictures, indices))[:, 0] + 1) / 2  # noqa: E731
    return {number: part.numpy() for number, part in by_number(splits, read).items()}


def pixels_of(splits):
    return {number: part[0].numpy() for number, part in by_number(splits, lambda p, chosen: p.batch(chosen)).items()}


def noted(report, wanted):
    assert re.search(wanted, "\n".join(report.notes)), report.notes


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize(("picture", "black", "white", "expected"), [
    (lambda n: whole(grey(n) * 16), 0, 4095, "whole numbers from 0 to 4,080; 0 to 4,095 is black to white"),
    (lambda n: whole(grey(n) * 257), 0, 65535, ""),
    (lambda n: whole(27_000 + grey(n) * 12), 27_000, 30_060, "27,000 to 30,060 is black to white"),
    (lambda n: Image.fromarray((grey(n) * 12 - 1024).astype(np.int32)), -1024, 2036, "whole numbers from -1,024"),
    (lambda n: floats(grey(n) / 255), 0, 1, "floats from 0 to 1;"),
    (lambda n: floats(grey(n) / 127.5 - 1), -1, 1, "floats from -1 to 1;"),
    (lambda n: floats(grey(n)), 0, 255, "floats from 0 to 255;"),
    (lambda n: floats(grey(n) * (n + 1)), 0, 2040, "floats from 0 to 2,040;"),
], ids=["12 bits", "16 bits", "thermal", "signed", "up to 1", "around 0", "up to 255", "up to anything"])
def test_pictures_have_one_scale(tmp_path, picture, black, white, expected):
    report, splits = prepared(tmp_path, picture)
    for number, pixels in pixels_of(splits).items():
        values = np.asarray(picture(number), np.float64)
        assert np.abs(pixels - (values - black) / (white - black) * 255).max() <= 1
    noted(report, expected) if expected else None
    assert len(report.notes) == bool(expected)
    assert report.ranges == ({} if not expected else report.ranges | {"image_black": black, "image_white": white})


def test_pictures_of_8_bits_stay_beside_deeper_ones(tmp_path):
    _, splits = prepared(tmp_path, lambda n: Image.fromarray(grey(n).astype(np.uint8)) if n % 2 else
                         whole(grey(n) * 16))
    for number, pixels in pixels_of(splits).items():
        assert np.abs(pixels - grey(number)).max() <= 2  # 4,080 of 4,095, rounded


def test_pictures_that_differ_in_brightness_alone_are_no_copies(tmp_path):
    report, splits = prepared(tmp_path, lambda n: whole(np.full((SIDE, SIDE), 500 * (n + 1))))
    assert not report.duplicates
    levels = [int(pixels.max()) for _, pixels in sorted(pixels_of(splits).items())]
    assert levels == [round(500 * (n + 1) / 4095 * 255) for n in range(COUNT)]


def test_one_outlier_does_not_darken_the_set(tmp_path):
    def picture(number):
        values = grey(number, 64) * 16
        values[5, 5] = 65535 if number == 3 else values[5, 5]
        return whole(values)

    report, splits = prepared(tmp_path, picture)
    assert all(pixels.max() > 200 for pixels in pixels_of(splits).values())
    noted(report, "of image's pixels are 65,535, far from all others, .* become white")
    assert report.ranges["image_largest"] == 65535


def test_many_outliers_are_named(tmp_path):
    def picture(number):
        values = grey(number, 64) * 16
        values[0, :3] = 50_000, 60_000, 65_000
        return whole(values)

    report, _ = prepared(tmp_path, picture)
    noted(report, "99.9 % of the pixels are at most 4,080, which is nearly black: set prepare.value_ranges")


def test_holes_of_pictures_become_black_and_padding_white(tmp_path):
    def picture(number):
        values = grey(number, 32)[:16] / 255
        values[:4, :4] = np.nan
        return floats(values)

    report, splits = prepared(tmp_path, picture, fit="contain")
    for pixels in pixels_of(splits).values():
        assert (pixels[:3] == 255).all()
        assert pixels[4, 0] == 0
    noted(report, "3.1 % of image's pixels are no numbers")


def test_dark_colours_of_16_bits_are_refused(tmp_path):
    """Of such files the upper 8 bits are read."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def png(values):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    for bits, outcome in ((12, "has colours of 16 bits that use 14 of them or fewer"), (16, None)):
        data = tmp_path / str(bits)
        data.mkdir()
        for number in range(4):
            values = smooth(1, SIDE, number)[0].astype(np.uint16) * (16 if bits == 12 else 257)
            (data / f"{number}.png").write_bytes(png(values))
        if outcome:
            with pytest.raises(PrepareError, match=outcome):
                prepare(data, tmp_path / "out", params(), 0)
        else:
            assert not prepare(data, tmp_path / "out", params(), 0).rejected


# ------------------------------------------------------------------ depth


@pytest.mark.parametrize(("pair", "white", "error"), [
    (lambda n: whole(500 + grey(n) * 10 * (n + 1) / COUNT), 3050, 0.001),
    (lambda n: whole(grey(n) * 257), 65535, 1e-4),
    (lambda n: Image.fromarray((grey(n) * 400).astype(np.int32)), 102_000, 1e-4),
    (lambda n: floats(grey(n) * (n + 1) / 200), 10.2, 1e-4),
    (lambda n: Image.fromarray(grey(n).astype(np.uint8)), 255, 1e-4),
], ids=["millimetres", "16 bits", "32 bits", "metres", "8 bits"])
def test_depth_fills_its_range(tmp_path, pair, white, error):
    report, splits = prepared(tmp_path, colours, "depth", pair)
    for number, depth in depth_of(splits).items():
        assert np.abs(depth - np.asarray(pair(number), np.float64) / white).max() < error
    assert ("depth_white" in report.ranges) == (white not in (255, 65535))


@pytest.mark.parametrize(("hole", "expected"), [
    (0, r"25 % of depth's pixels are 0, the usual mark for no measurement"),
    (65535, r"25 % of depth's pixels are 65,535, far from all others, as no measurement often is"),
], ids=["0", "65535"])
def test_holes_of_whole_numbers_are_named_and_stay_sharp(tmp_path, hole, expected):
    def pair(number):
        values = 2000 + grey(number, 64) * 8
        values[16:48, 16:48] = hole
        return whole(values)

    report, splits = prepared(tmp_path, partial(picture_of, 64), "depth", pair)
    noted(report, expected)
    for depth in depth_of(splits).values():
        near, far = depth[4:12, 4:12], np.delete(depth.reshape(-1), inside(4, 12))
        assert (near == (1 if hole else 0)).all()
        assert far.min() > 2000 / 4040 - 0.01


def picture_of(side, number):
    return Image.fromarray(smooth(1, side, number)[0])


def inside(start, stop):
    """Places of the square from start to stop in a flattened picture."""
    return [row * SIDE + column for row in range(start, stop) for column in range(start, stop)]


@pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf])
def test_holes_of_floats_are_black(tmp_path, hole):
    def pair(number):
        values = 1 + grey(number) / 64
        values[:8] = hole
        return floats(values)

    report, splits = prepared(tmp_path, colours, "depth", pair)
    noted(report, "50 % of depth's pixels are no numbers .NaN or infinite.: they become black")
    for number, depth in depth_of(splits).items():
        assert (depth[:8] == 0).all()
        assert np.abs(depth[8:] - (1 + grey(number)[8:] / 64) / report.ranges["depth_white"]).max() < 1e-4


def test_depth_without_a_number_is_refused(tmp_path):
    report, _ = prepared(tmp_path, colours, "depth",
                         lambda n: floats(np.full((SIDE, SIDE), np.nan) if n == 2 else grey(n)), max_rejected=0.5)
    assert report.rejected == [("2.png", "depth holds values that are no numbers alone (NaN or infinite)")]


def test_depth_close_together_beside_holes_fills_the_range(tmp_path):
    def pair(number):
        values = 900 + grey(number) / 3
        values[:4] = 0
        return whole(values)

    _, splits = prepared(tmp_path, colours, "depth", pair)
    assert all(depth[4:].max() - depth[4:].min() > 0.5 for depth in depth_of(splits).values())


def test_a_range_by_hand(tmp_path):
    report, splits = prepared(tmp_path, colours, "depth", lambda n: whole(grey(n) * 20),
                              value_ranges={"depth": [1000, 3000], "image": [0, 10]})
    for number, depth in depth_of(splits).items():
        assert np.abs(depth - ((np.rint(grey(number) * 20) - 1000) / 2000).clip(0, 1)).max() < 1e-3
    noted(report, "1,000 to 3,000 is black to white in every picture, as prepare.value_ranges says")
    noted(report, "prepare.value_ranges.image is not used: no file of image has more than 8 bits")


def test_a_range_by_hand_is_checked(tmp_path):
    with pytest.raises(PrepareError, match=r"value_ranges names 'dept', which the data lacks \(image, depth are"):
        prepared(tmp_path, colours, "depth", lambda n: whole(grey(n)), value_ranges={"dept": [0, 1]})
    values = load_params(PLAIN).model_dump()
    values["prepare"]["value_ranges"] = {"depth": [5, 5]}
    with pytest.raises(ParamsError, match=r"value_ranges.depth = \[5.0, 5.0\] must rise"):
        check_params(values)


def test_the_error_is_told_in_the_files_unit(tmp_path):
    _, splits = prepared(tmp_path, colours, "depth", lambda n: whole(grey(n) * 16))
    view = make_view("depth", "depth", *splits)
    real = torch.zeros(2, 1, 4, 4)
    found = view.measures(real + 0.5, real)
    assert torch.allclose(found["depth_error"], torch.tensor(0.25))
    assert torch.allclose(found["depth_error_unscaled"], torch.tensor(0.25 * 4080))


def test_the_scale_is_the_sets_whoever_prepares_it(tmp_path, monkeypatch):
    """Shards by two processes, and a picture that comes later: the same scale as at a stretch."""
    pair = lambda n: whole(500 + grey(n) * (n + 1) * 2)  # noqa: E731
    prepared(tmp_path / "one", colours, "depth", pair)
    monkeypatch.setattr("tesserae.data.prepare.SHARD", 3)
    prepared(tmp_path / "two", colours, "depth", pair, count=COUNT - 1)
    (tmp_path / "two" / "data" / "metadata.jsonl").write_text(
        (tmp_path / "one" / "data" / "metadata.jsonl").read_text())
    save(colours(COUNT - 1), tmp_path / "two" / "data", f"{COUNT - 1}")
    save(pair(COUNT - 1), tmp_path / "two" / "data", f"depth-{COUNT - 1}")
    folder = aside_of(tmp_path / "two" / "prepared") / SHARDS
    for rank in (1, 0):
        list(decode_shards(list_source(tmp_path / "two" / "data"), params(), folder, rank, 2))
    prepare(tmp_path / "two" / "data", tmp_path / "two" / "prepared", params(), 0)
    one, two = (depth_of([Pictures.load(tmp_path / name / "prepared", split) for split in SPLITS])
                for name in ("one", "two"))
    assert set(one) == set(two) == set(range(COUNT))
    assert all((one[number] == two[number]).all() for number in one)


# ------------------------------------------------------------------ pictures from elsewhere


@pytest.fixture
def millimetres(tmp_path):
    """The view of a set of depth from 500 to 4,500, as the saved model tells it."""
    _, splits = prepared(tmp_path, colours, "depth", lambda n: whole(500 + grey(n) * 4000 / 255))
    view = make_view("depth", "depth", *splits)
    config = VQGANConfig(**view.record(), channels=8, channel_mult=(1,), res_blocks=1, patch=4, attention=False,
                         z_channels=8, codebook_size=4, codebook_dim=4)
    VQGAN(config).save_pretrained(tmp_path / "model")
    return view_of(VQGAN.from_pretrained(tmp_path / "model").config)


def test_depth_from_elsewhere_has_the_models_scale(tmp_path, millimetres):
    save(whole(np.full((SIDE, SIDE), 2250)), tmp_path / "mine", "a")
    for raw in (read_condition(tmp_path / "mine" / "a.png", millimetres, (SIDE, SIDE)),
                   large_conditions("mine", {"depth": millimetres}, (SIDE, 2 * SIDE), 1, 0,
                                    pictures_of(image=smooth(2)), tmp_path)[0]["depth"]):
        assert (raw == round(2250 / 4500 * 65535)).all()
        assert millimetres.network_input(raw).abs().max() < 1e-3
    save(Image.fromarray(np.full((SIDE, SIDE), 51, np.uint8)), tmp_path, "eight")  # a share of the range
    assert (read_condition(tmp_path / "eight.png", millimetres, (SIDE, SIDE)) == 51 * 257).all()


@pytest.mark.parametrize(("picture", "expected"), [
    (floats(np.full((SIDE, SIDE), 2.25)), r"holds floats, and depth was trained on whole numbers from 0 to 4,500"),
    (whole(np.full((SIDE, SIDE), 22_500)), r"holds 22,500 to 22,500, and depth was trained on 0 to 4,500"),
    (colours(0), r"has colours \(packed or rendered\), and depth is one number a pixel: save the numbers as grey"),
    (colours(0).convert("P"), "has colours"),
    (Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)), "has colours"),
    (Image.merge("LA", [colours(0).convert("L")] * 2), "has a transparency that varies beside its depth"),
], ids=["floats", "tenths", "rendered", "palette", "packed", "packed in LA"])
def test_other_depth_from_elsewhere_is_refused(tmp_path, millimetres, picture, expected):
    name = save(picture, tmp_path / "mine", "strange")
    for read in (lambda: read_condition(tmp_path / "mine" / name, millimetres, (SIDE, SIDE)),
                 lambda: large_conditions("mine", {"depth": millimetres}, (SIDE, SIDE), 1, 0,
                                          pictures_of(image=smooth(2)), tmp_path)):
        with pytest.raises(TesseraeError, match=f"strange.* {expected}") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_depth_beyond_the_training_is_cut_off_with_a_warning(tmp_path, millimetres):
    values = np.full((SIDE, SIDE), 4500)
    values[:8] = 6000
    save(whole(values), tmp_path, "far")
    with pytest.warns(UserWarning, match="far.png holds 4,500 to 6,000, .* cut off"):
        found = read_condition(tmp_path / "far.png", millimetres, (SIDE, SIDE))
    assert (found == 65535).all()


def test_pictures_from_elsewhere_have_the_models_scale(tmp_path):
    _, splits = prepared(tmp_path, lambda n: whole(grey(n) * 16))
    view = view_of(VQGANConfig(**make_view("image", "image", *splits).record()))
    save(whole(np.full((SIDE, SIDE), 1000)), tmp_path, "dark")  # by itself it would be white
    expected = round(1000 / 4095 * 255)
    assert (read_condition(tmp_path / "dark.png", view, (SIDE, SIDE)) == expected).all()
    assert (read_picture((tmp_path / "dark.png").read_bytes(), SIDE, "cover", view.ranges) == expected).all()


def test_models_without_a_scale_still_load(tmp_path):
    config = VQGANConfig(view="depth", column="depth", in_channels=1, out_channels=1, channels=8, channel_mult=(1,),
                         res_blocks=1, patch=4, attention=False, z_channels=8, codebook_size=4, codebook_dim=4)
    VQGAN(config).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if not key.endswith("_range")}))
    view = view_of(VQGAN.from_pretrained(tmp_path / "model").config)
    save(whole(np.full((SIDE, SIDE), 30_000)), tmp_path, "mine")
    assert (read_condition(tmp_path / "mine.png", view, (SIDE, SIDE)) == 30_000).all()


# ------------------------------------------------------------------ depth in colours, colours as depth


def packed(number):
    """Depth in 24 bits, as simulators save it."""
    values = (grey(number) * 60_000).astype(int)
    return Image.fromarray(np.stack([values & 255, values >> 8 & 255, values >> 16], -1).astype(np.uint8))


COLOURED = {"packed": packed, "packed with alpha": lambda n: packed(n).convert("RGBA"), "rendered": colours,
            "palette": lambda n: colours(n).convert("P"), "cmyk": lambda n: colours(n).convert("CMYK"),
            "packed in alpha": lambda n: Image.merge("LA", packed(n).split()[:2])}


@pytest.mark.parametrize("pair", COLOURED.values(), ids=COLOURED)
def test_depth_in_colours_is_refused(tmp_path, pair):
    with pytest.raises(PrepareError, match=r"depth has (colours|a transparency).*: save .*as grey of 8") as caught:
        prepared(tmp_path, colours, "depth", pair)
    assert "\n" not in str(caught.value)


def test_a_column_without_depth_is_refused(tmp_path):
    _, splits = prepared(tmp_path, colours, "photo", colours)
    for column in ("image", "photo"):
        with pytest.raises(PicturesError, match=rf"{column} holds pictures in colour \(\d\.png\): name the column"):
            make_view("depth", column, *splits)
    loose = pictures_of(image=smooth(3), mask=list(smooth(3)[..., 0]))  # a set that does not say so
    with pytest.raises(PicturesError, match="image holds pictures in colour"):
        make_view("depth", "image", loose)
    with pytest.raises(PicturesError, match="mask holds masks"):
        make_view("depth", "mask", loose)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_saved_as_colours_is_depth(tmp_path, mode):
    plain = lambda n: Image.fromarray(grey(n).astype(np.uint8))  # noqa: E731
    _, splits = prepared(tmp_path, lambda n: plain(n).convert("RGB"), "depth", lambda n: plain(n).convert(mode))
    for column in ("depth", "image"):
        for number, depth in depth_of(splits, column).items():
            assert np.abs(depth * 255 - grey(number).astype(np.uint8)).max() < 1e-3


def test_transparent_depth_is_a_hole(tmp_path):
    def pair(number):
        alpha = np.full((SIDE, SIDE), 255, np.uint8)
        alpha[:8] = 0
        return Image.fromarray(np.dstack([100 + grey(number) / 2, alpha]).astype(np.uint8))

    report, splits = prepared(tmp_path, colours, "depth", pair)
    assert all((depth[:8] == 0).all() and depth[8:].min() > 0.3 for depth in depth_of(splits).values())
    noted(report, "50 % of depth's pixels are 0")


@pytest.mark.parametrize("odd", [lambda n: floats(1 + grey(n) / 100),
                                 lambda n: Image.fromarray(grey(n).astype(np.uint8))], ids=["metres", "8 bits"])
def test_depth_of_two_measures_is_refused(tmp_path, odd):
    report, splits = prepared(tmp_path, colours, "depth", lambda n: odd(n) if n == 3 else whole(500 + grey(n) * 9))
    noted(report, r"depth mixes files: .*3\.png.*save all alike if they hold one measure")
    with pytest.raises(PicturesError, match=r"needs one measure, and depth holds .*\(3\.png\).*: save all"):
        make_view("depth", "depth", *splits)


def test_a_column_named_as_the_set_names_its_own(tmp_path):
    with pytest.raises(TesseraeError, match="'height' has a name that the prepared set uses itself: give it another"):
        prepared(tmp_path, colours, "height", lambda n: whole(grey(n)))


# ------------------------------------------------------------------ paired columns in grey


MODES = ["L", "RGB", "RGBA", "P", "1", "I;16", "CMYK", "LA"]


def in_mode(mode, number):
    return whole(grey(number) * 257) if mode == "I;16" else colours(number).convert(mode)


@pytest.mark.parametrize("modes", [*([mode] for mode in MODES), MODES, ["L", "RGB"], ["I;16", "1"]], ids="+".join)
@pytest.mark.parametrize(("kind", "channels"), [("image", 3), ("low_resolution", 3), ("edges", 1)])
def test_paired_pictures_have_the_views_channels(tmp_path, modes, kind, channels):
    report, splits = prepared(tmp_path, colours, "photo", lambda n: in_mode(modes[n % len(modes)], n))
    assert not report.rejected
    view = make_view(kind, "photo", *splits)
    for pictures in splits:
        x = view.network_input(view.raw(pictures, range(len(pictures))))
        assert x.shape == (len(pictures), channels, SIDE, SIDE)
        assert view.rendered(x).shape == pictures.look("photo", range(len(pictures))).shape
    if kind == "image":
        for number, part in by_number(splits, view.raw).items():
            mode = modes[number % len(modes)]
            given = np.asarray(in_mode(mode, number).convert("RGB")) if mode != "I;16" else grey(number)[..., None]
            assert np.abs(part.permute(1, 2, 0).numpy() - given.astype(float)).max() <= 1
