"""Train the reference's VQGAN for a number of seconds: the other side of equal_time.py, in a process of its own.

    python benchmarks/reference_vqgan.py plan.json

Model, losses and optimisers are the reference's own code. What is ours: the loop that PyTorch Lightning would run
(both optimisers in turn on each batch, each with the other's weights frozen, everything in training mode), stand-ins
for the two libraries it imports in versions that no longer install, pictures from memory instead of from files,
and LPIPS's weights, which it would download.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from tesserae.data.batches import to_unit
from tesserae.data.pictures import Pictures
from tesserae.pretrained import imagenet_convolutions

BASE_LR = 4.5e-6  # a picture of the batch, as all of its configs say
CH_MULT = {1: [1, 4], 2: [1, 2, 4], 3: [1, 1, 2, 4], 4: [1, 1, 2, 2, 4]}  # by m, f = 2^m


class LightningModule(nn.Module):
    """As much of Lightning's as the model calls."""

    global_step = 0

    def log(self, *_, **__) -> None:
        pass

    log_dict = log


def import_reference(checkout: Path) -> type[nn.Module]:
    """The reference's VQModel, its missing imports stood in for and its LPIPS on our copy of the weights."""
    lightning, entry = types.ModuleType("pytorch_lightning"), types.ModuleType("main")
    lightning.LightningModule = LightningModule
    entry.instantiate_from_config = instantiate
    sys.modules |= {"pytorch_lightning": lightning, "main": entry}
    sys.path.insert(0, str(checkout))
    losses = importlib.import_module("taming.modules.losses.lpips")
    losses.models = types.SimpleNamespace(vgg16=vgg16)
    heads = Path(importlib.util.find_spec("lpips").origin).parent / "weights" / "v0.1" / "vgg.pth"
    losses.get_ckpt_path = lambda *_: str(heads)
    return importlib.import_module("taming.models.vqgan").VQModel


def instantiate(config: dict) -> nn.Module:
    """{"target": dotted name, "params": arguments} -> the object."""
    module, _, name = config["target"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**config.get("params", {}))


def vgg16(**_) -> nn.Module:
    """torchvision's VGG16 with its ImageNet convolutions, from where LPIPS has them here."""
    network = torchvision.models.vgg16(weights=None)
    convs = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, imagenet_convolutions("vgg"), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    return network


def model_params(plan: dict) -> dict:
    """Its custom_vqgan.yaml, scaled down: f and K as asked, a quarter of the channels, attention at the end."""
    mult = CH_MULT[int(np.log2(plan["downsampling"]))]
    return {
        "embed_dim": 256, "n_embed": plan["codebook_size"],
        "ddconfig": {"double_z": False, "z_channels": 256, "resolution": plan["size"], "in_channels": 3, "out_ch": 3,
                     "ch": 32, "ch_mult": mult, "num_res_blocks": 2,
                     "attn_resolutions": [plan["size"] // plan["downsampling"]], "dropout": 0.0},
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {
            "disc_conditional": False, "disc_in_channels": 3, "disc_start": 10000, "disc_weight": 0.8,
            "codebook_weight": 1.0}},
    }


def train(model: nn.Module, pictures: Pictures, plan: dict) -> tuple[int, float]:
    """What Lightning's loop does with one process and two optimisers; steps made and seconds spent."""
    model.learning_rate = BASE_LR * plan["batch_size"]
    optimisers, _ = model.configure_optimizers()
    model.train()
    generator, queue = np.random.default_rng(plan["seed"]), np.zeros(0, dtype=np.int64)
    began = said = time.monotonic()
    while time.monotonic() - began < plan["seconds"]:
        while len(queue) < plan["batch_size"]:
            queue = np.concatenate([queue, generator.permutation(len(pictures))])
        indices, queue = np.split(queue, [plan["batch_size"]])
        images = to_unit(pictures.batch(indices)).movedim(1, -1)  # (B,H,W,3), as its data loader gives them
        both_steps(model, optimisers, images)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"step {model.global_step}  {said - began:.0f} s", flush=True)
    return model.global_step, time.monotonic() - began


def both_steps(model: nn.Module, optimisers: list[torch.optim.Optimizer], images: Tensor) -> None:
    """One batch (B,H,W,3) in [-1,1]: the model twice, once for either optimiser, the other's weights frozen."""
    for turn, optimiser in enumerate(optimisers):
        for other, holder in enumerate(optimisers):
            for group in holder.param_groups:
                for parameter in group["params"]:
                    parameter.requires_grad_(other == turn)
        loss = model.training_step({"image": images}, model.global_step, turn)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.global_step += 1


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images (N,3,H,W) in [-1,1] -> their reconstructions, clamped, and their indices (N,h*w)."""
    model.eval()
    made, indices = [], []
    for part in images.split(32):
        z_q, _, (_, _, found) = model.encode(part)
        made.append(model.decode(z_q).clamp(-1, 1))
        indices.append(found.reshape(len(part), -1))
    return torch.cat(made), torch.cat(indices)


def main() -> None:
    """Train as the plan says and leave the reconstructions of the held-out pictures."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(plan["threads"])
    torch.manual_seed(plan["seed"])
    model = import_reference(Path(plan["reference"]))(**model_params(plan))
    steps, seconds = train(model, Pictures.load(plan["prepared"], "train"), plan)
    held_out = Pictures.load(plan["prepared"], "validation")
    real = to_unit(held_out.batch(range(min(plan["eval_images"], len(held_out)))))
    images, indices = reconstruct(model, real)
    torch.save({"images": images, "indices": indices, "steps": steps, "seconds": seconds}, plan["out"])


if __name__ == "__main__":
    main()
