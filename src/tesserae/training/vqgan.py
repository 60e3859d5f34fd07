"""Stage 1: train a VQGAN on the prepared pictures.

    python -m tesserae.training.vqgan --params params.yaml --target image
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tesserae import figures
from tesserae.accel.compilation import compiles, uncompiled
from tesserae.data.batches import augment, batch_indices
from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import View, make_view
from tesserae.devices import Log, to_device
from tesserae.evaluation.alarms import Alarm, codebook_remedy, vqgan_alarms
from tesserae.evaluation.codebook import usage_statistics
from tesserae.evaluation.images import mean_metrics, reconstruction_measures
from tesserae.models.discriminator import FeatureDiscriminator, PatchDiscriminator
from tesserae.models.perceptual import LPIPS
from tesserae.models.quantizers import EMAQuantizer, GumbelQuantizer, LibraryQuantizer
from tesserae.models.vqgan import VQGAN, VQGANConfig, evaluating
from tesserae.params import VQGANParams
from tesserae.stage import Stage, stage_of_command
from tesserae.training.loop import Progress, Trainer, begin, deliver, final_metrics, folder_of, step_seed
from tesserae.training.objective import Weights, discriminator_backward, generator_backward
from tesserae.training.optimisers import make_vqgan_optimiser, scale_rates, with_initial_rates
from tesserae.training.processes import Group, average_gradients, clipped, with_shared_statistics
from tesserae.training_params import from_block

FIRST_PICTURES = 256  # pictures whose encodings the codebook starts from
SHOWN = 8  # pictures in the grids by step


def model_config(block: VQGANParams, view: View) -> VQGANConfig:
    """The network that a block of params.yaml asks for, for this view of the pictures."""
    return from_block(VQGANConfig, block, **view.record())


def annealed(start: float, end: float, done: float) -> float:
    """From `start` to `end` along half a cosine, at `done` in [0,1] of the way: the authors' schedule for Gumbel."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def compile_networks(model: VQGAN) -> None:
    """Let torch.compile make kernels of E, and of G but for its last layer, at their first use.

    lambda takes gradients with respect to the last layer, which compiled kernels would not keep apart.
    """
    model.encoder.compile(dynamic=False)
    model.decoder.features = torch.compile(model.decoder.features, dynamic=False)


class VQGANTask:
    """One VQGAN with its discriminator and both optimisers, as the loop sees it.

    `show(picture, step)` receives the grid of held-out pictures above their reconstructions. compiled: whether
    torch.compile makes kernels of encoder and decoder.
    """

    unit = "images"
    logged = ("rec", "lambda", "perplexity", "usage")
    losses = ("rec", "codebook", "commitment")

    def __init__(self, block: VQGANParams, seed: int, pictures: Pictures, held_out: Pictures,
                 accelerator: Accelerator, show: Callable, compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.block, self.seed, self.accelerator, self.show = block, seed, accelerator, show
        self.pictures, self.held_out = pictures, held_out
        self.device = device = accelerator.device
        self.group = Group(accelerator)
        self.per_step = block.batch_size * self.group.count
        self.view = make_view(block.view, block.column, pictures, held_out, ignore_index=block.ignore_index)
        self.score = self.view.judged
        self.model = VQGAN(model_config(block, self.view)).to(device)
        self.weights = from_block(Weights, block)
        if isinstance(self.model.quantizer, LibraryQuantizer) and self.group.count > 1:
            self.model.quantizer.mean = self.group.mean_with_gradient
        precision = torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32
        judges = block.perceptual_weight or block.judges_features
        self.lpips = LPIPS.load("vgg", precision).to(device) if judges else None
        self.measure = LPIPS.load("vgg").to(device) if self.view.perceptual else None
        self.optimiser = make_vqgan_optimiser(self.model, block)
        self.discriminator, self.disc_optimiser = self._make_discriminator(), None
        if self.discriminator is not None:
            self.disc_optimiser = with_initial_rates(torch.optim.Adam(
                self.discriminator.parameters(), lr=block.disc_lr, betas=tuple(block.disc_betas), fused=True))
        self.counts = torch.zeros(self.model.config.codebook_size, device=device)  # codes chosen since the last log
        if compiled:
            compile_networks(self.model)

    def _make_discriminator(self) -> nn.Module | None:
        """D as params.yaml asks for; its first weights follow from the seed, whatever was made before."""
        block = self.block
        torch.manual_seed(step_seed(self.seed, 0, stream=3))
        if block.gan_loss == "none":
            return None
        if block.judges_features:
            return FeatureDiscriminator(self.lpips.backbone, block.disc_channels, block.disc_layers).to(self.device)
        made = PatchDiscriminator(self.view.channels, block.disc_channels, block.disc_layers)
        return with_shared_statistics(made.to(self.device), self.group)

    def set_rate(self, scale: float, done: float = 0.0) -> None:
        self.lr = self.block.lr * scale
        for optimiser in filter(None, (self.optimiser, self.disc_optimiser)):
            scale_rates(optimiser, scale)
        if isinstance(self.model.quantizer, GumbelQuantizer):
            first, last = self.block.temperature_start, self.block.temperature_end
            self.model.quantizer.temperature = annealed(first, last, done)

    def batch(self, step: int) -> Tensor:
        """The images of a step, (B,C,H,W) float32: a function of (seed, step, process).

        Processes take the pictures of the whole batch in turn, so that each has its part of those LPIPS judges.
        """
        whole = batch_indices(len(self.pictures), self.per_step, step, self.seed)
        return self._images(whole[self.group.index::self.group.count], step)

    def _images(self, indices, step: int) -> Tensor:
        block, raw = self.block, self.view.raw(self.pictures, indices)
        raw = augment(raw, step, self.seed, indices, block.flip, block.zoom, block.crop, self.view.smooth)
        images = self.view.network_input(to_device(raw, self.device))
        return images.contiguous(memory_format=torch.channels_last) if images.is_cuda else images

    def step(self, step: int) -> dict[str, Tensor]:
        """One update of E, G, Z and, once it has started, of D."""
        images, block = self.batch(step), self.block
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

    def _update(self, optimiser: torch.optim.Optimizer, network: nn.Module) -> Tensor:
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
            images = self._images(batch_indices(len(self.pictures), FIRST_PICTURES, 0, self.seed), step=0)
            with torch.no_grad(), uncompiled(), evaluating(self.model):
                latents = torch.cat([self.model.latents(part) for part in images.split(self.per_step)])
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
        if moved.any():  # the same ones in all processes
            self.group.equalise(quantizer)

    def summary(self) -> dict[str, float]:
        """How the codebook was used since the last call, and the learning rate."""
        statistics = usage_statistics(self.accelerator.reduce(self.counts, "sum"))
        self.counts = torch.zeros_like(self.counts)
        found = {"perplexity": statistics["perplexity"], "usage": statistics["usage"], "lr": self.lr}
        if isinstance(self.model.quantizer, GumbelQuantizer):
            found["temperature"] = self.model.quantizer.temperature
        return found

    @torch.no_grad()
    def evaluate(self, step: int) -> dict[str, float]:
        """How near held-out reconstructions are, and the use of the codebook on them; each process takes a part."""
        indices = spread(self.block.eval_images, len(self.held_out))
        own = indices[self.group.index::self.group.count]
        found = None
        if len(own):  # there may be fewer pictures than processes
            with evaluating(self.model):
                found = reconstruction_measures(self.model, self.held_out, own, self.block.batch_size, self.measure)
        parts = [part for part in self.group.all_of(found) if part is not None]
        each = {name: torch.cat([measures[name] for measures, _ in parts]) for name in parts[0][0]}
        return mean_metrics(each, sum(counts for _, counts in parts))

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """Show held-out pictures above their reconstructions."""
        if not self.accelerator.is_main_process:
            return
        raw = self.view.raw(self.held_out, spread(SHOWN, len(self.held_out)))
        images = self.view.network_input(raw.to(self.device))
        both = torch.cat([images, self.model.reconstruct(images)])
        self.show(figures.grid_image(self.view.rendered(both).cpu(), columns=len(images)), step)

    def alarms(self, history: list[dict]) -> list[Alarm]:
        return vqgan_alarms(history, self.model.config.codebook_size, codebook_remedy(self.block),
                            self.block.gan_loss, self.block.discriminator)

    def state(self) -> dict:
        return {name: part.state_dict() for name, part in self._learned().items()} | {
            "counts": self.group.each(self.counts)}

    def load_state(self, state: dict | None) -> None:
        state = self.group.of_first(state)
        for name, part in self._learned().items():
            part.load_state_dict(state[name])
        self.counts = state["counts"][self.group.index].to(self.device)

    def _learned(self) -> dict:
        """What a checkpoint holds; the frozen networks that judge are loaded anew."""
        learned = {"model": self.model, "optimiser": self.optimiser}
        if self.discriminator is not None:
            learned |= {"discriminator": self.discriminator, "disc_optimiser": self.disc_optimiser}
        return learned

    def export(self, folder: Path | None) -> None:
        if folder is not None:
            self.model.save_pretrained(folder)


def train_vqgan(stage: Stage, log: Log = print) -> Progress:
    """Train `stage`'s VQGAN to the end, or go on where it stopped; leave it in models/vqgan-<target>."""
    accelerator, block, log = begin(stage, log)
    pictures, held_out = (Pictures.load(stage.path("prepared"), split) for split in ("train", "validation"))
    view = make_view(block.view, block.column, pictures, held_out, ignore_index=block.ignore_index,
                     key=f"vqgan.{stage.target}.column")
    for note in view.notes((pictures, held_out), f"vqgan.{stage.target}"):
        log(note)
    compiled = compiles(stage.params.compile, accelerator.device, log)
    data = pictures.fingerprint_of(block.column)
    folder = folder_of(stage, block, accelerator, log, "tesserae.training.vqgan", data=data, view=view.record())
    task = VQGANTask(block, stage.params.seed, pictures, held_out, accelerator,
                     show=lambda picture, step: stage.run.image(picture, "reconstructions", step), compiled=compiled)
    task.model.origin = {"pictures": data}
    progress = Trainer(task, block, stage.params.seed, folder, stage.reports, accelerator, stage.run.metrics,
                       log).run()
    if accelerator.is_main_process:
        deliver(folder, stage.path("models", stage.name))
        alarms = task.alarms(progress.history)
        for alarm in alarms:
            log(f"ALARM, {alarm}")
        stage.metrics(final_metrics(progress, task.score) | {"alarms": len(alarms)})
    return progress


def main() -> None:
    """Train without a notebook; see the module's first lines."""
    with stage_of_command("vqgan", "image", "Train a VQGAN.") as stage:
        train_vqgan(stage)


if __name__ == "__main__":
    main()
