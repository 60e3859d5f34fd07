"""The verdict says what the numbers say."""

import torch

from tesserae.evaluation.codebook import usage_statistics
from tesserae.evaluation.verdict import verdict


def _said(counts, held_out=None, positions=10**6, doubles=0):
    train = usage_statistics(counts)
    other = usage_statistics(counts if held_out is None else held_out)
    return verdict(train, other, len(counts), positions, doubles)


def test_even_use_is_healthy():
    said = " ".join(_said(torch.full((100,), 50)))
    assert "100.0% of the 100 codes are used" in said
    assert "healthy" in said
    assert "evenly used" in said
    assert "carry over" in said
    assert "revive_after" not in said


def test_collapse_is_named_with_its_remedies():
    counts = torch.zeros(100)
    counts[:8] = 30
    said = " ".join(_said(counts))
    assert "92 are dead" in said
    assert "collapsed" in said
    assert "revive_after" in said
    assert "few codes do most of the work" in said


def test_idle_codes_are_less_than_collapse():
    counts = torch.full((100,), 50)
    counts[:20] = 0
    said = _said(counts)[0]
    assert "part of the codebook is not used" in said
    assert "collapsed" not in said


def test_a_dominant_code_and_doubles_are_told():
    counts = torch.full((100,), 50)
    counts[7] = 3000
    said = " ".join(_said(counts, doubles=3))
    assert "One code takes" in said
    assert "3 used codes lie closer" in said


def test_few_held_out_positions_are_no_proof():
    held_out = torch.zeros(100)
    held_out[:60] = 1
    assert "need not be dead" in _said(torch.full((100,), 50), held_out, positions=60)[-1]


def test_codes_that_fit_the_training_pictures_alone():
    held_out = torch.zeros(100)
    held_out[:30] = 100
    assert "training pictures alone" in _said(torch.full((100,), 50), held_out, positions=3000)[-1]


def test_advice_is_of_what_the_quantizer_has_a_use_for():
    counts = torch.zeros(100)
    counts[:8] = 30
    for quantizer, named, left_out in (
        ("fsq", "codebook_size", "revive_after"), ("lfq", "entropy_weight", "kl_weight"),
        ("gumbel", "kl_weight", "codebook_init"), ("ema", "revive_after", "kl_weight"),
    ):
        said = " ".join(verdict(usage_statistics(counts), usage_statistics(counts), 100, 10**6, quantizer=quantizer))
        assert named in said
        assert left_out not in said
