"""What this machine's processor is quick at: asked of oneDNN, or timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def has_bf16() -> bool:
    """Whether oneDNN computes in bf16 here; without it each number is turned to fp32 and back by itself, which takes
    tens of times as long as fp32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()


def times_as_fast(usual: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times as fast as `usual` the other is.

    In turn and each at its best of eight: others may be at work, and what depends on it should be so each time.
    """
    seconds = [(_seconds(usual), _seconds(other)) for _ in range(8)]
    return min(pair[0] for pair in seconds) / min(pair[1] for pair in seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
