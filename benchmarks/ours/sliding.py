"""Our sliding window: `tesserae.sampling.windows.sample_map`, of which a share of its waves may be drawn.

Of the others the keys alone are there, which a later wave wants, without the network. With a stride there are no
waves, and the map is drawn whole.
"""

from __future__ import annotations

import time
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
from tesserae.models.transformer import Block, Step
from tesserae.sampling import windows
from tesserae.sampling.slide import Slide


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
        with autocast(plan, bf16):
            pack(model, windows.ROWS, [])  # once a map, which a part of it does not repay
    part = SomeWaves(every)

    def run() -> float:
        with autocast(plan, bf16), part:
            windows.sample_map(model, prefixes(plan), (side, side), window, top_k=size["top_k"], seed=next(seeds),
                               stride=stride)
        return part.codes if stride == 1 else side**2

    note = said(bf16, f"stride {stride}" if stride > 1 else "exact", share)
    return Work(run, outputs, note, bf16, lambda: part.aside)


def prefixes(plan: Plan) -> windows.Prefixes:
    """The same class everywhere, or the window's part of a map of conditions."""
    side, window = plan.size["map_side"], (plan.size["side"],) * 2
    layout = random_codes(plan.size, 1, side, plan.seed + 2).to(plan.device)

    def tokens(samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        if plan.size["condition"] == "class":
            return torch.ones(len(samples), 1, dtype=torch.int64, device=plan.device)
        return windows_of(layout[samples], tops, lefts, window).flatten(1)

    return tokens


class SomeWaves:
    """Within it one wave of `every` is drawn, evenly over the map; a wave's time does not depend on codes before it.

    codes: how many were drawn. aside: seconds that went to the other waves.
    """

    def __init__(self, every: int) -> None:
        self.every, self.codes, self.aside = every, 0, 0.0

    def __enter__(self) -> SomeWaves:
        self.whole, self.codes, self.aside, numbers = windows.draw_wave, 0, 0.0, count()

        def draw_wave(slide: Slide, *given: Any) -> int:
            if next(numbers) % self.every == self.every // 2:
                drawn = self.whole(slide, *given)
                self.codes += drawn
                return drawn
            began = time.perf_counter()
            with hollow(), slide.model.steady():  # its steps are looked up again
                drawn = self.whole(slide, *given)
            self.aside += time.perf_counter() - began
            return drawn

        windows.draw_wave = draw_wave
        return self

    def __exit__(self, *_: object) -> None:
        windows.draw_wave = self.whole


@contextmanager
def hollow() -> Iterator[None]:
    """Blocks that compute nothing, and keep zeros where keys and values are kept."""
    whole = Block.forward, Block.stepping

    def forward(self: Block, x: Tensor, layer: int = 0, cache: Any = None, last: int = 0) -> Tensor:
        if cache is not None:
            width = x.shape[2] // self.attention.heads
            kept = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
            zeros = x.new_zeros(1, dtype=kept).expand(len(x), self.attention.heads, x.shape[1], width)
            cache.attended(layer, zeros, zeros, zeros, lambda q, k, v, seen: q)
        return x[:, -last:]

    def stepping(self: Block) -> Step:
        return lambda x, layer, cache: forward(self, x[:, None], layer, cache)[:, 0]

    Block.forward, Block.stepping = forward, stepping
    try:
        yield
    finally:
        Block.forward, Block.stepping = whole
