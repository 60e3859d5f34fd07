"""Code maps with those of their conditions: batches are pure, windows of all of them lie in the same place."""

import numpy as np
import pytest
import torch

from tesserae.data.codes import CodeMaps, CodesError, save_codes
from tesserae.data.conditions import Codes, Coordinates, Label, Start, make_prefix
from tesserae.data.paired import PairedMaps
from tesserae.params import load_params

N, SIDE = 12, 6


def placed(count=N, shape=(SIDE, SIDE), views=2, labels=True, scale=1):
    """Maps whose every code says which picture, which view and which place it is of, in steps of `scale`."""
    size = shape[0] * shape[1]
    rows, columns = torch.arange(shape[0] * scale) // scale, torch.arange(shape[1] * scale) // scale
    place = rows[:, None] * shape[1] + columns
    number = torch.arange(count * views).view(count, views, 1, 1)
    return CodeMaps((number * size + place).int(), torch.arange(count) % 3 if labels else None,
                    ["a", "b", "c"] if labels else [], count * views * size)


def read(codes, shape=(SIDE, SIDE), views=2):
    """What `placed` wrote into codes (...): picture, view, row, column."""
    number, place = codes // (shape[0] * shape[1]), codes % (shape[0] * shape[1])
    return number // views, number % views, place // shape[1], place % shape[1]


def chosen_rows(chosen):
    return torch.stack([chosen.pictures, chosen.views, chosen.tops, chosen.lefts], 1).tolist()


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("window", [0, 4])
def test_an_epoch_sees_every_picture_once(window):
    data = PairedMaps(placed(labels=False), window=window)
    seen = torch.cat([data.batch(step, 4, seed=3, flip=True).pictures for step in range(3)])
    assert sorted(seen.tolist()) == list(range(N))


def test_batches_are_a_pure_function_of_their_arguments():
    data = PairedMaps(placed(), window=4)
    rows = chosen_rows(data.batch(7, 5, seed=1, flip=True))
    data.batch(8, 5, seed=1, flip=True)
    assert chosen_rows(PairedMaps(placed(), window=4).batch(7, 5, seed=1, flip=True)) == rows
    assert chosen_rows(data.batch(7, 5, seed=2, flip=True)) != rows
    assert all(part.dtype == torch.int64 for part in vars(data.batch(7, 5, 1, True)).values())


def test_codes_are_those_of_the_picture_the_view_and_the_place():
    data = PairedMaps(placed(), window=4)
    for step in range(20):
        chosen = data.batch(step, 8, seed=0, flip=True)
        codes = data.codes(chosen)
        assert codes.shape == (8, 4, 4)
        assert codes.dtype == torch.int64
        picture, view, row, column = read(codes)
        for found, wanted in ((picture, chosen.pictures), (view, chosen.views)):
            assert (found == wanted[:, None, None]).all()
        assert torch.equal(row, (chosen.tops[:, None] + torch.arange(4))[..., None].expand(-1, -1, 4))
        assert torch.equal(column, (chosen.lefts[:, None] + torch.arange(4))[:, None].expand(-1, 4, -1))


def test_half_of_the_pictures_are_mirrored_and_keep_their_labels():
    data = PairedMaps(placed())
    drawn = [data.batch(step, N, seed=0, flip=True) for step in range(100)]
    assert abs(torch.cat([chosen.views for chosen in drawn]).float().mean() - 0.5) < 0.06
    for chosen in drawn[:5]:
        assert torch.equal(data.conditioning(chosen).labels, chosen.pictures % 3)
    assert not data.batch(0, N, seed=0, flip=False).views.any()


def test_one_view_cannot_be_mirrored():
    data = PairedMaps(placed(views=1))
    assert torch.equal(data.codes(data.batch(0, 6, 0, flip=True)), data.codes(data.batch(0, 6, 0, flip=False)))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_global_batch(processes):
    """Pictures, mirroring and places: four processes see what one would."""
    data = PairedMaps(placed(), window=3)
    rows = [row for process in range(processes)
            for row in chosen_rows(data.batch(5, 8 // processes, 5, True, process, processes))]
    assert rows == chosen_rows(data.batch(5, 8, 5, True))


def test_every_place_of_a_window_is_as_likely_as_any_other():
    data = PairedMaps(placed(), window=4)
    assert data.positions == (3, 3)
    drawn = [data.batch(step, 32, seed=0, flip=False) for step in range(60)]
    tops, lefts = (torch.cat([getattr(chosen, name) for chosen in drawn]) for name in ("tops", "lefts"))
    counts = torch.bincount(tops * 3 + lefts, minlength=9)
    expected = len(tops) / 9
    assert len(counts) == 9
    assert ((counts - expected) ** 2 / expected).sum() < 8 + 5 * 4  # chi squared of 8 degrees of freedom


def test_whole_maps_have_one_place():
    data = PairedMaps(placed(shape=(4, 6)))
    assert (data.window, data.positions) == ((4, 6), (1, 1))
    chosen = data.batch(3, 6, 0, True)
    assert not chosen.tops.any()
    assert not chosen.lefts.any()
    assert torch.equal(data.codes(chosen), data.maps.indices[chosen.pictures, chosen.views].long())


# ------------------------------------------------------------------ fixed choices


def test_evaluations_look_at_the_same_windows_each_time_wherever_they_lie():
    data = PairedMaps(placed(60), window=3)
    some = data.some(20)
    assert chosen_rows(some) == chosen_rows(data.some(20))
    assert not some.views.any()
    assert len(some.pictures.unique()) == 20
    assert len({(top, left) for top, left in zip(some.tops.tolist(), some.lefts.tolist())}) > 5
    assert len(data.some(1000).pictures) == 60


def test_whole_takes_the_top_left():
    data = PairedMaps(placed(), window=2)
    assert chosen_rows(data.whole(torch.tensor([3, 1]))) == [[3, 0, 0, 0], [1, 0, 0, 0]]
    assert chosen_rows(data.whole(torch.tensor([3]), torch.tensor([1]))) == [[3, 1, 0, 0]]


def test_in_turn_goes_through_the_classes():
    maps = placed(7)
    maps.labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])  # sorted, as sets are
    data = PairedMaps(maps)
    chosen = data.in_turn(9, by_class=True)
    assert maps.labels[chosen[:5]].tolist() == [0, 1, 2, 0, 1]
    assert sorted(chosen[:7].tolist()) == list(range(7))
    assert chosen[7:].tolist() == chosen[:2].tolist()
    assert data.in_turn(3, by_class=False).tolist() == [1, 3, 5]


def test_of_many_classes_some_are_evenly_chosen():
    maps = placed(40)
    maps.labels = torch.arange(20).repeat(2)
    maps.class_names = [str(number) for number in range(20)]
    chosen = PairedMaps(maps).in_turn(4, by_class=True)
    assert maps.labels[chosen].tolist() == [2, 7, 12, 17]


def test_in_turn_is_by_rank_and_then_by_class():
    """Against the definition, in which every picture is compared with every other."""
    maps = placed(40)
    maps.labels = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0))
    maps.class_names = list("abcde")
    rank = (maps.labels[:, None] == maps.labels).tril(-1).sum(1)
    expected = (rank * 5 + maps.labels).argsort()
    assert torch.equal(PairedMaps(maps).in_turn(40, by_class=True), expected)


# ------------------------------------------------------------------ conditions


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_of_the_condition_lie_where_those_of_the_codes_do(scale, flip):
    """Also where a code of s spans two of r a side: f_s = 2 f_r."""
    data = PairedMaps(placed(), {"map": placed(labels=False, scale=scale)}, window=4)
    (condition,) = data.conditions(["map"])
    assert condition == Codes("map", N * 2 * SIDE * SIDE, (4 * scale, 4 * scale))
    for step in range(10):
        chosen = data.batch(step, 8, seed=0, flip=flip)
        r = condition.tokens(data.conditioning(chosen)).unflatten(1, condition.window)
        s = data.codes(chosen)
        assert torch.equal(r, s.repeat_interleave(scale, 1).repeat_interleave(scale, 2))


def test_a_map_in_one_view_goes_with_both():
    data = PairedMaps(placed(), {"map": placed(views=1)})
    (condition,) = data.conditions(["map"])
    chosen = data.whole(torch.tensor([4, 5]), torch.tensor([0, 1]))
    picture, _, _, _ = read(condition.tokens(data.conditioning(chosen)), views=1)
    assert (picture == torch.tensor([[4], [5]])).all()


def test_told_by_others_only_the_picture_changes():
    data = PairedMaps(placed(), {"map": placed()}, window=4)
    chosen = data.batch(0, 5, 0, flip=True)
    by = (chosen.pictures + 1) % N
    own, other = data.conditioning(chosen), data.conditioning(chosen, by)
    assert torch.equal(own.tops, other.tops)
    assert torch.equal(other.labels, by % 3)
    (condition,) = data.conditions(["map"])
    mine, theirs = (read(condition.tokens(conditioning)) for conditioning in (own, other))
    assert (theirs[0] == by[:, None]).all()
    assert all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:]))  # the same view and places


def test_conditions_have_the_sizes_of_the_data():
    data = PairedMaps(placed(), {"map": placed(scale=2)}, window=4)
    assert data.conditions([]) == [Start()]
    size = N * 2 * SIDE * SIDE
    assert data.conditions(["class", "coordinates", "map"]) == [Label(3), Coordinates(6), Codes("map", size, (8, 8))]
    assert data.conditions(["coordinates", "class"]) == [Coordinates(6), Label(3)]
    assert PairedMaps(placed()).conditions(["coordinates"]) == [Coordinates(2)]  # whole maps have one place
    assert PairedMaps(placed(2, (200, 200)), window=2).conditions(["coordinates"]) == [Coordinates(64)]


def test_a_prefix_holds_what_is_told_of_its_windows():
    data = PairedMaps(placed(), window=4)
    chosen = data.batch(2, 6, 0, False)
    prefix = make_prefix(data.conditions(["class", "coordinates"]), data.conditioning(chosen))
    expected = torch.stack([chosen.pictures % 3, 3 + chosen.tops, 6 + chosen.lefts], 1)
    assert torch.equal(prefix, expected)


# ------------------------------------------------------------------ files and what does not fit


def test_a_block_of_params_is_loaded(tmp_path, request):
    block = load_params(request.config.rootpath / "tests/plain.yaml").transformer["class"]
    for name, maps in (("image", placed()), ("map", placed(scale=2))):
        save_codes(tmp_path / name, "train", maps.indices, maps.labels, maps.class_names, maps.codebook_size)
    data = PairedMaps.load(tmp_path, "train", block.model_copy(update={"condition": ["class", "map"], "window": 3}))
    assert (len(data), data.window, [*data.others]) == (N, (3, 3), ["map"])
    assert PairedMaps.load(tmp_path, "train", block).window == (SIDE, SIDE)
    with pytest.raises(CodesError, match=r"other/train\.safetensors does not exist"):
        PairedMaps.load(tmp_path, "train", block.model_copy(update={"condition": ["other"]}))


def test_the_fingerprint_follows_both_maps():
    marks = {PairedMaps(placed()).fingerprint, PairedMaps(placed(), {"map": placed()}).fingerprint,
             PairedMaps(placed(), {"map": placed(scale=2)}).fingerprint,
             PairedMaps(placed(), {"other": placed()}).fingerprint}
    assert len(marks) == 4
    assert PairedMaps(placed(), {"map": placed()}).fingerprint in marks


@pytest.mark.parametrize(("maps", "others", "window", "expected"), [
    (placed(), {}, 7, "A window of 7 codes does not fit maps of 6x6"),
    (placed(), {"map": placed(5)}, 0, "codes/map holds 5 pictures, the codes to model 12"),
    (placed(), {"map": placed(shape=(9, 9))}, 0, r"codes/map has maps of \(9, 9\)"),
])
def test_what_does_not_go_together_is_named(maps, others, window, expected):
    with pytest.raises(CodesError, match=expected):
        PairedMaps(maps, others, window)


def test_places_do_not_follow_from_pictures():
    """Each picture comes with ever other windows."""
    data = PairedMaps(placed(), window=2)
    found: dict[int, set] = {}
    for step in range(40):
        chosen = data.batch(step, N, 0, False)
        for picture, _, top, left in chosen_rows(chosen):
            found.setdefault(picture, set()).add((top, left))
    assert np.mean([len(places) for places in found.values()]) > 15  # of 25, in 40 draws
