"""Filters: as plain loops do it, as transformers does it, and as often as they promise."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserae.errors import TesseraeError
from tesserae.sampling.filters import filtered, pick, rank


def plainly(logits, temperature, top_k, top_p):
    """One row, in Python's own floats."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    order = order[:top_k] if top_k else order
    weights = {i: math.exp((logits[i] - max(logits)) / temperature) for i in order}
    total, kept, reached = sum(weights.values()), [], 0.0
    for i in order:
        if kept and reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), temperature=st.floats(0.05, 5),
       top_k=st.integers(0, 14), top_p=st.sampled_from([0.01, 0.31, 0.5, 0.77, 0.93, 1.0]))
def test_as_plain_loops(seed, size, temperature, top_k, top_p):
    logits = 3 * torch.randn(4, size, generator=torch.Generator().manual_seed(seed))
    expected = torch.tensor([plainly(row, temperature, top_k, top_p) for row in logits.double().tolist()])
    torch.testing.assert_close(filtered(logits, temperature, top_k, top_p), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8),
                                                             (1.3, 9, 0.6), (0.5, 3, 0.99)])
def test_as_transformers(temperature, top_k, top_p):
    generation = pytest.importorskip("transformers.generation")
    logits = 2 * torch.randn(32, 40, generator=torch.Generator().manual_seed(0))
    warped = generation.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        warped = generation.TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = generation.TopPLogitsWarper(top_p)(None, warped)
    ours = filtered(logits, temperature, top_k, top_p)
    torch.testing.assert_close(ours, warped.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.4), (5, 0.9)])
def test_temperature_0_is_argmax(top_k, top_p):
    logits = torch.randn(64, 30)
    logits[0] = 1.0  # all alike: the first, as argmax has it
    probabilities, codes = rank(logits, 0, top_k, top_p)
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert torch.equal(pick(probabilities, codes, torch.full((64,), uniform)), logits.argmax(-1))
    assert torch.equal(filtered(logits, 0, top_k, top_p), F.one_hot(logits.argmax(-1), 30).float())


def test_ranking_falls_and_sums_to_one():
    logits = torch.randn(16, 50)
    probabilities, codes = rank(logits, 0.9, 20, 0.9)
    assert (probabilities[:, 1:] <= probabilities[:, :-1]).all()
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(16))
    assert torch.equal(codes[:, 0], logits.argmax(-1))
    assert ((probabilities > 0).sum(-1) <= 20).all()


def test_a_tiny_temperature_takes_the_likeliest():
    logits = 100 * torch.randn(8, 30)
    probabilities, codes = rank(logits, 1e-30)
    assert torch.equal(pick(probabilities, codes, torch.full((8,), 0.999)), logits.argmax(-1))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 4, 1.0), (1.5, 0, 0.7)])
def test_draws_come_as_often_as_they_should(temperature, top_k, top_p):
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(3)).expand(40_000, -1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(4))
    drawn = pick(*rank(logits, temperature, top_k, top_p), uniform)
    frequencies = torch.bincount(drawn, minlength=8) / 40_000
    expected = filtered(logits[:1], temperature, top_k, top_p)[0]
    assert (frequencies - expected).abs().max() < 0.012  # five standard deviations
    assert not frequencies[expected == 0].any()


def test_draw_inverts_the_cumulative_distribution():
    probabilities, codes = torch.tensor([[0.5, 0.3, 0.2, 0.0]] * 6), torch.tensor([[7, 3, 1, 9]] * 6)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-24])
    assert pick(probabilities, codes, uniform).tolist() == [7, 7, 3, 3, 1, 1]


def test_rounding_never_draws_what_was_filtered_out():
    """Sums that fall short of 1 by rounding, and the largest number below 1."""
    logits = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    probabilities, codes = rank(logits, top_p=0.9)
    drawn = pick(probabilities, codes, torch.full((200,), 1 - 2**-24))
    assert (filtered(logits, top_p=0.9).gather(-1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize(("values", "said"), [
    ((-0.1, 0, 1.0), "temperature = -0.1"), ((-1.0, 0, 1.0), "temperature"),
    ((float("nan"), 0, 1.0), "temperature"), ((1.0, -1, 1.0), "top_k = -1"),
    ((1.0, 0, 0.0), r"top_p = 0\.0"), ((1.0, 0, 1.1), "top_p")])
def test_values_out_of_range_are_named(values, said):
    with pytest.raises(TesseraeError, match=said):
        rank(torch.zeros(1, 4), *values)
