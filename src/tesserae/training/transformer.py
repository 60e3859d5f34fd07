"""Stage 2: train a latent transformer on the code maps.

    python -m tesserae.training.transformer --params params.yaml --target class
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from tesserae import figures
from tesserae.accel.compilation import compiles
from tesserae.data.codes import CodeMaps
from tesserae.data.conditions import conditions_of, make_prefix, record
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import spread
from tesserae.data.views import view_of
from tesserae.devices import Log, to_device
from tesserae.errors import writing
from tesserae.evaluation.alarms import Alarm
from tesserae.evaluation.likelihood import Likelihood, evaluate_codes, likelihood, likelihood_verdict, unigram_nll
from tesserae.files import replace_folder
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_codes, origin_of
from tesserae.params import TransformerParams
from tesserae.sampling.autoregressive import SampleOptions, sample
from tesserae.sampling.orderings import to_sequences
from tesserae.stage import Stage, stage_of_command
from tesserae.training import processes
from tesserae.training.loop import Progress, Trainer, begin, deliver, final_metrics, folder_of, step_seed
from tesserae.training.optimisers import make_transformer_optimiser, scale_rates
from tesserae.training_params import from_block

SHOWN = 16  # pictures in the grids by step


def fitting(block: TransformerParams, maps: CodeMaps, log: Log = print) -> TransformerParams:
    """The block as these maps allow it: without the condition `class`, and a message, where pictures have none."""
    if "class" not in block.condition or maps.labels is not None:
        return block
    left = [name for name in block.condition if name != "class"]
    without = f"with {', '.join(left)} alone" if left else "without a condition"
    log(f"The pictures have no classes, so this transformer, whose condition names class, learns {without}; class "
        "folders would give one.")
    return block.model_copy(update={"condition": left})


def model_config(block: TransformerParams, data: PairedMaps) -> TransformerConfig:
    """The network that a block of params.yaml asks for, on these code maps; see `fitting`."""
    conditions = data.conditions(block.condition)
    height, width = data.window
    return from_block(
        TransformerConfig, block, codebook_size=data.maps.codebook_size, max_tokens=height * width,
        prefix_vocab=sum(condition.vocab for condition in conditions),
        prefix_length=sum(condition.length for condition in conditions),
        conditions=tuple(record(condition) for condition in conditions), window=data.window)


def replace_some(indices: Tensor, keep: float, codebook_size: int, generator: torch.Generator, index: int = 0,
                 count: int = 1) -> Tensor:
    """`pkeep`: each code stays with probability `keep`, else becomes any of the codebook's; a new tensor.

    indices (B,T): the part of process `index` of `count` in a batch of B * count maps, whose codes the same random
    numbers decide on however many processes there are.
    """
    shape = len(indices) * count, *indices.shape[1:]
    stays = torch.rand(shape, generator=generator).chunk(count)[index] < keep
    others = torch.randint(codebook_size, shape, generator=generator).chunk(count)[index]
    return torch.where(stays.to(indices.device), indices, others.to(indices.device))


class TransformerTask:
    """One latent transformer and its optimiser, as the loop sees it.

    vqgans: by name, those of the codes that it models and of its conditions. `show(picture, step)` receives the grid
    of samples below their conditions, sampled with the same random numbers each time. compiled: whether torch.compile
    makes kernels of the blocks.
    """

    score = "nll"
    unit = "tokens"
    logged = ("nll", "accuracy")
    losses = ("nll",)

    def __init__(self, block: TransformerParams, seed: int, data: PairedMaps, held_out: PairedMaps,
                 vqgans: Mapping[str, VQGAN], accelerator: Accelerator, show: Callable,
                 compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.block, self.seed, self.accelerator, self.show = block, seed, accelerator, show
        self.data, self.held_out = data, held_out
        self.device = accelerator.device
        self.group = processes.Group(accelerator)
        self.vqgans = {name: vqgan.to(self.device).eval() for name, vqgan in vqgans.items()}
        self.model = LatentTransformer(model_config(block, data)).to(self.device).train()
        self.conditions = conditions_of(self.model.config.conditions)
        for layer in self.model.blocks if compiled else ():
            layer.compile(dynamic=False)  # the kernels of one serve for all of the same shapes
        self.network = processes.distributed(self.model, self.model.blocks, block.strategy, accelerator)
        self.optimiser = make_transformer_optimiser(self.model, block)
        self.per_step = block.batch_size * self.group.count * data.window[0] * data.window[1]

    def set_rate(self, scale: float, done: float = 0.0) -> None:
        self.lr = self.block.lr * scale
        scale_rates(self.optimiser, scale)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix (B,P), input codes (B,T) and their targets (B,T): a function of (seed, step, process)."""
        own = self.group.index, self.group.count
        chosen = self.data.batch(step, self.block.batch_size, self.seed, self.block.flip, *own)
        targets = to_sequences(self.data.codes(chosen), self.block.order)
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, stream=16))
        inputs = replace_some(targets, self.block.pkeep, self.data.maps.codebook_size, generator, *own)
        prefix = make_prefix(self.conditions, self.data.conditioning(chosen))
        return tuple(to_device(part, self.device) for part in (prefix, inputs, targets))

    def step(self, step: int) -> dict[str, Tensor]:
        """One update: the negative log-likelihood of the targets, given partly replaced inputs."""
        prefix, inputs, targets = self.batch(step)
        self.optimiser.zero_grad()
        with self.accelerator.autocast():
            logits = self.network(prefix, inputs)  # (B,T,K)
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        nll.backward()  # the gradients' mean over processes
        norm = processes.clipped(list(self.model.parameters()), self.block.grad_clip)
        self.optimiser.step()
        accuracy = (logits.detach().argmax(-1) == targets).float().mean()
        return {"nll": nll.detach(), "accuracy": accuracy, "grad_norm": norm}

    def summary(self) -> dict[str, float]:
        return {"lr": self.lr}

    def evaluate(self, step: int) -> dict[str, float]:
        """Likelihood of held-out codes under their own condition and under another picture's, and accuracy.

        Each process evaluates a part.
        """
        with self.accelerator.autocast():
            return evaluate_codes(self.model, self.held_out, self.block.eval_images, self.block.batch_size,
                                  self._likelihood)

    def _likelihood(self, model: LatentTransformer, prefix: Tensor, indices: Tensor, batch_size: int) -> Likelihood:
        """`evaluation.likelihood.likelihood`, of which each process finds its part."""
        own = self.group.part(len(indices))
        found = likelihood(model, prefix[own], indices[own], batch_size)
        return Likelihood(*(self.group.whole(part, len(indices)) for part in (found.nll, found.hit)))

    @torch.no_grad()
    def sample(self, step: int) -> None:
        """Show a window of held-out pictures' conditions, and a sample of each."""
        model = self._whole()
        if model is None:
            return
        chosen = self.held_out.whole(torch.tensor(spread(SHOWN, len(self.held_out))))
        conditioning = self.held_out.conditioning(chosen)
        prefix = make_prefix(self.conditions, conditioning).to(self.device)
        codes = sample(model, prefix, self.data.window, SampleOptions(seed=self.seed))
        rows = [self._decode(self.block.vqgan, codes)]
        for condition in self.conditions:
            if condition.name in conditioning.maps:
                codes = condition.tokens(conditioning).unflatten(1, condition.window)
                rows.insert(0, self._decode(condition.name, codes.to(self.device)))
        self.show(figures.grid_image(torch.cat(rows).cpu(), columns=SHOWN), step)

    def _decode(self, name: str, codes: Tensor) -> Tensor:
        vqgan = self.vqgans[name]
        return view_of(vqgan.config).rendered(vqgan.decode(codes))

    def alarms(self, history: list[dict]) -> list[Alarm]:
        return []  # `likelihood_verdict` reports overfitting at the end

    def state(self) -> dict:
        return {"model": processes.model_state(self.model),
                "optimiser": processes.optimizer_state(self.model, self.optimiser)}

    def load_state(self, state: dict | None) -> None:
        processes.load_state(self.model, self.optimiser, state, self.group)

    def export(self, folder: Path | None) -> None:
        model = self._whole()
        if folder is not None:
            model.save_pretrained(folder)

    def _whole(self) -> LatentTransformer | None:
        """The network in one piece, in the first process alone: a copy, where it is sharded."""
        if not processes.is_sharded(self.model):
            return self.model if self.accelerator.is_main_process else None
        weights = processes.model_state(self.model)
        if not self.accelerator.is_main_process:
            return None
        model = LatentTransformer(self.model.config)
        model.load_state_dict(weights)
        model.origin = self.model.origin
        return model.to(self.device)


def train_transformer(stage: Stage, log: Log = print) -> Progress:
    """Train `stage`'s transformer to the end, or go on where it stopped.

    models/transformer-<target> then holds the model that predicts held-out codes best, `last/`, and
    `samples/`: a grid for each step that was sampled at.
    """
    accelerator, block, log = begin(stage, log)
    block = fitting(block, CodeMaps.load(stage.path("codes", block.vqgan), "train"), log)
    data, held_out = (PairedMaps.load(stage.path("codes"), split, block) for split in ("train", "validation"))
    vqgans = {name: VQGAN.from_pretrained(stage.path("models", f"vqgan-{name}"))
              for name in (block.vqgan, *block.codes_read)}
    for each in (data, held_out):
        check_codes({block.vqgan: each.maps, **each.others}, vqgans)
    compiled = compiles(stage.params.compile, accelerator.device, log)
    origin = origin_of(data, block.vqgan)
    folder = folder_of(stage, block, accelerator, log, "tesserae.training.transformer",
                       data=[data.fingerprint, held_out.fingerprint], vqgans=origin["vqgans"])

    def show(picture: Image.Image, step: int) -> None:
        stage.run.image(picture, "samples", step)
        path = folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            picture.save(path)

    task = TransformerTask(block, stage.params.seed, data, held_out, vqgans, accelerator, show, compiled)
    task.model.origin = origin
    progress = Trainer(task, block, stage.params.seed, folder, stage.reports, accelerator, stage.run.metrics,
                       log).run()
    if accelerator.is_main_process:
        models = stage.path("models", stage.name)
        deliver(folder, models)
        replace_folder(folder / "samples", models / "samples")
        unigram = unigram_nll(data.maps.indices, held_out.maps.indices[:, 0], data.maps.codebook_size)
        stage.metrics({**final_metrics(progress, task.score), **_training_metrics(task, models),
                       "unigram_nll": unigram})
        for sentence in likelihood_verdict(progress.best, progress.latest, unigram):
            log(sentence)
    return progress


def _training_metrics(task: TransformerTask, models: Path) -> dict[str, float]:
    """Measures of the best model on as many training maps as held-out ones: the gap shows overfitting."""
    best = LatentTransformer.from_pretrained(models).to(task.device)
    count = min(task.block.eval_images, len(task.held_out))
    with task.accelerator.autocast():
        found = evaluate_codes(best, task.data, count, task.block.batch_size)
    return {"train_nll": found["nll"], "train_accuracy": found["accuracy"],
            "parameters": sum(p.numel() for p in best.parameters())}


def main() -> None:
    """Train without a notebook; see the module's first lines."""
    with stage_of_command("transformer", "class", "Train a latent transformer.") as stage:
        train_transformer(stage)


if __name__ == "__main__":
    main()
