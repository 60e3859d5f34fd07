"""Figures show what they are given: pixels are counted, lines and labels are read back."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from tesserae import figures
from tesserae.figures.files import png_of

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _plain(*colours, side=16):
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].repeat(1, 1, side, side)


def _rendered(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    return np.asarray(Image.open(buffer).convert("RGB"))


def whole(figure) -> np.ndarray:
    """To its last pixel, as stages save figures."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _count(pixels: np.ndarray, colour) -> int:
    return int((pixels == colour).all(-1).sum())


def _texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_pixels_of_bytes_stay_and_floats_are_scaled():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    assert np.array_equal(figures.to_pixels(images), images.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(figures.to_pixels(images.float() / 127.5 - 1), figures.to_pixels(images))
    assert figures.to_pixels(torch.tensor([-5.0, -1, 0, 1, 9]).reshape(5, 1, 1, 1))[:, 0, 0].tolist() == [
        [0] * 3, [0] * 3, [128] * 3, [255] * 3, [255] * 3]


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4), (4, 4, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="is needed"):
        figures.to_pixels(torch.zeros(shape))


def test_a_grid_holds_each_picture_in_its_place():
    images = torch.randint(0, 255, (5, 3, 6, 7), dtype=torch.uint8)
    grid = np.asarray(figures.grid_image(images, columns=3, gap=2))
    assert grid.shape == (2 * 8 + 2, 3 * 9 + 2, 3)
    for place, pixels in enumerate(figures.to_pixels(images)):
        y, x = 2 + place // 3 * 8, 2 + place % 3 * 9
        assert np.array_equal(grid[y:y + 6, x:x + 7], pixels)
    assert (grid[10:, 20:] == 255).all()


def test_enlarging_keeps_pixels_square_and_shrinking_averages():
    checks = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(8, 8)[None, None]
    large = figures.resize(figures.to_pixels(checks), 3)
    assert np.array_equal(large[0, ::3, ::3, 0], checks[0, 0].numpy())
    small = figures.resize(figures.to_pixels(checks), 0.25)
    assert small.shape == (1, 4, 4, 3)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_a_saved_grid_has_the_pictures_pixel_for_pixel():
    pixels = _rendered(figures.image_grid(_plain(RED, BLUE, RED), 2, titles=["a", "b", "c"], scale=4, title="Three"))
    assert _count(pixels, RED) == 2 * 64 * 64
    assert _count(pixels, BLUE) == 64 * 64


def test_small_pictures_are_enlarged_and_wide_grids_shrunk():
    assert _count(_rendered(figures.image_grid(_plain(RED), 1)), RED) == 96**2
    wide = _rendered(figures.image_grid(_plain(RED, RED, RED, RED, side=600), 4))
    assert wide.shape[1] < 1200


def test_titles_are_drawn_and_cut_where_they_are_too_long():
    figure = figures.image_grid(_plain(RED, BLUE), 2, titles=["short", "a title that is far too long for this"],
                                row_titles=["row"], column_titles=["left", "right"])
    texts = _texts(figure)
    assert {"short", "row", "left", "right"} <= set(texts)
    assert any(text.endswith("…") for text in texts)


def test_reconstructions_stand_below_their_pictures():
    figure = figures.reconstruction_grid(_plain(RED, RED, RED), _plain(BLUE, BLUE, BLUE), columns=2, difference=True)
    assert _texts(figure).count("reconstruction") == 2
    pixels = _rendered(figure)
    assert _count(pixels, RED) == _count(pixels, BLUE) == 3 * 96**2
    assert _count(pixels, (0, 128, 255)) == 3 * 96**2  # twice the difference around grey


def test_a_legend_stands_below_and_moves_nothing():
    pictures = torch.randint(0, 256, (6, 3, 48, 48), dtype=torch.uint8)
    plain = whole(figures.image_grid(pictures, 3, row_titles=["a", "b"]))
    entries = [(f"{index} sky", (200, index, 7)) for index in range(9)] + [("and 3 more", None)]
    found = whole(figures.with_legend(figures.image_grid(pictures, 3, row_titles=["a", "b"]), entries))
    assert np.array_equal(found[:len(plain)], plain)
    below = found[len(plain):]
    assert len(below) < 100
    assert all((below == colour).all(-1).sum() > 40 for _, colour in entries[:-1])


def test_without_entries_there_is_no_legend():
    figure = figures.image_grid(torch.zeros(2, 3, 8, 8), 2)
    size = figure.get_size_inches().tolist()
    assert figures.with_legend(figure, []).get_size_inches().tolist() == size


def test_figures_are_shown_once_and_leak_nothing():
    before = plt.get_fignums()
    figures.image_grid(_plain(RED), 1)
    figures.message("Nothing.")
    figures.histogram([1, 2, 3], "t", "x")
    assert plt.get_fignums() == before


def test_a_message_can_be_shown_by_a_notebook():
    from IPython.core.pylabtools import print_figure

    assert print_figure(figures.message("Nothing yet.")) is not None


def _history():
    steps = np.arange(20, 420, 20)
    return pd.DataFrame({"step": steps, "loss": np.exp(-steps / 50), "flat": 2.0, "empty": np.nan,
                         "val_loss": np.where(steps % 100 == 0, 0.5, np.nan)})


def test_curves_leave_out_what_was_not_recorded():
    panels = {"Loss": ["loss", "val_loss", "gone"], "Nothing": ["empty"], "Flat": ["flat"]}
    figure = figures.curves(_history(), panels)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["Loss", "Flat"]
    assert shown[0].get_yscale() == "log"
    assert shown[1].get_yscale() == "linear"
    labels = [text.get_text() for text in shown[0].get_legend().get_texts()]
    assert labels == ["loss", "loss, held out"]


def test_held_out_curves_are_drawn_as_measured():
    figure = figures.curves(_history(), {"Loss": ["val_loss"]}, levels={"Loss": {"entropy": 0.7}})
    line, level = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == [100, 200, 300, 400]
    assert list(line.get_ydata()) == [0.5] * 4
    assert line.get_marker() == "o"
    assert list(level.get_ydata()) == [0.7, 0.7]


def test_few_points_are_not_smoothed_away():
    history = pd.DataFrame({"step": range(5), "rising": [0.0, 1, 2, 3, 4]})
    lines = figures.curves(history, {"Rising": ["rising"]}, smooth=9).axes[0].get_lines()
    assert [line.get_ydata().tolist() for line in lines] == [[0, 1, 2, 3, 4]]


def test_smoothing_lags_behind_nothing():
    history = pd.DataFrame({"step": range(30), "rising": np.arange(30.0)})
    raw, smooth = figures.curves(history, {"Rising": ["rising"]}, smooth=9).axes[0].get_lines()
    assert np.allclose(raw.get_ydata()[4:-4], smooth.get_ydata()[4:-4])


def test_no_curve_at_all_is_said():
    assert "No curve" in _texts(figures.curves(pd.DataFrame({"step": []}), {"Loss": ["loss"]}))[0]
    assert "None of these runs" in _texts(figures.overlaid({}, ["loss"]))[0]


def test_overlaid_runs_have_one_colour_each_and_one_legend():
    figure = figures.overlaid({"first": _history(), "second": _history()}, ["loss", "flat", "gone"])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["loss", "flat"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    colours = [{line.get_color() for line in axes.get_lines()} for axes in figure.axes if axes.axison]
    assert colours[0] == colours[1] == set(figures.COLOURS[:2])


def test_class_counts_add_up_the_splits():
    figure = figures.class_counts({"train": {"a": 8, "b": 3}, "validation": {"a": 2, "c": 1}})
    assert [text.strip() for text in _texts(figure)] == ["10", "3", "1"]
    assert "no classes" in _texts(figures.class_counts({"train": {}}))[0]


ODD_NAMES = ["a cost of $5 or $6_x", "$\\frac{$ and on", "two\nlines\tand\x00more", "\U0001f436 dog", "猫の写真",
             "half \udc80", "very long name " * 14 + "the end", ""]


def _labels(figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize("draw", [
    lambda names: figures.class_counts({"train": dict.fromkeys(names, 3)}),
    lambda names: figures.paired_bars(names, {"right": [1.0] * len(names)}, "t", "x"),
    lambda names: figures.image_grid(_plain(*[RED] * len(names)), 1, row_titles=names),
    lambda names: figures.image_grid(_plain(*[RED] * len(names)), len(names), titles=names, column_titles=names),
    lambda names: figures.stacked({name: Image.new("RGB", (300, 20)) for name in names}),
], ids=["counts", "bars", "rows", "titles", "stacked"])
def test_any_class_name_can_be_drawn_as_it_is(draw, recwarn):
    """Dollar signs are no maths, long names do not widen the figure, nothing warns of letters that a font lacks."""
    content = png_of(draw(ODD_NAMES))
    assert max(Image.open(io.BytesIO(content)).size) < 1400
    said = [str(one.message) for one in recwarn.list if issubclass(one.category, UserWarning)]  # not of what is freed
    assert said == []


def test_a_caption_keeps_both_ends_of_a_long_name():
    assert figures.caption("plain") == "plain"
    short = figures.caption("trained on " + "x" * 200 + " number 7")
    assert len(short) == 32
    assert short.startswith("trained on")
    assert short.endswith("number 7")
    assert figures.caption("two\nlines") == "two lines"


def test_of_a_thousand_classes_the_largest_and_the_smallest_are_counted():
    sizes = {f"class {number:04d}": 5 + number * 7 % 1000 for number in range(1000)}
    figure = figures.class_counts({"train": sizes, "validation": {"class 0000": 2000}})
    ranked = sorted(sizes, key=lambda name: -(sizes[name] + 2000 * (name == "class 0000")))
    assert _labels(figure) == ranked[:12] + ranked[-12:]
    assert "the 12 largest and the 12 smallest of 1,000 classes" in figure.axes[0].get_title()
    assert figure.get_figheight() < 8
    assert [text.strip() for text in _texts(figure)][:1] == ["2005"]
    few = figures.class_counts({"train": {name: sizes[name] for name in ranked[:24]}})
    assert _labels(few) == ranked[:24]


def test_of_a_thousand_gaps_the_longest_and_the_shortest_are_drawn():
    """A class without held-out pictures has none."""
    right = np.random.default_rng(0).random(1000)
    gaps = np.random.default_rng(1).random(1000)
    gaps[::2] = np.nan
    names = [f"class {number}" for number in range(1000)]
    figure = figures.paired_bars(names, {"right class": right, "wrong class": right + gaps}, "Nats", "x")
    ranked = [number for number in np.argsort(-gaps) if np.isfinite(gaps[number])]
    assert _labels(figure) == [names[number] for number in ranked[:12] + ranked[-12:]]
    assert figure.axes[0].get_title() == "Nats: the 12 longest and the 12 shortest gaps of 500"
    assert figure.get_figheight() < 14


def test_a_grid_of_many_pictures_is_not_much_larger_than_its_file_may_be():
    pixels = _rendered(figures.image_grid(torch.zeros(160, 3, 96, 96), 10))
    assert 300_000 < pixels.shape[0] * pixels.shape[1] < 800_000


def test_a_histogram_counts_every_value_and_marks_lines():
    figure = figures.histogram([1, 1, 2, 9], "t", "x", marks={"limit": 5})
    assert sum(patch.get_height() for patch in figure.axes[0].patches) == 4
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [5, 5]
    assert "nothing to count" in _texts(figures.histogram([], "t", "x"))[0]


def _runs():
    return pd.DataFrame({"params.vqgan.image.codebook_size": [64, 256, 256, 1024, "?"],
                         "metrics.val_lpips": [0.4, 0.3, 0.2, 0.1, 0.5], "params.kind": ["a", "a", "a", "b", "a"]})


def test_a_scatter_joins_the_means():
    figure = figures.scatter(_runs(), "params.vqgan.image.codebook_size", "metrics.val_lpips")
    axes = figure.axes[0]
    assert list(axes.get_lines()[0].get_xdata()) == [64, 256, 1024]
    assert list(axes.get_lines()[0].get_ydata()) == pytest.approx([0.4, 0.25, 0.1])
    assert len(axes.collections[0].get_offsets()) == 4
    assert axes.get_xscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("codebook size", "lpips, held out")


def test_a_scatter_has_a_colour_for_each_group_and_says_when_there_is_none():
    figure = figures.scatter(_runs(), "params.vqgan.image.codebook_size", "metrics.val_lpips", "params.kind")
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["kind = a", "kind = b"]
    empty = figures.scatter(_runs().assign(**{"metrics.val_lpips": np.nan}), "params.kind", "metrics.val_lpips")
    assert "No run has both" in _texts(empty)[0]


def test_usage_shows_each_split_from_the_commonest_down_and_counts_the_dead():
    figure = figures.usage({"training": np.array([0, 0.5, 0.25, 0.25]), "held out": np.array([0.1, 0.2, 0.3, 0.4])})
    line = figure.axes[0].get_lines()[0]
    assert list(line.get_ydata()) == [0.5, 0.25, 0.25]
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert "training: 1 never used" in labels
    assert "held out: 0 never used" in labels


def test_a_row_of_patches_holds_the_codes_pictures_with_a_frame_around_the_middle():
    pixels = _rendered(figures.code_patches(_plain(RED, RED, side=24), _plain(RED, RED, side=24),
                                          _plain(BLUE, BLUE, BLUE, BLUE, side=24).unflatten(0, (2, 2)),
                                          ["code 1\n50%", "code 2\n50%"], factor=8))
    frame = 4 * (8 * 2 + 1)  # a square line of one pixel around 16 x 16
    assert _count(pixels, RED) == _count(pixels, BLUE) == 4 * (48 * 48 - frame)


def test_patches_of_an_odd_number_of_codes_fills_both_columns():
    figure = figures.code_patches(_plain(RED, RED, RED, side=24), _plain(RED, RED, RED, side=24),
                                _plain(BLUE, BLUE, BLUE, side=24)[:, None], ["a", "b", "c"], factor=8)
    assert [text for text in _texts(figure) if text in "abc" and text] == ["a", "b", "c"]


def test_occurrence_scales_each_map_to_its_own_peak():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 0.5, 0.004
    figure = figures.occurrence(maps, ["7", "9"])
    assert {"7: 50%", "9: 0.4%"} <= set(_texts(figure))
    brightest = tuple(round(float(v) * 255) for v in plt.get_cmap("cividis")(1.0)[:3])
    assert _count(_rendered(figure), brightest) == 2 * 21 * 21


def test_code_maps_are_as_large_as_their_pictures():
    palette = np.array([RED, BLUE], dtype=np.uint8)
    indices = torch.tensor([[[0, 1], [0, 0]]] * 2)
    below = {"below": _plain((0, 255, 0), (0, 255, 0))}
    figure = figures.code_maps(torch.zeros(2, 3, 16, 16), indices, palette, below)
    pixels = _rendered(figure)
    assert _count(pixels, RED) == 3 * _count(pixels, BLUE) == 2 * 96 * 96 * 3 // 4
    assert _count(pixels, (0, 255, 0)) == 2 * 96 * 96
    assert _texts(figure) == ["picture", "codes", "below"]


def test_the_projection_shows_used_and_dead_codes_apart():
    points = np.random.default_rng(0).normal(size=(10, 2))
    counts = np.array([0, 0, *range(1, 9)])
    figure = figures.projection(points, counts, 0.5, torch.rand(10, 3, 8, 8) * 2 - 1)
    dead, used = figure.axes[0].collections[:2]
    assert (len(dead.get_offsets()), len(used.get_offsets())) == (2, 8)
    assert len(figure.axes[1].images) == 8
    assert _rendered(figure).size


@pytest.mark.parametrize(("direction", "inside"), [("right", (16, 34)), ("below", (34, 16))])
def test_a_pair_is_framed_as_far_as_both_codes_reach(direction, inside):
    patches = torch.zeros(1, 1, 3, 40, 40, dtype=torch.uint8)
    pixels = _rendered(figures.pairs(patches, ["1, 2"], 8, direction))
    black = (pixels == 0).all(-1)
    rows, columns = np.nonzero(black)
    picture = black[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    rows, columns = np.nonzero(~picture)
    size = (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1)
    assert size == tuple(side if side == 34 else 18 for side in inside)


def test_no_pair_is_said():
    assert "by chance" in _texts(figures.pairs(torch.zeros(0, 4, 3, 40, 40), [], 8, "right"))[0]


def test_pair_matrices_share_one_scale_around_zero():
    matrix = np.array([[3.0, np.nan], [-1.0, 0.0]])
    figure = figures.pair_matrix({"right": matrix, "below": -matrix / 2}, ["1", "2"])
    scales = {axes.images[0].get_clim() for axes in figure.axes[:2]}
    assert scales == {(-3.0, 3.0)}
