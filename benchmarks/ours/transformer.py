"""Our transformer step: `TransformerTask.step`, which reads code maps."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.configs import code_side, transformer_params
from benchmarks.data import BATCHES, random_codes
from benchmarks.ours.settings import nothing_own, own_bf16, own_settings, paper_block, said
from benchmarks.work import Work
from tesserae.accel.compilation import compiles, uncompiled
from tesserae.data.codes import CodeMaps
from tesserae.data.paired import PairedMaps
from tesserae.devices import make_accelerator
from tesserae.interop.compvis import load_transformer, load_vqgan
from tesserae.training.transformer import TransformerTask

OWN = ("optimiser",)  # settings that cost time and leave network and data alone
RECIPE = {"condition": ["class"], "window": 0, "flip": False, "pkeep": 1.0, "dropout": 0.0, "grad_clip": 0.0}


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """The task on the reference's weights, or its own; None where our default is the recipe itself."""
    size, bf16 = plan.size, own_bf16(plan)
    block = paper_block("transformer", "class")
    own = own_settings(plan, "transformer", "class", OWN)
    if nothing_own(plan, bf16, block, own):
        return None
    sizes = {name: size[name] for name in ("batch_size", "n_layer", "n_head", "n_embd")}
    block = block.model_copy(update={**RECIPE, **own, **sizes, "lr": 4.5e-6 * size["batch_size"]})
    accelerator = make_accelerator("bf16" if bf16 else "fp32", plan.threads)
    data = _code_maps(plan)
    task = TransformerTask(block, plan.seed, data, data, {}, accelerator, show=lambda *_: None,
                           compiled=compiles("auto", accelerator.device))
    task.set_rate(1.0)
    outputs = _take_weights(task, size, given) if given else {}
    task.model.train()
    step, repeats = count(1), size.get("repeats", 1)

    def run() -> float:
        for _ in range(repeats):
            task.step(next(step))
        return repeats

    return Work(run, outputs, said(bf16, block.optimiser if own else ""), bf16)


def _code_maps(plan: Plan) -> PairedMaps:
    """As many maps as the reference's side has pictures, each with a class."""
    size = plan.size
    indices = random_codes(size, BATCHES * size["batch_size"], code_side(size), plan.seed)
    names = [str(number) for number in range(size["classes"])]
    labels = torch.arange(len(indices)) % size["classes"]
    return PairedMaps(CodeMaps(indices[:, None].to(torch.int32), labels, names, size["codebook_size"]))


@torch.no_grad()
def _take_weights(task: TransformerTask, size: dict[str, Any], given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Give the task the reference's weights: logits on its codes, and its pictures' codes by the first stage."""
    params = {"model": {"params": transformer_params(size)}}
    task.model.load_state_dict(load_transformer(params, given["state"]).state_dict())
    inputs = {name: given[name].to(task.device) for name in ("images", "labels", "codes")}
    first_stage = load_vqgan(params, given["state"]).to(task.device)
    with uncompiled():
        logits = task.model.eval()(inputs["labels"][:, None], inputs["codes"])
    return {"indices": first_stage.encode(inputs["images"]).flatten(1), "logits": logits}
