"""bf16 where it is quick: `precision: auto`. `precision: fp32` leaves it out.

A matrix product in bf16 is timed beside one in fp32, because what a processor names does not tell: with AMX bf16 is
several times as fast, with AVX512-BF16 on some processors half as fast, and without instructions for it a hundred
times as slow.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

WORTHWHILE = 1.3  # times as fast as fp32: less is lost again where numbers are turned into bf16 and back
EMULATED = 0.1  # times as fast: every number is turned into fp32 and back by itself


@functools.cache
def bf16_is_fast(device: torch.device) -> bool:
    """Whether this hardware multiplies bf16 matrices clearly faster than fp32: tensor cores, or a timed product."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not emulates_bf16() and bf16_speed(1024, rounds=8) > WORTHWHILE


def emulates_bf16() -> bool:
    """Whether this processor has no instructions for bf16; a small product tells, as a large one takes long."""
    return bf16_speed(256, rounds=3) < EMULATED


def bf16_speed(size: int, rounds: int) -> float:
    """How many times as fast a product of (size,size) matrices is in bf16 as in fp32.

    They run in turn, and each counts at its best: others may be at work on the machine.
    """
    fp32, bf16 = (torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    seconds = [(_seconds(lambda: fp32 @ fp32), _seconds(lambda: bf16 @ bf16)) for _ in range(rounds)]
    return min(pair[0] for pair in seconds) / min(pair[1] for pair in seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
