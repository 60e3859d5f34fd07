"""The reference's VQGAN step: VQModel with VQLPIPSWithDiscriminator and both of its optimisers."""

from __future__ import annotations

import importlib
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Plan
from benchmarks.configs import vqgan_params
from benchmarks.data import pictures
from benchmarks.reference import shake, weights_of
from benchmarks.reference_vqgan import BASE_LR, both_steps
from benchmarks.work import Work
from tesserae.data.batches import to_unit


def prepare(plan: Plan) -> tuple[Work, dict[str, Any]]:
    """What Lightning's loop does with a batch, at full GAN phase; batches are in memory as its loader gives them."""
    size = plan.size
    params = vqgan_params(size, "vqperceptual.VQLPIPSWithDiscriminator", disc_conditional=False, disc_in_channels=3,
                          disc_start=0, disc_weight=0.8, codebook_weight=1.0, disc_ndf=size["disc_channels"])
    model = importlib.import_module("taming.models.vqgan").VQModel(**params).to(plan.device)
    shake(model)
    images = to_unit(pictures(size, plan.seed)).to(plan.device)
    outputs, given = _outputs(model, images[:size["batch_size"]]), {"state": weights_of(model)}
    model.learning_rate = BASE_LR * size["batch_size"]
    optimisers, _ = model.configure_optimizers()
    model.train()
    batches, repeats = cycle(images.movedim(1, -1).split(size["batch_size"])), size.get("repeats", 1)

    def run() -> float:
        for _ in range(repeats):
            both_steps(model, optimisers, next(batches))
        return repeats

    return Work(run, outputs), given


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Codes of a batch x (B,3,H,W), their reconstruction, L_rec of it, and D's logits on it."""
    model.eval()
    z_q, _, (_, _, indices) = model.encode(x)
    codes = indices.view(len(x), z_q.shape[2], z_q.shape[3])
    x_hat = model.decode(z_q)
    rec = (x - x_hat).abs().mean() + model.loss.perceptual_loss(x, x_hat).mean()
    return {"indices": codes, "x_hat": x_hat, "rec": rec, "logits": model.loss.discriminator(x_hat)}
