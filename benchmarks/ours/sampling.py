"""Our cached sampling: `tesserae.sampling.autoregressive.sample`."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.ours.drawing import drawer
from benchmarks.ours.settings import autocast, nothing_own, own_bf16, said
from benchmarks.work import Work
from tesserae.sampling.autoregressive import SampleOptions, sample


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """Whole maps of one class; None where our default is no other than fp32."""
    if nothing_own(plan, own_bf16(plan)):
        return None
    (model, outputs, bf16), size, seeds = drawer(plan, given), plan.size, count()
    prefix = torch.full((size["batch_size"], 1), 1, device=plan.device)

    def run() -> float:
        with autocast(plan, bf16):
            options = SampleOptions(top_k=size["top_k"], seed=next(seeds))
            codes = sample(model, prefix, (size["side"], size["side"]), options)
        return codes.numel()

    return Work(run, outputs, said(bf16), bf16)
