"""The held-out split: by content, each class on both sides, near-copies together."""

import numpy as np
import pytest

from tesserae.data.splitting import hold_out, split_pictures


def case(count, classes=1, largest=1, seed=0):
    """Places, classes and groups at random."""
    generator = np.random.default_rng(seed)
    groups, first = np.arange(count), 0
    while first < count:
        groups[first:first + (size := int(generator.integers(1, largest + 1)))] = first
        first += size
    return generator.random(count), generator.integers(0, classes, count), groups


def held_of(places, classes, groups, holdout=0.1):
    return hold_out(places, np.asarray(classes), groups, holdout)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("holdout", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("largest", [1, 3, 8])
def test_one_at_least_is_on_either_side(count, holdout, seed, largest):
    for classes in (1, 2, count):
        held = held_of(*case(count, classes, largest, seed), holdout)
        assert 0 < held.sum() < count


@pytest.mark.parametrize("each", [2, 3, 10])
@pytest.mark.parametrize("holdout", [0.02, 0.1, 0.9])
def test_each_class_is_on_both_sides(each, holdout):
    count = 200 * each
    places = np.random.default_rng(0).random(count)
    classes = np.repeat(np.arange(200), each)
    held = held_of(places, classes, np.arange(count), holdout).reshape(200, each).sum(1)
    assert held.min() >= 1
    assert held.max() < each


def test_near_copies_are_together_and_classes_on_both_sides():
    for seed in range(20):
        places, classes, groups = case(400, 12, 6, seed)
        held = held_of(places, classes, groups)
        assert all(len(set(held[groups == group])) == 1 for group in set(groups))
        for name in range(12):
            assert 0 < held[classes == name].mean() < 1
        assert 0.03 < held.mean() < 0.25


def test_a_class_of_one_and_a_class_of_copies_train():
    classes = np.repeat([0, 1, 2], [40, 1, 5])
    groups = np.where(classes == 2, 41, np.arange(46))
    for seed in range(20):
        held = held_of(np.random.default_rng(seed).random(46), classes, groups, 0.5)
        assert not held[40:].any()


def test_where_all_are_copies_one_is_held_out():
    assert held_of(np.array([0.3, 0.9, 0.2, 0.5]), [0, 0, 0, 0], np.zeros(4, int)).tolist() == [False, False, True,
                                                                                                  False]
    assert held_of(np.array([0.1, 0.9, 0.2]), [0, 1, 1], np.array([0, 1, 1]), 0.05).tolist() == [False, False, True]


def test_a_large_group_trains():
    groups = np.where(np.arange(100) < 30, 0, np.arange(100))
    for seed in range(30):
        held = held_of(np.random.default_rng(seed).random(100), np.zeros(100, int), groups)
        assert not held[:30].any()


def test_adding_pictures_moves_only_what_classes_need():
    places, classes, groups = case(2000, 10)
    before = held_of(places[:1000], classes[:1000], groups[:1000])
    assert (held_of(places, classes, groups)[:1000] == before).all()
    small = np.repeat(np.arange(50), 4)  # classes of four, of eight with more
    places = np.random.default_rng(1).random(400)
    before = held_of(places[:200], small, np.arange(200))
    after = held_of(places, np.tile(small, 2), np.arange(400))[:200]
    assert (before != after).mean() < 0.2


def test_many_pictures_and_classes_take_seconds():
    places, classes, groups = case(300_000, 1000, 3)
    held = held_of(places, classes, groups)
    assert 0.08 < held.mean() < 0.12


def splits_of(shas, given=None, holdout=0.1, seed=0):
    """Which of these are held out, with no near-copies and no labels."""
    near = np.zeros((0, 2), np.int64), np.zeros(0, bool)
    nothing = [None] * len(shas)
    return split_pictures(shas, nothing, given or nothing, near, holdout, seed).held.tolist()


def test_the_held_out_fraction_the_salt_and_small_sets():
    shas = [f"{number:040x}" for number in range(4000)]
    one, two = (splits_of(shas, seed=seed) for seed in (0, 1))
    assert 0.08 < sum(one) / 4000 < 0.12
    assert one != two
    assert splits_of(shas[::-1]) == one[::-1], "a picture's split depends on its place"
    for seed in range(50):
        for holdout in (0.01, 0.99):
            assert sum(splits_of(["a", "b"], holdout=holdout, seed=seed)) == 1


def test_splits_of_their_own_count_where_there_are_both():
    given = ["train", "validation", None, "train"]
    assert splits_of([*"abcd"], given, holdout=0.99) == [False, True, True, False]
    assert splits_of([*"abcd"], ["train"] * 4, holdout=0.99) == splits_of([*"abcd"], holdout=0.99)
