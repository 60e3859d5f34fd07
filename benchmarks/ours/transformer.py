"""Our transformer step: `TransformerTask.step`, which reads code maps."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch

from benchmarks.cases import Plan
from benchmarks.configs import code_side, transformer_config, transformer_params
from benchmarks.data import BATCHES, random_codes
from benchmarks.ours.settings import nothing_own, own_bf16, own_settings, paper_block, said
from benchmarks.work import Work
from tesserae.data.codes import CodeMaps
from tesserae.data.paired import PairedMaps
from tesserae.interop.compvis import load_transformer, load_vqgan
from tesserae.models.transformer import LatentTransformer
from tesserae.training.loop import as_written, compiles, make_accelerator
from tesserae.training.transformer import TransformerTask, compile_blocks, make_optimiser

OWN = ("optimiser",)  # settings that cost time and leave network and data alone
PLACEHOLDER = {"n_layer": 1, "n_head": 1, "n_embd": 8}
RECIPE = {"condition": ["class"], "window": 0, "flip": False, "pkeep": 1.0, "dropout": 0.0, "grad_clip": 0.0}


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """The task on the reference's weights, or its own; None where our default is the recipe itself."""
    size, bf16 = plan.size, own_bf16(plan)
    block = paper_block("transformer", "class")
    own = own_settings(plan, "transformer", "class", OWN)
    if nothing_own(plan, bf16, block, own):
        return None
    block = block.model_copy(update={**PLACEHOLDER, **RECIPE, **own, "batch_size": size["batch_size"],
                                     "lr": 4.5e-6 * size["batch_size"]})
    accelerator = make_accelerator("bf16" if bf16 else "fp32", plan.threads)
    data = _code_maps(plan)
    task = TransformerTask(block, plan.seed, data, data, {}, accelerator, show=lambda *_: None)
    params = {"model": {"params": transformer_params(size)}}
    model = LatentTransformer(transformer_config(size)) if given is None else load_transformer(params, given["state"])
    task.model = model.to(task.device)
    task.optimiser = make_optimiser(task.model, block)
    if compiles("auto", task.device):
        compile_blocks(task.model)
    task.set_rate(1.0)
    outputs = _outputs(task, params, given) if given else {}
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
def _outputs(task: TransformerTask, params: dict[str, Any], given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Codes of the reference's first batch by the first stage loaded here, and logits on the reference's codes."""
    inputs = {name: given[name].to(task.device) for name in ("images", "labels", "codes")}
    first_stage = load_vqgan(params, given["state"]).to(task.device)
    with as_written():
        logits = task.model.eval()(inputs["labels"][:, None], inputs["codes"])
    return {"indices": first_stage.encode(inputs["images"]).flatten(1), "logits": logits}
