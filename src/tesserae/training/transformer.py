"""Stage 2: train a latent transformer on the code maps.

    python -m tesserae.training.transformer --params params.yaml --target class
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from tesserae import figures
from tesserae.data.codes import CodeMaps
from tesserae.data.conditions import conditions_of, make_prefix, record
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import spread
from tesserae.data.views import view_of
from tesserae.errors import command, writing
from tesserae.evaluation.likelihood import Likelihood, evaluate_codes, likelihood, nats_to_bits, unigram_nll
from tesserae.models.origins import check_codes, origin_of
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN
from tesserae.params import TransformerParams, settings
from tesserae.sampling.autoregressive import SampleOptions, sample
from tesserae.sampling.orderings import to_sequences
from tesserae.stage import Stage
from tesserae.training.alarms import Alarm
from tesserae.training.checkpoints import replace_folder
from tesserae.training.identity import checkpoint_folder, code_of, facts_of
from tesserae.training.loop import (
    Progress,
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
from tesserae.training.optimisers import MuonAndAdam, set_share, with_full_rates
from tesserae.training.processes import Group, clipped, in_shares, memory_of, shared, take_up, weights_of

SHOWN = 16  # pictures in the grids by step
COMPUTING = ("data/codes.py", "data/conditions.py", "data/paired.py", "evaluation/likelihood.py",
             "models/transformer.py", "sampling/orderings.py", "training/loop.py", "training/muon.py",
             "training/optimisers.py", "training/processes.py",
             "training/transformer.py")  # code that decides what is learned
MEMORISED = 0.02  # held-out nats that may be lost after the best step before it is called overfitting


def fitting(block: TransformerParams, maps: CodeMaps, say: Callable[[str], None] = print) -> TransformerParams:
    """The block as these maps allow it: where the pictures have no classes, without that condition, which is said."""
    if "class" not in block.condition or maps.labels is not None:
        return block
    left = [name for name in block.condition if name != "class"]
    without = f"with {', '.join(left)} alone" if left else "without a condition"
    say(f"The pictures have no classes, so this transformer, whose condition names class, learns {without}; class "
        "folders would give one.")
    return block.model_copy(update={"condition": left})


def model_config(block: TransformerParams, data: PairedMaps) -> TransformerConfig:
    """The network that a block of params.yaml asks for, on these code maps; see `fitting`."""
    conditions = data.conditions(block.condition)
    height, width = data.window
    return TransformerConfig(
        codebook_size=data.maps.codebook_size, prefix_vocab=sum(c.vocab for c in conditions),
        prefix_length=sum(c.length for c in conditions), max_tokens=height * width, n_layer=block.n_layer,
        n_head=block.n_head, n_embd=block.n_embd, dropout=block.dropout, prefix_attention=block.prefix_attention,
        conditions=tuple(record(c) for c in conditions), window=data.window, order=block.order,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups: decay on the matrices of linear layers; none on embeddings, norms and biases."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimiser(model: LatentTransformer, block: TransformerParams) -> torch.optim.Optimizer | MuonAndAdam:
    """AdamW, or Muon for the matrices inside the blocks and Adam for all else."""
    betas = tuple(block.betas)
    if block.optimiser == "adamw":
        groups = parameter_groups(model, block.weight_decay)
        return with_full_rates(torch.optim.AdamW(groups, lr=block.lr, betas=betas, fused=True))
    hidden = [module.weight for each in model.blocks for module in each.modules() if isinstance(module, nn.Linear)]
    chosen = {id(weight) for weight in hidden}
    others = [{"params": [weight for weight in model.parameters() if id(weight) not in chosen], "lr": block.lr}]
    return with_full_rates(MuonAndAdam(hidden, others, block.muon_lr, betas, block.weight_decay))


def replace_some(indices: Tensor, keep: float, codebook_size: int, generator: torch.Generator, process: int = 0,
                 processes: int = 1) -> Tensor:
    """`pkeep`: each code stays with probability `keep`, else becomes any of the codebook's; a new tensor.

    indices (B,T): a process's part of a batch of B * processes, whose codes the same random numbers decide on however
    many processes there are.
    """
    shape, own = (len(indices) * processes, *indices.shape[1:]), slice(process * len(indices), None)
    stays = torch.rand(shape, generator=generator)[own][:len(indices)] < keep
    others = torch.randint(codebook_size, shape, generator=generator)[own][:len(indices)]
    return torch.where(stays.to(indices.device), indices, others.to(indices.device))


def compile_blocks(model: LatentTransformer) -> None:
    """Let torch.compile make kernels of a block at its first use, which serve for all of the same shapes."""
    for block in model.blocks:
        block.compile(dynamic=False)


class TransformerTask:
    """One latent transformer and its optimiser, as the loop sees it.

    vqgans: by name, those of the codes that it models and of its conditions. `show(picture, step)` receives the grid
    of samples below their conditions, drawn with the same random numbers each time. compiled: whether torch.compile
    makes kernels of the blocks.
    """

    score = "nll"
    unit = "tokens"
    spoken = ("nll", "accuracy")
    losses = ("nll",)

    def __init__(self, block: TransformerParams, seed: int, data: PairedMaps, held_out: PairedMaps,
                 vqgans: Mapping[str, VQGAN], accelerator: Accelerator, show: Callable,
                 compiled: bool = False) -> None:
        torch.manual_seed(seed)
        self.block, self.seed, self.accelerator, self.show = block, seed, accelerator, show
        self.data, self.held_out = data, held_out
        self.device = accelerator.device
        self.vqgans = {name: vqgan.to(self.device).eval() for name, vqgan in vqgans.items()}
        self.model = LatentTransformer(model_config(block, data)).to(self.device).train()
        self.conditions = conditions_of(self.model.config.conditions)
        if compiled:
            compile_blocks(self.model)
        self.network = shared(self.model, self.model.blocks, block.strategy, accelerator)
        self.optimiser = make_optimiser(self.model, block)
        self.group, self.processes = Group(accelerator), accelerator.num_processes
        self.per_step = block.batch_size * self.processes * data.window[0] * data.window[1]

    def set_rate(self, share: float, done: float = 0.0) -> None:
        """The learning rates as a share of the full ones."""
        self.share = share
        set_share(self.optimiser, share)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prefix (B,P), input codes (B,T) and their targets (B,T): a function of (seed, step, process)."""
        process = self.accelerator.process_index
        chosen = self.data.batch(step, self.block.batch_size, self.seed, self.block.flip, process, self.processes)
        targets = to_sequences(self.data.codes(chosen), self.block.order)
        generator = torch.Generator().manual_seed(step_seed(self.seed, step, stream=16))
        inputs = replace_some(targets, self.block.pkeep, self.data.maps.codebook_size, generator, process,
                              self.processes)
        prefix = make_prefix(self.conditions, self.data.conditioning(chosen))
        return tuple(to_device_soon(part, self.device) for part in (prefix, inputs, targets))

    def step(self, step: int) -> dict[str, Tensor]:
        """One update: the negative log-likelihood of the targets, given partly replaced inputs."""
        prefix, inputs, targets = self.batch(step)
        self.optimiser.zero_grad()
        with self.accelerator.autocast():
            logits = self.network(prefix, inputs)  # (B,T,K)
        nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        nll.backward()  # the gradients' mean over processes
        norm = clipped(list(self.model.parameters()), self.block.grad_clip)
        self.optimiser.step()
        accuracy = (logits.detach().argmax(-1) == targets).float().mean()
        return {"nll": nll.detach(), "accuracy": accuracy, "grad_norm": norm}

    def summary(self) -> dict[str, float]:
        """The learning rate."""
        return {"lr": self.block.lr * self.share}

    def evaluate(self, step: int) -> dict[str, float]:
        """Likelihood of held-out codes under their own condition and under another picture's, and accuracy.

        Processes share the work.
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
        rows = [self._drawn(self.block.vqgan, codes)]
        for condition in self.conditions:
            if condition.name in conditioning.maps:
                codes = condition.tokens(conditioning).unflatten(1, condition.window)
                rows.insert(0, self._drawn(condition.name, codes.to(self.device)))
        self.show(figures.grid_image(torch.cat(rows).cpu(), columns=SHOWN), step)

    def _drawn(self, name: str, codes: Tensor) -> Tensor:
        vqgan = self.vqgans[name]
        return view_of(vqgan.config).drawn(vqgan.decode(codes))

    def alarms(self, history: list[dict]) -> list[Alarm]:
        """None: what can go wrong here, learning by heart, `verdict` says at the end."""
        return []

    def state(self) -> dict:
        """All that the next steps depend on."""
        return {"model": weights_of(self.model), "optimiser": memory_of(self.model, self.optimiser)}

    def load_state(self, state: dict | None) -> None:
        """Take up what `state` returned in the first process, which alone has it."""
        take_up(self.model, self.optimiser, state, self.group)

    def export(self, folder: Path | None) -> None:
        """The model alone, for `LatentTransformer.from_pretrained`."""
        model = self._whole()
        if folder is not None:
            model.save_pretrained(folder)

    def _whole(self) -> LatentTransformer | None:
        """The network in one piece, on the first process alone: a copy, where processes hold shares of it."""
        if not in_shares(self.model):
            return self.model if self.accelerator.is_main_process else None
        weights = weights_of(self.model)
        if not self.accelerator.is_main_process:
            return None
        model = LatentTransformer(self.model.config)
        model.load_state_dict(weights)
        model.origin = self.model.origin
        return model.to(self.device)


def verdict(progress: Progress, unigram: float) -> list[str]:
    """What the held-out likelihood says, in sentences."""
    best, last = progress.best, progress.latest
    said = [f"The best model, of step {best['step']}, needs {best['nll']:.3f} nats "
            f"({nats_to_bits(best['nll']):.2f} bits) for a held-out code; how often codes occur alone "
            f"would need {unigram:.3f}."]
    if last["nll"] - best["nll"] > MEMORISED:
        said.append(f"Overfitting: by step {last['step']} held-out codes need {last['nll']:.3f} nats again, "
                    "so the later models remember pictures rather than learn how codes compose; the best one "
                    "is kept. More pictures, more dropout or fewer steps would help.")
    else:
        said.append("No overfitting: what held-out codes need fell, or stayed, to the end.")
    if "gain_bits" in best:
        said.append(f"Its own condition, in place of another picture's, saves {best['gain_bits']:.2f} bits a code.")
    if "class_gain" in best:
        said.append(f"The right class, in place of a wrong one, saves {best['class_gain']:.3f} nats a code.")
    return said


def train_transformer(stage: Stage, say: Callable[[str], None] = print) -> Progress:
    """Train `stage`'s transformer to the end, or go on where it stopped.

    models/transformer-<target> then holds the model that predicts held-out codes best, `last/`, and
    `samples/`: a grid for each step that was sampled at.
    """
    params, block = stage.params, stage.block
    accelerator = make_accelerator(params.precision, params.threads)
    say = of_one(say, accelerator)
    block = lengthened(block, params.effort, say)
    for sentence in never_reached(block):
        say(sentence)
    block = fitting(block, CodeMaps.load(stage.path("codes", block.vqgan), "train"), say)
    data, held_out = (PairedMaps.load(stage.path("codes"), split, block) for split in ("train", "validation"))
    vqgans = {name: VQGAN.from_pretrained(stage.path("models", f"vqgan-{name}"))
              for name in (block.vqgan, *block.codes_read)}
    for each in (data, held_out):
        check_codes({block.vqgan: each.maps, **each.others}, vqgans)
    compiled = compiles(params.compile, accelerator.device, say)
    origin = origin_of(data, block.vqgan)
    facts = facts_of(block, seed=params.seed, precision=params.precision, compile=params.compile,
                     data=[data.fingerprint, held_out.fingerprint], vqgans=origin["vqgans"],
                     processes=accelerator.num_processes, code=code_of(*COMPUTING))
    folder = checkpoint_folder(stage.home, stage.name, facts, say)

    def show(picture: Image.Image, step: int) -> None:
        stage.run.image(picture, "samples", step)
        path = folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            picture.save(path)

    task = TransformerTask(block, params.seed, data, held_out, vqgans, accelerator, show, compiled)
    task.model.origin = origin
    progress = train(task, block, params.seed, folder, stage.reports, stage.run.metrics, accelerator, say)
    if accelerator.is_main_process:
        models = stage.path("models", stage.name)
        deliver(folder, models)
        replace_folder(folder / "samples", models / "samples")
        unigram = unigram_nll(data.maps.indices, held_out.maps.indices[:, 0], data.maps.codebook_size)
        stage.metrics(_final_metrics(task, progress, models) | {"unigram_nll": unigram})
        for sentence in verdict(progress, unigram):
            say(sentence)
    return progress


def _final_metrics(task: TransformerTask, progress: Progress, models: Path) -> dict[str, float]:
    """Measures of the best model, also on as many training maps: the gap says what was learned by heart."""
    best = LatentTransformer.from_pretrained(models).to(task.device)
    count = min(task.block.eval_images, len(task.held_out))
    with task.accelerator.autocast():
        seen = evaluate_codes(best, task.data, count, task.block.batch_size)
    held_out = {f"val_{name}": value for name, value in progress.best.items() if name != "step"}
    return {**held_out, "train_nll": seen["nll"], "train_accuracy": seen["accuracy"],
            "best_step": progress.best["step"], "last_nll": progress.latest["nll"], "steps": progress.step,
            "parameters": sum(p.numel() for p in best.parameters())}


def main() -> None:
    """Train without a notebook; see the module's first lines."""
    parser = argparse.ArgumentParser(description="Train a latent transformer.")
    parser.add_argument("--params", default="params.yaml", help="parameters file (default: params.yaml)")
    parser.add_argument("--target", default="class", help="the block under transformer: (default: class)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a value in place of the file's, such as transformer.class.steps=20; may be repeated")
    arguments = parser.parse_args()
    with command(), Stage.open("transformer", arguments.target, arguments.params,
                               settings(arguments.set)) as stage:
        train_transformer(stage)


if __name__ == "__main__":
    main()
