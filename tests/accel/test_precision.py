"""What a processor is quick at."""

from __future__ import annotations

import itertools

import pytest
import torch

from tesserae.accel import precision
from tesserae.accel.precision import bf16_is_fast, bf16_speed, emulates_bf16
from tesserae.devices import make_accelerator


@pytest.fixture(autouse=True)
def untimed():
    """No product is remembered from before a test, nor after it."""
    bf16_is_fast.cache_clear()
    yield
    bf16_is_fast.cache_clear()


def test_each_type_counts_at_its_best_and_they_take_turns(monkeypatch):
    """The first calls are slow for what they load, and others may be at work, too."""
    clock = itertools.accumulate([0, 9, 0, 8, 0, 3, 0, 9, 0, 9, 0, 1.5])
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert bf16_speed(4, rounds=3) == 2.0


@pytest.mark.parametrize(("small", "large", "emulated", "fast"), [
    (0.01, 0.01, True, False), (0.5, 0.5, False, False), (1.0, 1.1, False, False), (1.0, 8.0, False, True)])
def test_automatic_precision_is_the_one_that_is_quick_here(monkeypatch, small, large, emulated, fast):
    """A small product tells that bf16 is emulated: with AVX2 alone four large ones took seven seconds."""
    sizes = []

    def timed(size, rounds):
        sizes.append(size)
        return small if size < 512 else large

    monkeypatch.setattr(precision, "bf16_speed", timed)
    for _ in range(2):
        assert make_accelerator("auto", threads=1).mixed_precision == ("bf16" if fast else "no")
    assert sizes == ([256] if emulated else [256, 1024]), "once"
    assert emulates_bf16() is emulated


def test_every_processor_has_a_speed():
    assert bf16_speed(64, rounds=1) > 0


@pytest.mark.parametrize("emulated", [False, True])
def test_bf16_where_it_is_emulated_is_reported(monkeypatch, emulated):
    messages = []
    monkeypatch.setattr(precision, "bf16_speed", lambda size, rounds: 0.01 if emulated else 1.0)
    assert make_accelerator("bf16", threads=1, log=messages.append).mixed_precision == "bf16"
    assert make_accelerator("fp32", threads=1, log=messages.append).mixed_precision == "no"
    assert messages == ([
        "precision: bf16 takes tens of times as long as fp32 on this processor, which has no instructions for it; "
        "auto takes what is quick here."] if emulated else [])


def test_precision_is_what_was_requested_each_time():
    for requested, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        made = make_accelerator(requested, threads=1)
        with made.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert made.mixed_precision == {"bf16": "bf16", "fp32": "no"}[requested]
