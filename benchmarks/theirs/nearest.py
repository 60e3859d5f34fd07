"""The reference's search for the nearest code: VectorQuantizer2, which makes the whole matrix of distances."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.data import vectors
from benchmarks.work import Work


@torch.no_grad()
def prepare(plan: Plan) -> tuple[Work, dict[str, Any]]:
    """Quantize vectors (B,n_z,h,w) `repeats` times."""
    size = plan.size
    module = importlib.import_module("taming.modules.vqvae.quantize")
    quantizer = module.VectorQuantizer2(size["codebook_size"], size["codebook_dim"], beta=0.25).to(plan.device)
    quantizer.embedding.weight.normal_()
    z_hat = vectors(size, plan.seed).to(plan.device)

    @torch.no_grad()
    def run() -> float:
        for _ in range(size["repeats"]):
            quantizer(z_hat)
        return size["repeats"]

    indices = quantizer(z_hat)[2][2]
    return Work(run, {"indices": indices.flatten()}), {"codebook": quantizer.embedding.weight.cpu()}
