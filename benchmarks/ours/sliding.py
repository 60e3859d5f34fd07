"""Our sliding window: `tesserae.sampling.sliding_window`, of which a stretch of its wavefronts may be sampled."""

from __future__ import annotations

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
from tesserae.sampling.autoregressive import SampleOptions, decoding
from tesserae.sampling.sliding_window import MapSampler, Prefixes


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """One map; None where our default is no other than fp32."""
    if nothing_own(plan, own_bf16(plan)):
        return None
    (model, outputs, bf16), size, seeds = drawer(plan, given), plan.size, count()
    side, every, window = size["map_side"], size["every_wave"], (size["side"],) * 2
    stride = size["stride"] if plan.mode == STRIDE else 1
    every = 1 if stride > 1 else every

    def run() -> float:
        options = SampleOptions(top_k=size["top_k"], seed=next(seeds), stride=stride)
        with autocast(plan, bf16), decoding(model, steps=stride > 1):
            sampler = MapSampler(model, prefixes(plan), (side, side), window, options=options)
            return sum(sampler.sample(wavefront) for wavefront in middle(sampler.wavefronts, every))

    parts = [f"stride {stride}" if stride > 1 else "exact", f"1 of {every} wavefronts" if every > 1 else ""]
    return Work(run, outputs, said(bf16, *parts), bf16)


def middle(wavefronts: list, every: int) -> list:
    """One of `every`, next to each other, from the middle of the map, whose windows know as much as most."""
    part = max(1, len(wavefronts) // every)
    start = (len(wavefronts) - part) // 2
    return wavefronts[start:start + part]


def prefixes(plan: Plan) -> Prefixes:
    """The same class everywhere, or the window's part of a map of conditions."""
    side, window = plan.size["map_side"], (plan.size["side"],) * 2
    layout = random_codes(plan.size, 1, side, plan.seed + 2).to(plan.device)

    def tokens(samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        if plan.size["condition"] == "class":
            return torch.ones(len(samples), 1, dtype=torch.int64, device=plan.device)
        return windows_of(layout[samples], tops, lefts, window).flatten(1)

    return tokens
