"""The reference's cached sampling: `sample_with_past`, as its script for quick sampling calls it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.theirs.drawing import drawer
from benchmarks.work import Work


def prepare(plan: Plan) -> tuple[Work, dict[str, Any]]:
    """Whole maps of one class."""
    (module, network, outputs, given), size = drawer(plan), plan.size
    prefix = torch.full((size["batch_size"], 1), 1, device=plan.device)

    def run() -> float:
        return module.sample_with_past(prefix, network, steps=size["side"] ** 2, sample_logits=True,
                                       top_k=size["top_k"], top_p=1.0).numel()

    return Work(run, outputs), given
