"""The reference's transformer step: Net2NetTransformer, which encodes its pictures in each step."""

from __future__ import annotations

import importlib
from itertools import cycle
from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.configs import transformer_params
from benchmarks.data import pictures
from benchmarks.reference import shake, weights_of
from benchmarks.reference_vqgan import BASE_LR
from benchmarks.work import Work
from tesserae.data.batches import to_unit


def prepare(plan: Plan) -> tuple[Work, dict[str, Any]]:
    """What Lightning's loop does with a batch of pictures and classes, in memory as its loader gives them."""
    size, count = plan.size, plan.size["batch_size"]
    model = importlib.import_module("taming.models.cond_transformer").Net2NetTransformer(**transformer_params(size))
    shake(model.first_stage_model)
    shake(model.transformer)
    model.to(plan.device).eval()
    images = to_unit(pictures(size, plan.seed)).to(plan.device)
    labels = (torch.arange(len(images)) % size["classes"]).to(plan.device)
    with torch.no_grad():
        logits, codes = model(images[:count], labels[:count])
    given = {"state": weights_of(model), "images": images[:count].cpu(), "labels": labels[:count].cpu(),
             "codes": codes.cpu()}
    model.learning_rate = BASE_LR * count
    optimiser = model.configure_optimizers()
    model.train()
    batches, repeats = cycle(zip(images.movedim(1, -1).split(count), labels.split(count))), size.get("repeats", 1)

    def run() -> float:
        for _ in range(repeats):
            pixels, classes = next(batches)
            loss = model.training_step({"image": pixels, "class_label": classes}, 0)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return repeats

    return Work(run, {"indices": codes, "logits": logits}), given
