"""Stage 1: train a VQGAN on the prepared pictures.

    python -m tesserae.training.vqgan --params params.yaml --target image
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from tesserae import figures
from tesserae.data.batches import augment, batch_indices
from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import View, make_view
from tesserae.evaluation.codebook import usage_statistics
from tesserae.evaluation.images import reconstruction_metrics
from tesserae.models.discriminator import PatchDiscriminator
from tesserae.models.perceptual import LPIPS
from tesserae.models.quantizers import NearestQuantizer
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import VQGANParams
from tesserae.stage import Stage
from tesserae.training.alarms import Alarm, vqgan_alarms
from tesserae.training.identity import checkpoint_folder, code_of, facts_of
from tesserae.training.loop import (
    Progress,
    as_written,
    compiles,
    deliver,
    lengthened,
    make_accelerator,
    of_one,
    step_seed,
    to_device_soon,
    train,
)
from tesserae.training.objective import Weights, discriminator_backward, generator_backward
from tesserae.training.optimisers import make_optimiser, set_share, with_full_rates
from tesserae.training.processes import average_gradients, clipped

FIRST_PICTURES = 256  # pictures whose encodings the codebook starts from
SHOWN = 8  # pictures in the grids by step
COMPUTING = ("data/batches.py", "data/views", "models/discriminator.py", "models/layers.py", "models/perceptual.py",
             "models/quantizers.py", "models/vqgan.py", "training/loop.py", "training/muon.py",
             "training/objective.py", "training/optimisers.py", "training/processes.py",
             "training/vqgan.py")  # code that decides what is learned


def model_config(block: VQGANParams, view: View) -> VQGANConfig:
    """The network that a block of params.yaml asks for, for this view of the pictures."""
    return VQGANConfig(
        **view.record(), channels=block.channels, channel_mult=tuple(block.channel_mult), res_blocks=block.res_blocks,
        patch=block.patch, refine=block.refine, attention=block.attention, z_channels=block.z_channels,
        dropout=block.dropout, quantizer=block.quantizer, codebook_size=block.codebook_size,
        codebook_dim=block.codebook_dim,
    )


def objective_weights(block: VQGANParams) -> Weights:
    """The objective's constants that a block of params.yaml asks for."""
    return Weights(
        pixel_loss=block.pixel_loss, pixel_weight=block.pixel_weight, perceptual_weight=block.perceptual_weight,
        perceptual_share=block.perceptual_share, codebook_weight=block.codebook_weight,
        commitment_weight=block.commitment_weight, gan_loss=block.gan_loss, gan_weight=block.gan_weight,
    )


def compile_networks(model: VQGAN) -> None:
    """Let torch.compile make kernels of E, and of G but for its last layer, at their first use."""
    model.encoder.compile(dynamic=False)
    model.decoder.features = torch.compile(model.decoder.features, dynamic=False)


class VQGANTask:
    """One VQGAN with its discriminator and both optimisers, as the loop sees it.

    `show(picture, step)` receives the grid of held-out pictures above their reconstructions. compiled: whether
    torch.compile makes kernels of encoder and decoder, the last layer aside, whose gradients lambda asks for.
    """

    unit = "images"
    spoken = ("rec", "lambda", "perplexity", "usage")
    losses = ("rec", "codebook", "commitment")

    def __init__(self, block: VQGANParams, seed: int, pictures: Pictures, held_out: Pictures,
                 accelerator: Accelerator, show: Callable, compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.block, self.seed, self.accelerator, self.show = block, seed, accelerator, show
        self.pictures, self.held_out = pictures, held_out
        self.device = device = accelerator.device
        self.view = make_view(block.view, block.column, pictures, held_out)
        self.score = self.view.judged
        self.model = VQGAN(model_config(block, self.view)).to(device)
        self.weights = objective_weights(block)
        self.discriminator = PatchDiscriminator(self.view.channels, block.disc_channels, block.disc_layers).to(device)
        fast = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self.lpips = LPIPS.load("vgg", fast).to(device) if block.perceptual_weight else None
        self.measure = LPIPS.load("vgg").to(device) if self.view.perceptual else None
        self.optimiser = make_optimiser(self.model, block)
        self.disc_optimiser = with_full_rates(torch.optim.Adam(
            self.discriminator.parameters(), lr=block.disc_lr, betas=tuple(block.disc_betas), fused=True))
        self.counts = torch.zeros(block.codebook_size, device=device)  # codes chosen since the last log
        self.processes = accelerator.num_processes
        self.per_step = block.batch_size * self.processes
        if compiled:
            compile_networks(self.model)

    def set_rate(self, share: float) -> None:
        """All learning rates as a share of the full ones."""
        self.share = share
        for optimiser in (self.optimiser, self.disc_optimiser):
            set_share(optimiser, share)

    def batch(self, step: int) -> Tensor:
        """The images of a step, (B,C,H,W) float32: a function of (seed, step, process)."""
        indices = batch_indices(len(self.pictures), self.block.batch_size, step, self.seed,
                                self.accelerator.process_index, self.processes)
        return self._seen(indices, step)

    def _seen(self, indices, step: int) -> Tensor:
        block, stored = self.block, self.view.stored(self.pictures, indices)
        stored = augment(stored, step, self.seed, indices, block.flip, block.zoom, block.crop, self.view.smooth)
        seen = self.view.seen(to_device_soon(stored, self.device))
        return seen.contiguous(memory_format=torch.channels_last) if seen.is_cuda else seen  # tensor cores' order

    def step(self, step: int) -> dict[str, Tensor]:
        """One update of E, G, Z and, once it has started, of D."""
        images = self.batch(step)
        lpips = self.lpips if step >= self.block.perceptual_start else None
        adversary = self.discriminator if self.block.gan_loss != "none" and step >= self.block.disc_start else None
        with self.accelerator.autocast():
            if step == 0:
                self._start_codebook()
            self.optimiser.zero_grad()
            terms, made = generator_backward(self.model, images, self.weights, lpips, adversary)
            if adversary is not None:
                self.disc_optimiser.zero_grad()
                terms |= discriminator_backward(adversary, images, made["fake"], self.block.gan_loss)
                terms["disc_grad_norm"] = self._update(self.disc_optimiser, adversary)
        terms["grad_norm"] = self._update(self.optimiser, self.model)
        self._follow_codes(made, step)
        return terms

    def summary(self) -> dict[str, float]:
        """How the codebook was used since the last call, and the learning rate."""
        counts = self.accelerator.reduce(self.counts, "sum")
        statistics = usage_statistics(counts)
        self.counts = torch.zeros_like(self.counts)
        return {"perplexity": statistics["perplexity"], "usage": statistics["usage"],
                "lr": self.block.lr * self.share}

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """How near held-out reconstructions are, and the use of the codebook on them."""
        self.model.eval()
        indices = spread(self.block.eval_images, len(self.held_out))
        measures = reconstruction_metrics(self.model, self.held_out, indices, self.block.batch_size, self.measure)
        self.model.train()
        return measures

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """Show held-out pictures above their reconstructions."""
        if not self.accelerator.is_main_process:
            return
        self.model.eval()
        shown = self.view.stored(self.held_out, spread(SHOWN, len(self.held_out)))
        images = self.view.seen(shown.to(self.device))
        both = torch.cat([images, self.model.decode(self.model.encode(images))])
        self.model.train()
        self.show(figures.grid_image(self.view.drawn(both).cpu(), columns=len(images)), step)

    def alarms(self, history: list[dict]) -> list[Alarm]:
        """Collapses of the codebook and of the discriminator."""
        return vqgan_alarms(history, self.block.codebook_size, revived=self.block.revive_after > 0)

    def state(self) -> dict:
        """All that the next steps depend on."""
        return {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(),
                "discriminator": self.discriminator.state_dict(),
                "disc_optimiser": self.disc_optimiser.state_dict(), "counts": self.counts}

    def load_state(self, state: dict) -> None:
        """Take up what `state` returned."""
        for name in ("model", "optimiser", "discriminator", "disc_optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.counts = state["counts"]

    def export(self, folder: Path | None) -> None:
        """The model alone, for `VQGAN.from_pretrained`."""
        if folder is not None:
            self.model.save_pretrained(folder)

    def _update(self, optimiser: torch.optim.Optimizer, network: torch.nn.Module) -> Tensor:
        parameters = list(network.parameters())
        average_gradients(self.accelerator, parameters)
        norm = clipped(parameters, self.block.grad_clip)
        optimiser.step()
        return norm

    def _start_codebook(self) -> None:
        quantizer = self.model.quantizer
        if self.block.codebook_init != "data" or not isinstance(quantizer, NearestQuantizer):
            return
        images = self._seen(batch_indices(len(self.pictures), FIRST_PICTURES, 0, self.seed), step=0)
        with torch.no_grad(), as_written():
            latents = torch.cat([self.model.latents(part) for part in images.split(self.block.batch_size)])
        quantizer.start(latents, torch.Generator().manual_seed(step_seed(self.seed, 0, stream=1)))

    def _follow_codes(self, made: dict[str, Tensor], step: int) -> None:
        """Count the codes of this step; move the ones that nobody has chosen for long."""
        counts = torch.bincount(made["indices"].flatten(), minlength=self.block.codebook_size).float()
        self.counts += counts
        quantizer = self.model.quantizer
        if not self.block.revive_after or not isinstance(quantizer, NearestQuantizer):
            return
        used = self.accelerator.reduce(counts, "sum") > 0
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, stream=2))
        quantizer.revive(made["z_hat"], used, self.block.revive_after, generator)
        if self.processes > 1:
            broadcast(quantizer.codebook.data)


def train_vqgan(stage: Stage, say: Callable[[str], None] = print) -> Progress:
    """Train `stage`'s VQGAN to the end, or go on where it stopped; leave it in models/vqgan-<target>."""
    params, block = stage.params, stage.block
    accelerator = make_accelerator(params.precision, params.threads)
    say = of_one(say, accelerator)
    block = lengthened(block, params.effort, say)
    pictures = Pictures.load(stage.path("prepared"), "train")
    held_out = Pictures.load(stage.path("prepared"), "validation")
    compiled = compiles(params.compile, accelerator.device)
    facts = facts_of(block, seed=params.seed, precision=accelerator.mixed_precision, compiled=compiled,
                     data=pictures.fingerprint_of(block.column),
                     processes=accelerator.num_processes, code=code_of(*COMPUTING))
    folder = checkpoint_folder(stage.home, stage.name, facts, say)
    task = VQGANTask(block, params.seed, pictures, held_out, accelerator,
                     show=lambda picture, step: stage.run.image(picture, "reconstructions", step),
                     compiled=compiled)
    progress = train(task, block, params.seed, folder, stage.reports, stage.run.metrics, accelerator, say)
    if accelerator.is_main_process:
        deliver(folder, stage.path("models", stage.name))
        for alarm in (alarms := task.alarms(progress.history)):
            say(f"ALARM, {alarm}")
        stage.metrics({**{f"val_{k}": v for k, v in progress.best.items() if k != "step"},
                       "best_step": progress.best["step"], "steps": progress.step, "alarms": len(alarms),
                       f"last_{task.score}": progress.latest[task.score]})
    return progress


def main() -> None:
    """Train without a notebook; see the module's first lines."""
    parser = argparse.ArgumentParser(description="Train a VQGAN.")
    parser.add_argument("--params", default="params.yaml", help="parameters file (default: params.yaml)")
    parser.add_argument("--target", default="image", help="the block under vqgan: in it (default: image)")
    arguments = parser.parse_args()
    with Stage.open("vqgan", arguments.target, arguments.params) as stage:
        train_vqgan(stage)


if __name__ == "__main__":
    main()
