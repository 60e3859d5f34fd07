"""What a processor is quick at."""

from __future__ import annotations

import itertools

import pytest
import torch

from tesserae import processor
from tesserae.processor import has_bf16, times_as_fast


def test_each_is_at_its_best_and_they_take_turns(monkeypatch):
    """The first calls are slow for what they load, and others may be at work, too."""
    took, turns = {"usual": itertools.cycle([9.0, 3.0, 9.0, 4.0]), "other": itertools.cycle([8.0, 9.0, 1.5, 9.0])}, []
    monkeypatch.setattr(processor, "_seconds", lambda run: next(took[turns.append(run()) or turns[-1]]))
    assert times_as_fast(lambda: "usual", lambda: "other") == 2.0
    assert turns == ["usual", "other"] * 8


def test_each_run_is_timed_by_the_clock(monkeypatch):
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    monkeypatch.setattr(processor.time, "perf_counter", lambda: now[0])
    assert times_as_fast(takes(3.0), takes(0.5)) == pytest.approx(6)


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_what_onednn_says(monkeypatch, supported):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported, raising=False)
    assert has_bf16() is supported


def test_no_bf16_without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_bf16() is False
