"""Conditions: the tokens of each, one after the other, of windows wherever they lie."""

import json
from dataclasses import asdict

import pytest
import torch

from tesserae.data.conditions import (
    MAX_POSITIONS,
    Codes,
    Conditioning,
    Coordinates,
    Label,
    Start,
    conditions_of,
    make_prefix,
    record,
    windows_of,
)
from tesserae.errors import TesseraeError
from tesserae.models.transformer import TransformerConfig


def conditioning(tops, lefts, shape=(8, 8), window=(4, 4), labels=None, **maps):
    return Conditioning(torch.tensor(tops), torch.tensor(lefts), shape, window,
                None if labels is None else torch.tensor(labels), maps)


def places(height, width, count=1):
    """Maps whose codes are their places, counted row by row."""
    return torch.arange(height * width).view(1, height, width).expand(count, -1, -1)


def test_no_condition_is_one_start_token():
    assert Start().tokens(conditioning([0, 3], [1, 2])).tolist() == [[0], [0]]
    assert (Start().length, Start().vocab) == (1, 1)
    assert conditions_of([]) == [Start()]


def test_a_class_is_its_number():
    assert Label(5).tokens(conditioning([0, 3], [1, 2], labels=[4, 0])).tolist() == [[4], [0]]


@pytest.mark.parametrize("shape", [(5, 5), (8, 8), (40, 8), (6, 300)])
@pytest.mark.parametrize("vocab", [4, 10, 2 * MAX_POSITIONS])
def test_coordinates_run_from_edge_to_edge_of_maps_of_any_size(shape, vocab):
    window, last = (4, 4), vocab // 2 - 1
    rooms = [side - own for side, own in zip(shape, window)]
    tops, lefts = torch.arange(rooms[0] + 1), torch.arange(rooms[1] + 1)
    rows = Coordinates(vocab).tokens(Conditioning(tops, torch.zeros_like(tops), shape, window))
    columns = Coordinates(vocab).tokens(Conditioning(torch.zeros_like(lefts), lefts, shape, window))
    for found, first in ((rows[:, 0], 0), (columns[:, 1], vocab // 2)):
        assert (found[0].item(), found[-1].item()) == (first, first + last)
        assert (found.diff() >= 0).all()
    assert (rows[:, 1] == vocab // 2).all()
    assert not columns[:, 0].any()
    if len(tops) == vocab // 2:  # as in training: a token for each place
        assert rows[:, 0].tolist() == list(range(len(tops)))


def test_a_window_as_large_as_the_map_has_the_first_place():
    assert Coordinates(2).tokens(conditioning([0], [0], (4, 4))).tolist() == [[0, 1]]


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("window", [(4, 4), (2, 3)])
def test_the_codes_of_a_condition_are_cut_where_the_window_is(scale, window):
    """Codes of r tell their place: r's window must lie where s's does, scale times as fine."""
    tops, lefts = [0, 3, 4], [2, 0, 4]
    fine = (8 * scale, 8 * scale)
    condition = Codes("map", fine[0] * fine[1], (window[0] * scale, window[1] * scale))
    assert condition.length == window[0] * window[1] * scale**2
    tokens = condition.tokens(conditioning(tops, lefts, window=window, map=places(*fine, 3)))
    found = tokens.unflatten(1, condition.window)
    for cut, top, left in zip(found, tops, lefts):
        assert torch.equal(cut // fine[1] // scale, (top + torch.arange(window[0]))[:, None].repeat_interleave(
            scale, 0).expand(condition.window))
        assert torch.equal(cut % fine[1] // scale, (left + torch.arange(window[1]))[None].repeat_interleave(
            scale, 1).expand(condition.window))
        assert len(cut.unique()) == condition.length


def test_windows_are_slices():
    maps = torch.randint(0, 99, (3, 7, 9), generator=torch.Generator().manual_seed(0))
    found = windows_of(maps, torch.tensor([0, 2, 4]), torch.tensor([5, 0, 3]), (3, 4))
    assert torch.equal(found, torch.stack([maps[0, 0:3, 5:9], maps[1, 2:5, 0:4], maps[2, 4:7, 3:7]]))


# ------------------------------------------------------------------ several


def test_each_condition_has_tokens_of_its_own():
    """The second's are counted on from the first's vocabulary, and so on."""
    conditions = [Label(3), Coordinates(4), Codes("a", 64, (2, 2)), Codes("b", 16, (1, 1))]
    prefix = make_prefix(conditions, conditioning([0, 6], [6, 1], window=(2, 2), labels=[2, 0], a=places(8, 8, 2),
                                          b=torch.tensor([[[9]], [[15]]]).expand(-1, 8, 8)))
    assert prefix.tolist() == [
        [2, 3 + 0, 5 + 1, 7 + 6, 7 + 7, 7 + 14, 7 + 15, 71 + 9],
        [0, 3 + 1, 5 + 0, 7 + 49, 7 + 50, 7 + 57, 7 + 58, 71 + 15],
    ]
    assert prefix.dtype == torch.int64
    assert prefix.max() < sum(condition.vocab for condition in conditions)
    assert prefix.shape[1] == sum(condition.length for condition in conditions)


def test_a_missing_condition_is_named():
    with pytest.raises(TesseraeError, match="needs the class of every picture"):
        make_prefix([Label(2)], conditioning([0], [0]))
    with pytest.raises(TesseraeError, match=r"needs the codes of vqgan\.map: give its maps"):
        make_prefix([Start(), Codes("map", 4, (4, 4))], conditioning([0], [0], other=places(8, 8)))


@pytest.mark.parametrize("conditions", [
    [Start()], [Label(7)], [Coordinates(12), Label(2)],
    [Label(3), Coordinates(4), Codes("segmentation", 64, (8, 8)), Codes("depth", 16, (4, 6))],
])
def test_a_config_keeps_them(conditions):
    """Also when it has been written as JSON."""
    config = TransformerConfig(conditions=tuple(record(condition) for condition in conditions))
    assert conditions_of(config.conditions) == conditions
    assert conditions_of(json.loads(json.dumps(asdict(config)))["conditions"]) == conditions


@pytest.mark.parametrize(("label", "values"), [(3, "0 to 3"), (9, "0 to 9"), (-1, "-1 to 0")])
def test_a_label_outside_the_classes_is_refused(label, values):
    """Counted on from the first vocabulary it would be the row of a window."""
    with pytest.raises(TesseraeError, match=f"'class' run from {values}, and this transformer knows 0 to 2"):
        make_prefix([Label(3), Coordinates(8)], conditioning([0, 1], [0, 1], labels=[0, label]))


def test_codes_outside_their_vqgans_codebook_are_refused():
    with pytest.raises(TesseraeError, match="'map' run from 0 to 63, and this transformer knows 0 to 62"):
        make_prefix([Codes("map", 63, (8, 8)), Label(2)],
                    conditioning([0], [0], window=(8, 8), labels=[1], map=places(8, 8)))
