"""Our sliding window: `tesserae.sampling.windows.sample_map`, of which a share of its waves may be drawn.

With a stride there are no waves, and the map is drawn whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import STRIDE, Plan
from benchmarks.data import random_codes
from benchmarks.ours.drawing import drawer
from benchmarks.ours.settings import autocast, nothing_own, own_bf16, said
from benchmarks.work import Work
from tesserae.data.conditions import windows_of
from tesserae.models.packing import pack
from tesserae.sampling import windows


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """One map; None where our default is no other than fp32."""
    if nothing_own(plan, own_bf16(plan)):
        return None
    (model, outputs, bf16), size, seeds = drawer(plan, given), plan.size, count()
    side, every, window = size["map_side"], size["every_wave"], (size["side"],) * 2
    stride, share = 1, f"1 wave of {every}" if every > 1 else ""
    if plan.mode == STRIDE:
        stride, every, share = size["stride"], 1, ""
    if every > 1:
        with autocast(plan, bf16):  # under which nothing is packed
            pack(model, windows.ROWS, [])  # once a map, which a part of it does not repay

    def run() -> float:
        drawn = []
        with autocast(plan, bf16), some_waves(every):
            windows.sample_map(model, prefixes(plan), (side, side), window, top_k=size["top_k"], seed=next(seeds),
                               stride=stride, progress=lambda done, _: drawn.append(done))
        return drawn[-1]

    note = said(bf16, f"stride {stride}" if stride > 1 else "exact", share)
    return Work(run, outputs, note, bf16)


def prefixes(plan: Plan) -> windows.Prefixes:
    """The same class everywhere, or the window's part of a map of conditions."""
    side, window = plan.size["map_side"], (plan.size["side"],) * 2
    layout = random_codes(plan.size, 1, side, plan.seed + 2).to(plan.device)

    def tokens(samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        if plan.size["condition"] == "class":
            return torch.ones(len(samples), 1, dtype=torch.int64, device=plan.device)
        return windows_of(layout[samples], tops, lefts, window).flatten(1)

    return tokens


@contextmanager
def some_waves(every: int) -> Iterator[None]:
    """Draw one wave of `every`, evenly over the map. The time of a wave does not depend on the codes before it."""
    whole = windows.waves
    windows.waves = lambda *given: whole(*given)[every // 2::every]
    try:
        yield
    finally:
        windows.waves = whole
