"""Our transformer, ready to draw: shared by the cases that draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Plan
from benchmarks.configs import transformer_config, transformer_params
from benchmarks.data import prefix_and_codes
from benchmarks.ours.settings import own_bf16
from tesserae.devices import make_accelerator
from tesserae.interop.compvis import load_transformer
from tesserae.models.transformer import LatentTransformer


def drawer(plan: Plan, given: dict[str, Any] | None) -> tuple[LatentTransformer, dict[str, Tensor], bool]:
    """The transformer, its logits on codes that both sides know, and whether it draws in bf16."""
    device = make_accelerator("fp32", plan.threads).device  # as the notebooks begin
    if given is None:
        model = LatentTransformer(transformer_config(plan.size)).eval()
    else:
        model = load_transformer({"model": {"params": transformer_params(plan.size)}}, given["state"])
    model = model.to(device)
    return model, _outputs(model, plan), own_bf16(plan)


@torch.no_grad()
def _outputs(model: LatentTransformer, plan: Plan) -> dict[str, Tensor]:
    """Logits of a whole map at once, and of its first codes one after the other with the cache."""
    prefix, codes = (part.to(plan.device) for part in prefix_and_codes(plan.size, 2, plan.seed))
    logits, cache = model.prefill(prefix)
    steps = [logits] + [model.step(codes[:, place], cache) for place in range(2)]
    return {"logits": model(prefix, codes), "cached logits": torch.stack(steps, dim=1)}
