"""What a processor is quick at."""

from __future__ import annotations

import itertools

import pytest
import torch

from tesserae import processor
from tesserae.processor import bf16_speed, emulates_bf16, times_as_fast


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


@pytest.mark.parametrize(("small", "large", "emulated", "speed"), [
    (0.01, 0.01, True, 0.0), (0.5, 0.5, False, 0.5), (1.0, 8.0, False, 8.0)])
def test_emulated_bf16_is_noticed_by_a_small_product(monkeypatch, small, large, emulated, speed):
    """With AVX2 alone four large products in bf16 took seven seconds."""
    sizes = []

    def timed(usual, other, rounds):
        sizes.append(len(usual()))
        assert (usual().dtype, other().dtype) == (torch.float32, torch.bfloat16)
        return small if sizes[-1] < 512 else large

    monkeypatch.setattr(processor, "times_as_fast", timed)
    assert emulates_bf16() is emulated
    assert bf16_speed() == speed
    assert max(sizes) == (256 if emulated else 1024)


def test_every_processor_has_a_speed():
    assert bf16_speed() >= 0
