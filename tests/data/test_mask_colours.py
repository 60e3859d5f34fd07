"""Colours of classes lie far apart, whatever the number of classes, and legends name those that are shown."""

import numpy as np
import pytest

from tesserae.data.palette import class_colours, colours_of, legend, to_lab


def nearest(points):
    distance = np.sqrt(np.square(points[:, None] - points).sum(-1))
    return distance[~np.eye(len(points), dtype=bool)].min()


@pytest.mark.parametrize(("classes", "lab", "rgb"), [(9, 50, 120), (21, 35, 80), (150, 15, 36), (182, 15, 33),
                                                    (256, 13, 30)])
def test_the_nearest_two_of_many_classes_are_far_apart(classes, lab, rgb):
    colours = np.array(class_colours()[:classes], dtype=np.float64)
    assert nearest(to_lab(colours)) >= lab
    assert nearest(colours) >= rgb


def test_they_differ_in_lightness_saturation_and_hue():
    light, a, b = to_lab(np.array(class_colours()[:150])).T
    saturation, hue = np.hypot(a, b), np.arctan2(b, a)
    assert light.min() < 25
    assert light.max() > 85
    assert saturation.min() < 10
    assert saturation.max() > 80
    assert np.histogram(hue[saturation > 20], 12, (-np.pi, np.pi))[0].min() > 0


def test_void_is_black_and_no_class_is_nearly_white():
    colours = np.array(class_colours())
    assert colours[255].tolist() == [0, 0, 0]
    assert np.abs(colours - 255).max(1).min() >= 30  # the ground of figures
    assert len(colours) == 256


def test_lab_by_hand():
    assert to_lab(np.array([255, 255, 255])) == pytest.approx([100, 0, 0], abs=0.02)
    assert to_lab(np.array([255, 0, 0])) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)  # Lindbloom's calculator


def test_a_palette_of_the_masks_is_kept_where_it_tells_them_apart():
    own = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    assert colours_of([0, 1, 2], own)[:3] == own
    assert colours_of([0, 2], own)[:3] == own
    assert len(set(colours_of([0, 1, 2], own))) == 256


@pytest.mark.parametrize("own", [
    [(k, k, k) for k in range(256)],  # grey, 1 of 255 apart
    [(0, 0, 0)] * 256,
    [(9, 9, 9), (200, 0, 0)],  # too short
    [],
])
def test_a_palette_that_does_not_is_replaced(own):
    assert tuple(colours_of([0, 1, 2, 200], own)) == class_colours()


def test_classes_that_do_not_occur_get_a_colour_of_their_own():
    """A palette may say nothing of an index that no mask holds: black, which is another's colour."""
    own = [(0, 0, 0), (0, 0, 0), (200, 0, 0)] + [(0, 0, 0)] * 253
    colours = colours_of([0, 2], own)
    assert colours[0] == (0, 0, 0)
    assert colours[2] == (200, 0, 0)
    assert nearest(np.array(colours[:20], dtype=float)) >= 10


def test_a_legend_names_the_largest_and_counts_the_rest():
    counts = {index: 10 * index for index in range(40)}
    entries = legend(counts, class_colours(), {39: "sky"}, most=5)
    assert [text for text, _ in entries] == ["35", "36", "37", "38", "39 sky", "and 34 more"]
    assert entries[0].colour == class_colours()[35]
    assert entries[-1].colour is None
    assert [text for text, _ in legend({7: 3, 2: 5}, class_colours())] == ["2", "7"]
