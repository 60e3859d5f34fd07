"""How a codebook is used: numbers against plain counting and closed forms."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import entropy

from tesserae.evaluation import codebook


@pytest.mark.parametrize("size", [2, 7, 256])
def test_even_use_has_the_perplexity_of_its_size(size):
    numbers = codebook.usage_statistics(torch.full((size,), 3))
    assert numbers["perplexity"] == pytest.approx(size)
    assert numbers["perplexity_share"] == pytest.approx(1)
    assert numbers["entropy_bits"] == pytest.approx(math.log2(size))
    assert (numbers["usage"], numbers["dead"]) == (1, 0)


def test_a_collapsed_codebook_has_perplexity_one():
    numbers = codebook.usage_statistics(torch.tensor([0, 900, 0, 0]))
    assert numbers == {"usage": 0.25, "perplexity": 1, "perplexity_share": 0.25, "entropy_bits": 0, "dead": 3,
                       "top_share": 1}


def test_entropy_agrees_with_scipy_and_does_not_depend_on_the_amount():
    counts = torch.randint(0, 50, (300,), generator=torch.Generator().manual_seed(0))
    numbers = codebook.usage_statistics(counts)
    assert numbers["entropy_bits"] == pytest.approx(entropy(counts.numpy(), base=2))
    assert codebook.usage_statistics(counts * 7) == pytest.approx(numbers)
    assert codebook.usage_statistics(counts.float()) == pytest.approx(numbers)


def test_nothing_counted_is_no_error():
    assert codebook.usage_statistics(torch.zeros(5))["perplexity"] == 0
    assert codebook.usage_statistics(torch.zeros(5))["dead"] == 5


def test_ranking_holds_every_code_once_from_the_commonest_down():
    counts = torch.tensor([5, 0, 9, 5, 1])
    table = codebook.ranking(counts)
    assert list(table["code"]) == [2, 0, 3, 4, 1]
    assert list(table["rank"]) == [1, 2, 3, 4, 5]
    assert table["share"].sum() == pytest.approx(1)


def test_common_and_rare_codes_never_show_a_code_twice_or_a_dead_one():
    counts = torch.tensor([5, 0, 9, 4, 1])
    assert codebook.common_and_rare(counts, 2) == ([2, 0], [3, 4])
    assert codebook.common_and_rare(counts, 3) == ([2, 0, 3], [4])
    assert codebook.common_and_rare(counts, 9) == ([2, 0, 3, 4], [])


def test_occurrence_is_the_share_of_maps_with_the_code():
    maps = torch.tensor([[[1, 2], [2, 2]], [[1, 1], [0, 2]]])
    assert codebook.occurrence(maps, [1, 2]).tolist() == [[[1, 0.5], [0, 0]], [[0, 0.5], [0.5, 1]]]


def _maps(count=40, size=6, codes=9):
    return torch.randint(0, codes, (count, size, size), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("direction", ["right", "below"])
@pytest.mark.parametrize("at_once", [1, 100, 1 << 22])
def test_neighbours_are_counted_as_by_hand(direction, at_once):
    maps = _maps()
    down, across = (0, 1) if direction == "right" else (1, 0)
    pairs = Counter((int(m[y, x]), int(m[y + down, x + across])) for m in maps for y in range(6 - down)
                    for x in range(6 - across))
    table = codebook.code_pairs(maps, 9, direction, at_once).pairs
    found = dict(zip(zip(table["first"], table["second"]), table["count"]))
    assert found == pairs
    assert table["expected"].sum() <= 40 * 30 + 1e-6


def test_the_greatest_information_is_the_codes_own_entropy():
    rows = torch.randint(0, 8, (4000, 1, 1), generator=torch.Generator().manual_seed(2))
    plain = rows.repeat(1, 1, 2)  # the neighbour is always the same code
    found = codebook.code_pairs(plain, 8, "right")
    assert found.same == 1
    bits = entropy(np.bincount(rows.flatten()), base=2)
    assert found.mutual_information == pytest.approx(bits, abs=0.01)


def test_codes_at_random_tell_nothing_about_each_other():
    maps = torch.randint(0, 32, (300, 8, 8), generator=torch.Generator().manual_seed(3))
    found = codebook.code_pairs(maps, 32, "below")
    assert found.mutual_information < 0.01  # without the correction it would be 0.04
    assert found.same == pytest.approx(1 / 32, abs=0.005)


def test_maps_of_one_column_have_no_neighbours_to_the_right():
    found = codebook.code_pairs(torch.zeros(3, 4, 1, dtype=torch.int64), 5, "right")
    assert len(found.pairs) == 0
    assert (found.mutual_information, found.same) == (0, 0)


def test_the_telling_pair_is_the_one_that_was_planted():
    maps = _maps(codes=9)
    maps[:, 2, 2], maps[:, 2, 3] = 4, 7
    found = codebook.code_pairs(maps, 9, "right")
    pairs = codebook.informative_pairs(found, 5)
    assert pairs[0] == (4, 7)
    assert all(first != second for first, second in pairs)
    matrix = codebook.pmi_matrix(found, [7, 4])
    assert matrix[1, 0] == found.pairs.query("first == 4 and second == 7")["pmi"].item()
    assert matrix[1, 0] > 1 > matrix[0, 1]


def test_a_pair_that_never_met_is_no_number():
    maps = torch.tensor([[[0, 1], [0, 1]]])
    assert np.isnan(codebook.pmi_matrix(codebook.code_pairs(maps, 3, "right"), [0, 2])).all()


@pytest.mark.parametrize(("direction", "step"), [("right", (0, 1)), ("below", (1, 0))])
def test_found_pairs_are_there_and_in_different_pictures_first(direction, step):
    maps = _maps()
    places = codebook.find_pairs(maps, [(3, 5), (8, 8)], direction, 6)
    for (first, second), rows in zip([(3, 5), (8, 8)], places.tolist()):
        for picture, row, column in rows:
            assert maps[picture, row, column] == first
            assert maps[picture, row + step[0], column + step[1]] == second
        assert len({picture for picture, _, _ in rows}) == 6


@pytest.mark.parametrize("count", [3, 60])
def test_few_maps_at_once_give_the_same(monkeypatch, count):
    """40 of them, 7 at a time: counts, shares of places, and pairs, one a picture or all that there are."""
    def found():
        return (codebook.usage_counts(_maps(), 9), codebook.occurrence(_maps(), [3, 8]),
                codebook.find_pairs(_maps(), [(3, 5), (8, 8)], "below", count))

    together = found()
    monkeypatch.setattr(codebook, "MAPS_AT_ONCE", 7)
    assert all(torch.equal(one, other) for one, other in zip(found(), together))


def test_pairs_that_are_rarer_than_asked_are_padded():
    maps = torch.zeros(2, 2, 2, dtype=torch.int64)
    maps[1, 0] = torch.tensor([1, 2])
    assert codebook.find_pairs(maps, [(1, 2)], "right", 3).tolist() == [[[1, 0, 0], [-1] * 3, [-1] * 3]]


def test_principal_components_hold_the_greatest_variances():
    vectors = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    vectors = vectors * torch.tensor([5.0, 1, 1, 3, 1, 1])
    points, share = codebook.principal_components(vectors)
    variances = np.sort(np.linalg.eigvalsh(np.cov(vectors.numpy().T)))[::-1]
    assert points.var(0, ddof=1) == pytest.approx(variances[:2], rel=1e-5)
    assert share == pytest.approx(variances[:2].sum() / variances.sum(), rel=1e-5)
    assert np.abs(np.corrcoef(points.T)[0, 1]) < 1e-6


def test_principal_components_do_not_flip_and_take_codes_of_one_dimension():
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    again = codebook.principal_components(torch.cat([vectors, vectors]))[0]
    assert again[:20] == pytest.approx(codebook.principal_components(vectors)[0])
    line, share = codebook.principal_components(vectors[:, :1])
    assert (line[:, 1] == 0).all()
    assert share == pytest.approx(1)


def test_code_colours_use_the_whole_range_and_repeat():
    vectors = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    colours = codebook.code_colours(vectors)
    assert (colours == codebook.code_colours(vectors)).all()
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 64
    assert colours.min() < 15
    assert colours.max() > 240


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_distances_to_the_nearest_code_agree_with_scipy(rows):
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    every = cdist(vectors.numpy(), vectors.numpy()) + np.diag([np.inf] * 30)
    assert codebook.nearest_code_distances(vectors, rows).numpy() == pytest.approx(every.min(1), rel=1e-5)


def test_doubles_are_counted_among_the_used_codes_alone():
    vectors = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    vectors[3], vectors[9] = vectors[4] + 1e-4, vectors[10]
    distances, counts = codebook.nearest_code_distances(vectors), torch.ones(30)
    assert codebook.doubles(distances, counts) == 4
    counts[9:11] = 0
    assert codebook.doubles(distances, counts) == 2
    assert codebook.doubles(distances, torch.zeros(30)) == 0
