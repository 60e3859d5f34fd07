"""Neighbours: distances are LPIPS's and pixels', copies are found, also mirrored ones."""

import pytest
import torch

from tesserae.evaluation import neighbours
from tesserae.evaluation.neighbours import code_overlap, lpips_vectors, nearest, pixel_vectors
from tesserae.models.perceptual import LPIPS


@pytest.fixture(scope="module")
def lpips():
    return LPIPS.load("alex")


def pictures(count, seed=0, size=64):
    """Smooth random pictures: noise alone would be about equally far from everything."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def test_squared_distances_are_lpips(lpips):
    x, y = pictures(4), pictures(4, seed=1)
    embed = lpips_vectors(lpips)
    torch.testing.assert_close((embed(x) - embed(y)).square().sum(1), lpips(x, y), rtol=1e-3, atol=1e-5)


def test_squared_distances_are_mean_squares():
    x, y = pictures(4), pictures(4, seed=1)
    expected = (x - y).square().mean((1, 2, 3))
    torch.testing.assert_close((pixel_vectors(x) - pixel_vectors(y)).square().sum(1), expected)


def test_large_and_tiny_pictures_are_compared_at_one_size(lpips):
    shapes = {lpips_vectors(lpips)(pictures(1, size=size)).shape for size in (160, 64, 8)}
    assert len(shapes) == 1


def test_nearest_is_brute_force():
    queries, bank = pictures(5), pictures(23, seed=1)
    found = nearest(queries.split(2), bank.split(4), pixel_vectors, k=3)
    pairs = [(view[:, None] - bank[None]).square().mean((2, 3, 4)) for view in (queries, queries.flip(-1))]
    distances, indices = torch.minimum(*pairs).topk(3, largest=False)
    torch.testing.assert_close(found.distances, distances, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.indices, indices)


def test_a_bank_larger_than_a_block_has_the_same_neighbours(monkeypatch):
    queries, bank = pictures(5), pictures(23, seed=1)
    whole = nearest(queries.split(2), bank.split(4), pixel_vectors, k=3)
    monkeypatch.setattr(neighbours, "BLOCK", 9 * 3 * 64 * 64)  # two batches of four
    blocks = [len(block) for block in neighbours._blocks(map(pixel_vectors, bank.split(4)))]
    assert blocks == [8, 8, 7]
    parts = nearest(queries.split(2), bank.split(4), pixel_vectors, k=3)
    assert torch.equal(parts.indices, whole.indices)
    torch.testing.assert_close(parts.distances, whole.distances, rtol=1e-4, atol=1e-6)


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="no pictures"):
        nearest([pictures(1)], [], pixel_vectors)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_is_found(lpips, mirrored):
    bank = pictures(20, seed=1)
    copy = bank[[13]].flip(-1) if mirrored else bank[[13]]
    found = nearest([copy], bank.split(8), lpips_vectors(lpips), k=2)
    assert found.indices[0, 0] == 13
    assert found.distances[0, 0] < 1e-4 < found.distances[0, 1]


def test_a_small_bank_has_few_neighbours():
    assert nearest([pictures(2)], [pictures(3, seed=1)], pixel_vectors, k=5).indices.shape == (2, 3)


def test_code_overlap_by_hand():
    bank = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 6, 7]], dtype=torch.int32)
    maps = torch.tensor([[0, 1, 2, 9], [9, 9, 9, 9], [4, 5, 6, 7], [0, 1, 6, 3]])
    for at_once in (1, 9, 1 << 20):
        assert code_overlap(maps, bank, at_once).tolist() == [0.75, 0.0, 1.0, 0.75]
