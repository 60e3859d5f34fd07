"""The training loop that both trainers share: rates, logs, evaluations, checkpoints, resuming.

Everything random in a step follows from (seed, step): the batch, its augmentation, dropout, revived codes. So a
checkpoint needs no generator states, and a run that was killed ends with the same bits as one that was not, where it
goes on on the same machine: on another one `precision: auto` may find another precision, which is logged, or sums may
be rounded in another order.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from tesserae.accel.compilation import uncompiled
from tesserae.devices import Log, make_accelerator, of_first
from tesserae.errors import DiskFullError, TesseraeError
from tesserae.evaluation.alarms import Alarm, check_exploded
from tesserae.files import replace_folder, replacing_folder, write_table
from tesserae.fingerprints import checkpoint_folder, code_of, fingerprint_inputs
from tesserae.locks import held
from tesserae.stage import Stage
from tesserae.training.checkpoints import load_checkpoint, save_checkpoint, steps_in
from tesserae.training.processes import Group
from tesserae.training_params import lengthened, never_reached

PRECISIONS = {"no": "fp32", "bf16": "bf16"}  # Accelerate's names, and params.yaml's
LINE_SECONDS = 5.0  # between two lines in the terminal


class Task(Protocol):
    """What is trained. Terms and measures are scalars by name; of the measure named `score` less is better.

    losses: terms that must not explode; the first of them is what they are compared with. logged: terms shown in the
    terminal. unit: what `per_step` counts, images or tokens. `set_rate` scales all learning rates; done: how much of
    the training is over, in [0,1]. `summary`: what is logged beside the terms. `sample` shows pictures. `state`: all
    that the next steps depend on. Every process calls every method. Of `evaluate`'s and `state`'s results the first
    process's count; `load_state` gets a state there alone, and `export` a folder, for the model alone.
    """

    score: str
    losses: tuple[str, ...]
    logged: tuple[str, ...]
    unit: str
    per_step: int

    def set_rate(self, scale: float, done: float) -> None: ...
    def step(self, step: int) -> dict[str, Tensor]: ...
    def summary(self) -> dict[str, float]: ...
    def evaluate(self, step: int) -> dict[str, float]: ...
    def sample(self, step: int) -> None: ...
    def alarms(self, history: list[dict]) -> list[Alarm]: ...
    def state(self) -> dict: ...
    def load_state(self, state: dict | None) -> None: ...
    def export(self, folder: Path | None) -> None: ...


@dataclass
class Progress:
    """What the loop itself remembers; part of every checkpoint.

    sums: of each term since the last log, its sum and the number of steps that had it; in a checkpoint those of every
    process, by its index.
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    timings: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    latest: dict = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


def begin(stage: Stage, log: Log) -> tuple[Accelerator, Any, Log]:
    """What a stage is trained with: its accelerator, its block at the effort requested, and the first one's log."""
    accelerator = make_accelerator(stage.params.precision, stage.params.threads, log)
    log = of_first(log, accelerator)
    block = lengthened(stage.block, stage.params.effort, log)
    for sentence in never_reached(block):
        log(sentence)
    return accelerator, block, log


def folder_of(stage: Stage, block: Any, accelerator: Accelerator, log: Log, module: str, **inputs: Any) -> Path:
    """Where a stage's training keeps its checkpoints.

    What decides its result: the block and other parameters, the code of `module` and of all that it imports, inputs.
    """
    params = stage.params
    inputs = fingerprint_inputs(block, seed=params.seed, precision=params.precision, compile=params.compile,
                                processes=accelerator.num_processes, code=code_of(module), **inputs)
    return checkpoint_folder(stage.home, stage.name, inputs, log)


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """One number for everything random in a step; other streams for other uses of the same step."""
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0] >> 1)


def rate_scale(done: float, step: int, warmup: int, cooldown: float) -> float:
    """The learning rate relative to the full one, in [0,1]: linear warm-up over `warmup` steps, 1, linear to zero.

    `done` in [0,1] is how much of the training is over; the rate falls in its last `cooldown` part.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = min(1.0, (1.0 - done) / cooldown) if cooldown else 1.0
    return rise * max(fall, 0.0)


def _held(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the folder of checkpoints, see `locks.held`; of processes that train together the first one does."""
    return held(folder, "a notebook" if "ipykernel" in sys.modules else "a training")


def deliver(folder: Path, models: Path) -> None:
    """Put the best model at `models` and the last one at `models`/last, both whole."""
    with _held(folder):
        replace_folder(folder / "best", models)
        replace_folder(folder / "last", models / "last")


def final_metrics(progress: Progress, score: str) -> dict[str, float]:
    """A training's metrics: held-out measures of the best model, its step, the last model's score, all steps."""
    best = {f"val_{name}": value for name, value in progress.best.items() if name != "step"}
    return best | {"best_step": progress.best["step"], f"last_{score}": progress.latest[score],
                   "steps": progress.step}


@dataclass
class Trainer:
    """Trains `task` to the end of `block`, its part of params.yaml.

    folder: where this task with this fingerprint alone keeps its checkpoints; it ends with `best` and `last` as
    `task.export` writes them. reports: where history.csv and timings.csv go. `record(values, step)` receives all
    numbers that are logged, `log` every message.
    """

    task: Task
    block: Any
    seed: int
    folder: Path
    reports: Path
    accelerator: Accelerator
    record: Callable[[dict, int], None]
    log: Log = print

    def run(self) -> Progress:
        """Train, going on from the newest checkpoint in `folder`.

        Raises TesseraeError where the loss is no longer a number or explodes, the disk is full or another process
        writes `folder`; KeyboardInterrupt after SIGINT or SIGTERM, with a checkpoint written first.
        """
        self.group, self.first = Group(self.accelerator), self.accelerator.is_main_process
        with _held(self.folder) if self.first else contextlib.nullcontext():
            self.accelerator.wait_for_everyone()  # nobody reads the folder before the first process holds it
            try:
                self._resume()
                self._train()
                self._export("last")
                self.accelerator.wait_for_everyone()
            except DiskFullError as error:
                steps = steps_in(self.folder)
                state = f"the last checkpoint (step {steps[-1]}) is intact" if steps else "there is no checkpoint yet"
                raise DiskFullError(f"{str(error).rstrip('.')}; {state}.") from None
        return self.progress

    def _train(self) -> None:
        block, progress = self.block, self.progress
        started = self.last_line = time.monotonic()
        seconds_before = progress.seconds
        with _interruptible() as interrupted:
            if not progress.step:
                self._sample()
            while self._done() < 1.0:
                self._step()
                progress.seconds = seconds_before + time.monotonic() - started
                if block.max_seconds:  # rates and the end follow from it
                    progress.seconds = self.group.of_first(progress.seconds)
                ends = self._done() >= 1.0
                if ends or progress.step % block.log_every == 0:
                    self._log(ends)
                if ends or progress.step % block.sample_every == 0:
                    self._sample()
                if ends or progress.step % block.eval_every == 0:
                    self._evaluate()
                stops = self._stops(interrupted)
                if ends or stops or progress.step % block.checkpoint_every == 0:
                    self._checkpoint()
                if stops:
                    self.log(f"stopped at step {progress.step}: run the stage again and it goes on from there.")
                    raise KeyboardInterrupt

    def _done(self) -> float:
        """How much of the training is over, by steps or by seconds, in [0,1]."""
        limit = self.block.max_seconds
        return max(self.progress.step / self.block.steps, self.progress.seconds / limit if limit else 0.0)

    def _step(self) -> None:
        progress, done = self.progress, self._done()
        self.task.set_rate(rate_scale(done, progress.step, self.block.warmup, self.block.cooldown), done)
        torch.manual_seed(step_seed(self.seed, progress.step, self.accelerator.process_index))
        for name, value in self.task.step(progress.step).items():  # summed on the device: nothing waits for them
            pair = torch.stack([value.detach().float(), torch.ones_like(value, dtype=torch.float32)])
            progress.sums[name] = progress.sums[name] + pair if name in progress.sums else pair
        progress.step += 1

    def _sample(self) -> None:
        with uncompiled():
            self.task.sample(self.progress.step)

    def _means(self) -> dict[str, float]:
        """Each term's mean since the last log, over all processes. Raises TesseraeError where one is far off."""
        totals = {name: self.accelerator.reduce(pair, "sum").tolist() for name, pair in self.progress.sums.items()}
        means = {name: total / count for name, (total, count) in totals.items()}
        for name, value in means.items():
            if not math.isfinite(value):
                raise TesseraeError(
                    f"step {self.progress.step}: the term {name!r} is {value}, so training stops with the last "
                    "checkpoint kept; try half the learning rate, a grad_clip of 1, or precision: fp32.")
        check_exploded(self.progress.step, means, self.progress.history, self.task.losses)
        return means

    def _log(self, ends: bool) -> None:
        task, progress = self.task, self.progress
        row = {"step": progress.step, **self._means(), **task.summary()}
        before = progress.timings[-1] if progress.timings else {"step": 0, "seconds": 0.0}
        pace = (progress.step - before["step"]) / max(progress.seconds - before["seconds"], 1e-9)
        timing = {"step": progress.step, "seconds": round(progress.seconds, 3),
                  f"{task.unit}_per_second": round(pace * task.per_step, 3)}
        progress.history.append(row)
        progress.timings.append(timing)
        progress.sums = {}
        self._publish({**row, **timing})
        for alarm in task.alarms(progress.history):
            if alarm.step == progress.step:
                self.log(f"ALARM, {alarm}")
        if ends or time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            terms = "  ".join(f"{name} {row[name]:.3g}" for name in task.logged if name in row)
            left = (self.block.steps - progress.step) / pace
            if self.block.max_seconds:
                left = max(0.0, min(left, self.block.max_seconds - progress.seconds))
            self.log(f"step {progress.step}/{self.block.steps}  {terms}  {pace * task.per_step:.0f} {task.unit}/s  "
                     f"ETA {int(left) // 60}:{int(left) % 60:02d}")

    def _publish(self, *rows: dict) -> None:
        """Write the tables, and record each row at its step."""
        if not self.first:
            return
        write_table(self.reports / "history.csv", self.progress.history)
        write_table(self.reports / "timings.csv", self.progress.timings)
        for row in rows:
            self.record({name: value for name, value in row.items() if name != "step"}, row["step"])

    def _evaluate(self) -> None:
        task, progress = self.task, self.progress
        with uncompiled():
            measures = self.group.of_first(task.evaluate(progress.step))  # rounding must not part the processes
        progress.latest = {"step": progress.step, **measures}
        held_out = {f"val_{name}": value for name, value in measures.items()}
        if not progress.history or progress.history[-1]["step"] != progress.step:
            progress.history.append({"step": progress.step})
        progress.history[-1].update(held_out)
        self._publish({"step": progress.step, **held_out})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in measures.items())
        self.log(f"  held out at step {progress.step}: {shown}")
        if not progress.best or measures[task.score] < progress.best[task.score]:
            progress.best = progress.latest
            # kept under its step until the checkpoint that knows of it is written
            self._export(f"best-{progress.step:08d}")

    def _export(self, name: str) -> None:
        """The model as it is now, in the folder of that name."""
        with replacing_folder(self.folder / name) if self.first else contextlib.nullcontext() as folder:
            self.task.export(folder)

    def _stops(self, interrupted: threading.Event) -> bool:
        """Whether to stop after this step, by a signal. It may reach several processes at different steps, so these
        ask each other, and, because that takes time, only after steps that are logged.
        """
        if self.group.count > 1 and self.progress.step % self.block.log_every:
            return False
        return any(self.group.all_of(interrupted.is_set()))

    def _checkpoint(self) -> None:
        self._means()  # a step that is far off must not become the checkpoint that the next run goes on from
        sums = {name: self.group.each(pair) for name, pair in self.progress.sums.items()}
        state = {"task": self.task.state(), "progress": vars(self.progress) | {"sums": sums},
                 "precision": self.accelerator.mixed_precision}
        if self.first:
            save_checkpoint(self.folder, self.progress.step, state)
            _settle_best(self.progress, self.folder)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Go on from the newest checkpoint, which the first process alone reads."""
        steps, mine = self.block.steps, self.accelerator.mixed_precision
        found = load_checkpoint(self.folder, at_most=steps, log=self.log) if self.first else None
        step, state = found or (0, {})
        progress, precision = self.group.of_first((state.get("progress"), state.get("precision")))
        self.progress = Progress(**(progress or {}))
        if progress is None:
            return
        self.task.load_state(state.get("task"))
        self.progress.sums = {name: pairs[self.accelerator.process_index].to(self.accelerator.device)
                              for name, pairs in self.progress.sums.items()}
        self.log(f"going on from step {step}" if step < steps else f"step {step} of {steps} was reached before")
        if precision != mine:
            self.log(f"from here in {PRECISIONS[mine]}, the steps before in {PRECISIONS[precision]}: `precision: "
                     "auto` found another one quick on this machine.")
        # the pipeline removes a stage's outputs before it runs; the new run's curves begin at the beginning, too
        self._publish(*self.progress.history)
        if self.first:
            _settle_best(self.progress, self.folder)  # a kill may have come between a checkpoint and this


def _settle_best(progress: Progress, folder: Path) -> None:
    """Make `folder/best` the model of the best step; models of older bests that no checkpoint needs go."""
    if not progress.best:
        return
    named = folder / f"best-{progress.best['step']:08d}"
    if named.exists():
        replace_folder(named, folder / "best")
    for other in folder.glob("best-*"):
        if other != named:
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event instead of ending the process, so that a step is never cut in two."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, lambda *_: event.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
