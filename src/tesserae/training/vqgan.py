"""Stage 1: train a VQGAN on the prepared pictures.

    python -m tesserae.training.vqgan --params params.yaml --target image
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from tesserae import figures
from tesserae.data.batches import augment, batch_indices
from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import View, make_view
from tesserae.errors import command
from tesserae.evaluation.codebook import usage_statistics
from tesserae.evaluation.images import mean_metrics, reconstruction_measures
from tesserae.models.discriminator import FeatureDiscriminator, PatchDiscriminator
from tesserae.models.perceptual import LPIPS
from tesserae.models.quantizers import EMAQuantizer, GumbelQuantizer, LibraryQuantizer
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import VQGANParams, settings
from tesserae.stage import Stage
from tesserae.training.alarms import Alarm, codebook_remedy, vqgan_alarms
from tesserae.training.identity import checkpoint_folder, code_of, facts_of
from tesserae.training.loop import (
    Progress,
    as_written,
    compiles,
    deliver,
    lengthened,
    make_accelerator,
    never_reached,
    of_one,
    step_seed,
    to_device_soon,
    train,
)
from tesserae.training.objective import Weights, discriminator_backward, generator_backward
from tesserae.training.optimisers import make_optimiser, set_share, with_full_rates
from tesserae.training.processes import Group, average_gradients, clipped, with_shared_statistics

FIRST_PICTURES = 256  # pictures whose encodings the codebook starts from
SHOWN = 8  # pictures in the grids by step
COMPUTING = ("codebook_params.py", "data/batches.py", "data/palette.py", "data/views", "models/discriminator.py",
             "models/layers.py", "models/perceptual.py", "models/quantizers.py", "models/vqgan.py",
             "training/loop.py", "training/muon.py", "training/objective.py", "training/optimisers.py",
             "training/processes.py", "training/vqgan.py")  # code that decides what is learned


def model_config(block: VQGANParams, view: View) -> VQGANConfig:
    """The network that a block of params.yaml asks for, for this view of the pictures."""
    return VQGANConfig(
        **view.record(), channels=block.channels, channel_mult=tuple(block.channel_mult), res_blocks=block.res_blocks,
        patch=block.patch, refine=block.refine, attention=block.attention,
        attention_levels=tuple(block.attention_levels), z_channels=block.z_channels, dropout=block.dropout,
        quantizer=block.quantizer, codebook_size=block.codebook_size, codebook_dim=block.codebook_dim,
        gradient=block.gradient,
    )


def objective_weights(block: VQGANParams) -> Weights:
    """The objective's constants that a block of params.yaml asks for."""
    return Weights(
        pixel_loss=block.pixel_loss, pixel_weight=block.pixel_weight, perceptual_weight=block.perceptual_weight,
        perceptual_fraction=block.perceptual_fraction, codebook_weight=block.codebook_weight,
        commitment_weight=block.commitment_weight, entropy_weight=block.entropy_weight, kl_weight=block.kl_weight,
        gan_loss=block.gan_loss, gan_weight=block.gan_weight,
    )


def annealed(start: float, end: float, done: float) -> float:
    """From `start` to `end` along half a cosine, at `done` in [0,1] of the way: the authors' schedule for Gumbel."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


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
        self.view = make_view(block.view, block.column, pictures, held_out, ignore_index=block.ignore_index)
        self.score = self.view.judged
        self.model = VQGAN(model_config(block, self.view)).to(device)
        self.weights, self.group = objective_weights(block), Group(accelerator)
        if isinstance(self.model.quantizer, LibraryQuantizer) and self.group.count > 1:
            self.model.quantizer.mean = self.group.mean_with_gradient
        fast = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        self.lpips = LPIPS.load("vgg", fast).to(device) if block.perceptual_weight or block.judges_features else None
        self.discriminator = self._make_discriminator()
        self.measure = LPIPS.load("vgg").to(device) if self.view.perceptual else None
        self.optimiser = make_optimiser(self.model, block)
        self.disc_optimiser = None if self.discriminator is None else with_full_rates(torch.optim.Adam(
            self.discriminator.parameters(), lr=block.disc_lr, betas=tuple(block.disc_betas), fused=True))
        self.counts = torch.zeros(self.model.config.codebook_size, device=device)  # codes chosen since the last log
        self.processes = accelerator.num_processes
        self.per_step = block.batch_size * self.processes
        if compiled:
            compile_networks(self.model)

    def _make_discriminator(self) -> torch.nn.Module | None:
        """D as params.yaml asks for; its first weights follow from the seed, whatever was made before."""
        block = self.block
        torch.manual_seed(step_seed(self.seed, 0, stream=3))
        if block.gan_loss == "none":
            return None
        if block.judges_features:
            return FeatureDiscriminator(self.lpips.backbone, block.disc_channels, block.disc_layers).to(self.device)
        made = PatchDiscriminator(self.view.channels, block.disc_channels, block.disc_layers)
        return with_shared_statistics(made.to(self.device), self.group)

    def set_rate(self, share: float, done: float = 0.0) -> None:
        """All learning rates as a share of the full ones; `done` in [0,1] is how much of the training is over."""
        self.share = share
        for optimiser in filter(None, (self.optimiser, self.disc_optimiser)):
            set_share(optimiser, share)
        if isinstance(self.model.quantizer, GumbelQuantizer):
            first, last = self.block.temperature_start, self.block.temperature_end
            self.model.quantizer.temperature = annealed(first, last, done)

    def batch(self, step: int) -> Tensor:
        """The images of a step, (B,C,H,W) float32: a function of (seed, step, process).

        Processes take the pictures of the whole batch in turn, so that each has its part of those LPIPS judges.
        """
        whole = batch_indices(len(self.pictures), self.per_step, step, self.seed)
        return self._seen(whole[self.group.index::self.processes], step)

    def _seen(self, indices, step: int) -> Tensor:
        block, stored = self.block, self.view.stored(self.pictures, indices)
        stored = augment(stored, step, self.seed, indices, block.flip, block.zoom, block.crop, self.view.smooth)
        seen = self.view.seen(to_device_soon(stored, self.device))
        return seen.contiguous(memory_format=torch.channels_last) if seen.is_cuda else seen  # tensor cores' order

    def step(self, step: int) -> dict[str, Tensor]:
        """One update of E, G, Z and, once it has started, of D."""
        images = self.batch(step)
        block = self.block
        lpips = self.lpips if block.perceptual_weight and step >= block.perceptual_start else None
        adversary = self.discriminator if step >= block.disc_start else None
        with self.accelerator.autocast():
            if step == 0:
                self._start_codebook()
            self.optimiser.zero_grad()
            terms, made = generator_backward(self.model, images, self.weights, lpips, adversary, self.group)
            if adversary is not None:
                self.disc_optimiser.zero_grad()
                terms |= discriminator_backward(adversary, made["real"], made["fake"], block.gan_loss)
                terms["disc_grad_norm"] = self._update(self.disc_optimiser, adversary)
        terms["grad_norm"] = self._update(self.optimiser, self.model)
        self._follow_codes(made, step)
        return terms

    def summary(self) -> dict[str, float]:
        """How the codebook was used since the last call, and the learning rate."""
        counts = self.accelerator.reduce(self.counts, "sum")
        statistics = usage_statistics(counts)
        self.counts = torch.zeros_like(self.counts)
        found = {"perplexity": statistics["perplexity"], "usage": statistics["usage"],
                 "lr": self.block.lr * self.share}
        if isinstance(self.model.quantizer, GumbelQuantizer):
            found["temperature"] = self.model.quantizer.temperature
        return found

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """How near held-out reconstructions are, and the use of the codebook on them; processes share the work."""
        self.model.eval()
        indices = spread(self.block.eval_images, len(self.held_out))
        own = indices[self.group.index::self.processes]  # none, where there are fewer than processes
        found = reconstruction_measures(self.model, self.held_out, own, self.block.batch_size,
                                        self.measure) if len(own) else None
        self.model.train()
        parts = [part for part in self.group.all_of(found) if part is not None]
        each = {name: torch.cat([measures[name] for measures, _ in parts]) for name in parts[0][0]}
        return mean_metrics(each, sum(counts for _, counts in parts))

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
        return vqgan_alarms(history, self.model.config.codebook_size, codebook_remedy(self.block),
                            self.block.gan_loss, self.block.discriminator)

    def state(self) -> dict:
        """All that the next steps depend on."""
        return {**{name: getattr(self, name).state_dict() for name in self._learned()},
                "counts": self.group.each(self.counts)}

    def load_state(self, state: dict | None) -> None:
        """Take up what `state` returned in the first process, which alone has it."""
        state = self.group.state_of_first(state)
        for name in self._learned():
            getattr(self, name).load_state_dict(state[name])
        self.counts = state["counts"][self.group.index].to(self.device)

    def _learned(self) -> tuple[str, ...]:
        """What a checkpoint holds; the frozen networks that judge are loaded anew."""
        return ("model", "optimiser", *(("discriminator", "disc_optimiser") if self.discriminator else ()))

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
        """Let the codebook start from encodings, without dropout, of the first process: equal ones in all."""
        quantizer = self.model.quantizer
        if self.block.codebook_init != "data":
            return
        if self.accelerator.is_main_process:
            images = self._seen(batch_indices(len(self.pictures), FIRST_PICTURES, 0, self.seed), step=0)
            self.model.eval()
            with torch.no_grad(), as_written():
                latents = torch.cat([self.model.latents(part) for part in images.split(self.per_step)])
            self.model.train()
            quantizer.start(latents, torch.Generator().manual_seed(step_seed(self.seed, 0, stream=1)))
        self.group.equalise(quantizer)

    def _follow_codes(self, made: dict[str, Tensor], step: int) -> None:
        """Count the codes of this step; move the ones that nobody has chosen for long."""
        quantizer = self.model.quantizer
        counts = torch.bincount(made["indices"].flatten(), minlength=len(self.counts)).float()
        self.counts += counts
        if isinstance(quantizer, EMAQuantizer):
            statistics = quantizer.statistics(made["z_hat"], made["indices"])
            quantizer.update(self.accelerator.reduce(statistics, "sum"))
        if not self.block.revive_after:
            return
        used = self.accelerator.reduce(counts, "sum") > 0
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, stream=2))
        moved = quantizer.revive(self.group.whole(made["z_hat"]), used, self.block.revive_after, generator)
        if self.processes > 1 and moved.any():  # the same ones in all processes
            self.group.equalise(quantizer)


def train_vqgan(stage: Stage, say: Callable[[str], None] = print) -> Progress:
    """Train `stage`'s VQGAN to the end, or go on where it stopped; leave it in models/vqgan-<target>."""
    params, block = stage.params, stage.block
    accelerator = make_accelerator(params.precision, params.threads)
    say = of_one(say, accelerator)
    block = lengthened(block, params.effort, say)
    for sentence in never_reached(block):
        say(sentence)
    pictures = Pictures.load(stage.path("prepared"), "train")
    held_out = Pictures.load(stage.path("prepared"), "validation")
    view = make_view(block.view, block.column, pictures, held_out, ignore_index=block.ignore_index,
                     key=f"vqgan.{stage.target}.column")
    for note in view.notes((pictures, held_out), f"vqgan.{stage.target}"):
        say(note)
    compiled = compiles(params.compile, accelerator.device, say)
    data = pictures.fingerprint_of(block.column)
    facts = facts_of(block, seed=params.seed, precision=params.precision, compile=params.compile, data=data,
                     view=view.record(), processes=accelerator.num_processes, code=code_of(*COMPUTING))
    folder = checkpoint_folder(stage.home, stage.name, facts, say)
    task = VQGANTask(block, params.seed, pictures, held_out, accelerator,
                     show=lambda picture, step: stage.run.image(picture, "reconstructions", step),
                     compiled=compiled)
    task.model.origin = {"pictures": data}
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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a value in place of the file's, such as vqgan.image.steps=20; may be repeated")
    arguments = parser.parse_args()
    with command(), Stage.open("vqgan", arguments.target, arguments.params,
                               settings(arguments.set)) as stage:
        train_vqgan(stage)


if __name__ == "__main__":
    main()
