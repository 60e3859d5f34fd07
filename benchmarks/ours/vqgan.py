"""Our VQGAN step: `VQGANTask.step` with both optimisers, from bytes in memory to updated weights."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import SAME, Plan
from benchmarks.configs import vqgan_params
from benchmarks.data import HeldPictures, pictures
from benchmarks.ours.settings import nothing_own, own_bf16, own_settings, paper_block, said
from benchmarks.work import Work
from tesserae.accel.compilation import compiles, uncompiled
from tesserae.data.batches import to_unit
from tesserae.devices import make_accelerator
from tesserae.interop.compvis import load_vqgan, vqgan_config
from tesserae.models.vqgan import VQGAN
from tesserae.training.objective import reconstruction_loss
from tesserae.training.optimisers import make_vqgan_optimiser
from tesserae.training.vqgan import VQGANTask, compile_networks

OWN = ("optimiser", "perceptual_fraction")  # settings that cost time and leave the network alone
PLACEHOLDER = {"channels": 8, "channel_mult": [1], "res_blocks": 1, "z_channels": 8, "codebook_dim": 8}
LEGACY = {"codebook_weight": 0.25, "commitment_weight": 1.0}  # the reference's beta is on the codebook's term
FULL_PHASE = {"perceptual_start": 0, "disc_start": 0, "gan_loss": "hinge", "flip": False, "zoom": 1.0, "crop": 0,
              "dropout": 0.0}


def prepare(plan: Plan, given: dict[str, Any] | None) -> Work | None:
    """The task on the reference's weights, or its own; None where our default is the recipe itself."""
    size, bf16 = plan.size, own_bf16(plan)
    block = paper_block("vqgan", "image")
    own = own_settings(plan, "vqgan", "image", OWN)
    if nothing_own(plan, bf16, block, own):
        return None
    rate = 4.5e-6 * size["batch_size"]
    rates = {"lr": rate, "codebook_lr": rate, "disc_lr": rate}
    block = block.model_copy(update={
        **PLACEHOLDER, **LEGACY, **FULL_PHASE, **rates, **own, "batch_size": size["batch_size"],
        "codebook_size": size["codebook_size"], "disc_channels": size["disc_channels"]})
    images = pictures(size, plan.seed)
    accelerator = make_accelerator("bf16" if bf16 else "fp32", plan.threads)
    held = HeldPictures(images)
    task = VQGANTask(block, plan.seed, held, held, accelerator, show=lambda *_: None)
    _take_networks(task, plan, given)
    if compiles("auto", task.device):
        compile_networks(task.model)
    task.set_rate(1.0)
    outputs = _outputs(task, to_unit(images[:size["batch_size"]]).to(task.device), given) if plan.mode == SAME else {}
    task.model.train()
    step, repeats = count(1), size.get("repeats", 1)
    share = block.perceptual_fraction
    words = (block.optimiser, f"LPIPS on {share:g} of a batch" if share < 1 else "") if own else ()

    def run() -> float:
        for _ in range(repeats):
            task.step(next(step))
        return repeats

    return Work(run, outputs, said(bf16, *words), bf16)


def _take_networks(task: VQGANTask, plan: Plan, given: dict[str, Any] | None) -> None:
    """Put a VQGAN of the case's size into the task with its optimiser, and give the discriminator its weights."""
    config = {"model": {"params": vqgan_params(plan.size)}}
    model = VQGAN(vqgan_config(vqgan_params(plan.size))) if given is None else load_vqgan(config, given["state"])
    task.model = model.to(task.device)
    task.optimiser = make_vqgan_optimiser(task.model, task.block)
    if given is None:
        return
    below = "loss.discriminator.main."
    task.discriminator.net.load_state_dict({name.removeprefix(below): value for name, value in given["state"].items()
                                            if name.startswith(below)})


@torch.no_grad()
def _outputs(task: VQGANTask, x: Tensor, given: dict[str, Any] | None) -> dict[str, Tensor]:
    """Codes of a batch x, what the reference's codes decode to, L_rec of that, and D's logits on it."""
    model, adversary = task.model.eval(), task.discriminator.eval()
    with uncompiled():
        indices = model.encode(x)
        codes = indices if given is None else given["outputs"]["indices"].to(x.device)
        x_hat = model.decode_latents(model.quantizer.lookup(codes))
    rec, logits = reconstruction_loss(x, x_hat, task.weights, task.lpips)["rec"], adversary(x_hat)
    adversary.train()
    return {"indices": indices, "x_hat": x_hat, "rec": rec, "logits": logits}
