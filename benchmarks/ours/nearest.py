"""Our search for the nearest code: `NearestQuantizer`."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.data import vectors
from benchmarks.work import Work
from tesserae.models.quantizers import NearestQuantizer


@torch.no_grad()
def prepare(plan: Plan, given: dict[str, Any] | None) -> Work:
    """Quantize vectors (B,n_z,h,w) `repeats` times."""
    size = plan.size
    quantizer = NearestQuantizer(size["codebook_size"], size["codebook_dim"])
    if given:
        quantizer.codebook.copy_(given["codebook"])
    quantizer.to(plan.device)
    z_hat = vectors(size, plan.seed).to(plan.device)

    @torch.no_grad()
    def run() -> float:
        for _ in range(size["repeats"]):
            quantizer(z_hat)
        return size["repeats"]

    found = quantizer(z_hat)
    return Work(run, {"indices": found.indices.flatten()})
