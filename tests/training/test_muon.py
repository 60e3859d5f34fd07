"""Muon in fp32: orthogonal updates, and torch's own Muon as the independent implementation."""

import pytest
import torch

from tesserae.training.muon import Muon, orthogonal


def test_updates_are_nearly_orthogonal_and_keep_the_singular_vectors():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 40), (16, 16), (40, 8), (8, 12), (8, 8), (8, 40), (5, 90)]
    matrices = [10.0 ** (number - 3) * torch.randn(shape, generator=generator) for number, shape in enumerate(shapes)]
    for matrix in matrices:
        found = orthogonal(matrix)
        assert found.shape == matrix.shape
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.5
        assert values.max() < 1.3
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.mT @ found @ vh.mT  # diagonal where the singular vectors are kept
        assert (inner - torch.diag(torch.diagonal(inner))).abs().max() < 1e-2


def test_a_matrix_that_is_zero_stays_zero():
    assert orthogonal(torch.zeros(4, 6)).abs().max() == 0


def test_steps_are_those_of_torch_but_for_its_bf16():
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in ((12, 30), (12, 30), (30, 12), (9, 9))]
    ours, theirs = ([matrix.clone() for matrix in start] for _ in range(2))
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for before, a, b in zip(start, ours, theirs):
        moved, expected = (a - before).flatten(), (b - before).flatten()
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.999
        assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.01)


def test_a_saved_state_goes_on_to_the_same_bits():
    def run(stop):
        weight = torch.ones(6, 10)
        optimiser = Muon([weight], lr=0.1)
        for step in range(6):
            if step == stop:
                state, weight = optimiser.state_dict(), weight.clone()
                optimiser = Muon([weight], lr=0.1)
                optimiser.load_state_dict(state)
            weight.grad = torch.randn(6, 10, generator=torch.Generator().manual_seed(step))
            optimiser.step()
        return weight

    assert torch.equal(run(None), run(3))
