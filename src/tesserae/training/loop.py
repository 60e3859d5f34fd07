"""The training loop that both trainers share: rates, logs, evaluations, checkpoints, resuming.

Everything random in a step follows from (seed, step): the batch, its augmentation, dropout, revived codes. So a
checkpoint needs no generator states, and a run that was killed ends with the same bits as one that was not, where it
goes on on the same machine: another one may find another precision quick (`precision: auto`), which is said, or round
sums in another order.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from tesserae.accel.allocation import give_back_memory, keep_freed_memory
from tesserae.errors import DiskFullError, TesseraeError, writing
from tesserae.processor import bf16_speed, cxx_error, emulates_bf16
from tesserae.training.alarms import Alarm, check_exploded
from tesserae.training.checkpoints import load_checkpoint, replace_folder, save_checkpoint, steps_in
from tesserae.training.lock import held
from tesserae.training.processes import Group
from tesserae.training.tables import write_table


class Task(Protocol):
    """What is trained. Terms and measures are scalars by name; `score` names the measure whose least is best.

    losses: terms that must not explode, the one they are measured by first. alarms: what the history tells, see
    `training.alarms`.
    """

    score: str
    losses: tuple[str, ...]
    unit: str  # what `per_step` counts: images, tokens
    per_step: int
    spoken: tuple[str, ...]  # terms shown in the terminal

    def set_rate(self, share: float, done: float) -> None: ...  # done: how much of the training is over, [0,1]
    def step(self, step: int) -> dict[str, Tensor]: ...
    def summary(self) -> dict[str, float]: ...
    def evaluate(self, step: int) -> dict[str, float]: ...  # every process calls it, and the first one's counts
    def sample(self, step: int) -> None: ...
    def alarms(self, history: list[dict]) -> list[Alarm]: ...
    def state(self) -> dict: ...  # every process calls it, and the first one's is kept
    def load_state(self, state: dict | None) -> None: ...  # every process calls it, and the first alone has a state
    def export(self, folder: Path | None) -> None: ...  # every process calls it, and the first alone has a folder


_NAMES = {"no": "fp32", "bf16": "bf16"}  # Accelerate's names of precisions, and params.yaml's
LENGTHS = ("steps", "max_seconds", "warmup", "perceptual_start", "disc_start", "sample_every", "eval_every",
           "checkpoint_every")


@dataclass
class Progress:
    """What the loop itself remembers; part of every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    timings: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    latest: dict = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)  # in a checkpoint: each process's, by its index
    summed: int = 0


@functools.cache
def bf16_is_fast(device: torch.device) -> bool:
    """Whether this hardware multiplies bf16 matrices faster than fp32.

    GPUs with tensor cores for it do. A processor that names bf16 instructions may be far quicker with them (AMX) or
    half as quick (AVX512-BF16 on some), so a product is timed in both. It has to be 1.3 times as
    quick: less is lost again where numbers are turned into bf16 and back.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bf16_speed() > 1.3


def compiles(setting: str, device: torch.device, say: Callable[[str], None] = print) -> bool:
    """Whether networks are compiled in training; `setting` as in params.yaml. auto: on a GPU, where minutes of
    compiling are soon made up for.

    Compiling needs a C++ compiler, which is tried before anything is trained: without one auto goes on uncompiled,
    which is said, and on raises TesseraeError.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    error = cxx_error()
    if error and setting == "on":
        raise TesseraeError(f"compile: on needs a C++ compiler, and {error}: install one (g++, or clang++ on a Mac), "
                            "name it in CXX, or set compile: auto or off.")
    if error:
        say(f"Networks stay uncompiled, which is slower: {error}. Install a C++ compiler, or set compile: off.")
    return not error


def as_written() -> contextlib.AbstractContextManager:
    """Compiled networks run as they are written meanwhile: for other shapes than training's, which come seldom."""
    return torch.compiler.set_stance("force_eager")


def to_device_soon(part: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which on a GPU is not waited for."""
    return part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device)


def make_accelerator(precision: str, threads: int = 0, say: Callable[[str], None] = print) -> Accelerator:
    """Accelerate's view of devices and processes; `precision` and `threads` as in params.yaml.

    `say` hears of bf16 that was asked for where it makes everything far slower.
    """
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # without it each process takes itself for the only one
    made = _accelerator(bf16=precision == "bf16")
    if precision == "auto" and Group(made).of_first(bf16_is_fast(made.device)):
        return _accelerator(bf16=True)
    if precision == "bf16" and made.device.type == "cpu" and emulates_bf16():
        of_one(say, made)("precision: bf16 takes tens of times as long as fp32 on this processor, which has no "
                          "instructions for it; auto takes what is quick here.")
    return made


def _accelerator(bf16: bool) -> Accelerator:
    AcceleratorState._reset_state()  # all accelerators of a process share one: a second run may want another
    return Accelerator(mixed_precision="bf16" if bf16 else "no")


def of_one(say: Callable[[str], None], accelerator: Accelerator) -> Callable[[str], None]:
    """`say` in the first of several processes, which all have the same to say, and nothing in the others."""
    return say if accelerator.is_main_process else lambda line: None


def lengthened(block: Any, effort: float, say: Callable[[str], None] = print) -> Any:
    """A training's part of params.yaml `effort` times as long: steps, seconds, and what begins or recurs by steps.

    The steps between two logs, and those after which an unused code is moved, stay.
    """
    if effort == 1:
        return block
    lengths = {name: getattr(block, name) for name in LENGTHS if hasattr(block, name)}
    found = block.model_copy(update={name: max(min(1, length), round(length * effort))
                                     for name, length in lengths.items()})
    say(f"effort {effort:g}: {found.steps:,} steps, not {block.steps:,}."
        + (f" {found.max_seconds:,} s, not {block.max_seconds:,} s." if block.max_seconds else ""))
    return found


def never_reached(block: Any) -> list[str]:
    """Which of a training's beginnings lie beyond its end, a sentence each; what they begin does not happen."""
    what = {"warmup": "the learning rate does not reach its full value", "perceptual_start": "LPIPS does not join",
            "disc_start": "the discriminator does not join"}
    used = {"perceptual_start": "perceptual_weight", "disc_start": "gan_loss"}
    return [f"{name} = {getattr(block, name):,} is beyond the last of {block.steps:,} steps, so {words}."
            for name, words in what.items()
            if hasattr(block, name) and getattr(block, used.get(name, name)) not in (0, "none")
            and getattr(block, name) >= block.steps + (name == "warmup")]


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """One number for everything random in a step; other streams for other uses of the same step."""
    return int(np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0] >> 1)


def rate_share(done: float, step: int, warmup: int, cooldown: float) -> float:
    """Share of the full learning rate: linear warm-up over `warmup` steps, constant, linear to zero.

    `done` in [0,1] is how much of the training is over; the fall takes its last `cooldown` part.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    fall = min(1.0, (1.0 - done) / cooldown) if cooldown else 1.0
    return rise * max(fall, 0.0)


def train(task: Task, block: Any, seed: int, folder: Path, reports: Path, log: Callable[[dict, int], None],
          accelerator: Accelerator, say: Callable[[str], None] = print) -> Progress:
    """Train `task` to the end of `block` (its part of params.yaml), going on from what `folder` holds.

    `folder` is for this task with this fingerprint alone. Writes reports/history.csv and reports/timings.csv;
    leaves `folder/best` and `folder/last` as `task.export` writes them. Raises TesseraeError where the loss is no
    longer a number, the disk is full or another process writes `folder`, KeyboardInterrupt after SIGINT or SIGTERM,
    with a checkpoint written first.
    """
    with held(folder, accelerator.is_main_process):
        accelerator.wait_for_everyone()  # nobody reads the folder before the first process holds it
        try:
            return _train(task, block, seed, folder, reports, log, accelerator, say)
        except DiskFullError as error:
            there = steps_in(folder)
            state = f"the last checkpoint (step {there[-1]}) is intact" if there else "there is no checkpoint yet"
            raise DiskFullError(f"{str(error).rstrip('.')}; {state}.") from None


def _train(task: Task, block: Any, seed: int, folder: Path, reports: Path, log: Callable[[dict, int], None],
           accelerator: Accelerator, say: Callable[[str], None]) -> Progress:
    progress = _resume(task, block, folder, accelerator, say)
    if progress.history and accelerator.is_main_process:  # the pipeline removes a stage's outputs before it runs
        write_table(reports / "history.csv", progress.history)
        write_table(reports / "timings.csv", progress.timings)
        for row in progress.history:  # the new run's curves begin at the beginning, too
            log({name: value for name, value in row.items() if name != "step"}, row["step"])
    if accelerator.is_main_process:
        _settle_best(progress, folder)  # a kill may have come between a checkpoint and this
    started, began_at, spoken = time.monotonic(), progress.step, time.monotonic()
    before = progress.seconds

    def done() -> float:
        limit = block.max_seconds
        return max(progress.step / block.steps, progress.seconds / limit if limit else 0.0)

    with _interruptible() as interrupted:
        while done() < 1.0:
            over = done()
            task.set_rate(rate_share(over, progress.step, block.warmup, block.cooldown), over)
            torch.manual_seed(step_seed(seed, progress.step, accelerator.process_index))
            _add(progress, task.step(progress.step))
            progress.step += 1
            progress.seconds = before + time.monotonic() - started
            if block.max_seconds:
                progress.seconds = Group(accelerator).of_first(progress.seconds)  # rates and the end follow from it
            last = done() >= 1.0
            if last or progress.step % block.log_every == 0:
                row = _log(task, progress, log, reports, accelerator, say)
                if last or time.monotonic() - spoken > 5:
                    spoken = time.monotonic()
                    say(_line(row, task, progress, block, began_at, spoken - started))
            if last or progress.step % block.sample_every == 0:
                with as_written():
                    task.sample(progress.step)
            if last or progress.step % block.eval_every == 0:
                _evaluate(task, progress, log, reports, folder, say, accelerator)
            stop = _asked_to_stop(interrupted, progress.step % block.log_every == 0, accelerator)
            if last or stop or progress.step % block.checkpoint_every == 0:
                _checkpoint(task, progress, folder, accelerator)
            if stop:
                say(f"stopped at step {progress.step}: run the stage again and it goes on from there.")
                raise KeyboardInterrupt
    part = folder / "last.part"
    _export(task, part, accelerator)
    if accelerator.is_main_process:
        shutil.rmtree(folder / "last", ignore_errors=True)
        part.rename(folder / "last")
    give_back_memory()  # a notebook may stay open for long
    accelerator.wait_for_everyone()
    return progress


def deliver(folder: Path, models: Path) -> None:
    """The best model to `models`, the last one to `models`/last, both whole."""
    with held(folder):
        replace_folder(folder / "best", models)
        replace_folder(folder / "last", models / "last")


def _asked_to_stop(interrupted: threading.Event, logged: bool, accelerator: Accelerator) -> bool:
    """Whether to stop after this step, by a signal. It may reach several processes at different steps, so these ask
    each other, and, because that is waited for, after steps that were `logged` alone.
    """
    if accelerator.num_processes == 1:
        return interrupted.is_set()
    if not logged:
        return False
    asked = torch.tensor(float(interrupted.is_set()), device=accelerator.device)
    return accelerator.reduce(asked, "sum").item() > 0


def _resume(task: Task, block: Any, folder: Path, accelerator: Accelerator, say: Callable) -> Progress:
    """Go on from the newest checkpoint, which the first process alone reads."""
    found = load_checkpoint(folder, at_most=block.steps, say=say) if accelerator.is_main_process else None
    step, state = found or (0, {})
    known, precision = Group(accelerator).of_first((state.get("progress"), state.get("precision")))
    if known is None:
        return Progress()
    task.load_state(state.get("task"))
    progress = Progress(**known)
    progress.sums = {name: rows[accelerator.process_index].to(accelerator.device)
                     for name, rows in progress.sums.items()}
    say(f"going on from step {step}" if step < block.steps else f"step {step} of {block.steps} was reached before")
    if precision != accelerator.mixed_precision:
        say(f"from here in {_NAMES[accelerator.mixed_precision]}, the steps before in {_NAMES[precision]}: "
            "`precision: auto` found another one quick on this machine.")
    return progress


def _add(progress: Progress, terms: dict[str, Tensor]) -> None:
    """Sum terms on the device: nothing is waited for until they are logged."""
    for name, value in terms.items():
        known = progress.sums.get(name)
        pair = torch.stack([value.detach().float(), torch.ones_like(value, dtype=torch.float32)])
        progress.sums[name] = pair if known is None else known + pair
    progress.summed += 1


def _log(task: Task, progress: Progress, log: Callable, reports: Path, accelerator: Accelerator,
         say: Callable) -> dict:
    sums = {name: accelerator.reduce(pair, "sum").tolist() for name, pair in progress.sums.items()}
    terms = {name: total / count for name, (total, count) in sums.items()}
    _check_sound(progress, terms, task.losses)
    row = {"step": progress.step, **terms, **task.summary()}
    done_before = progress.timings[-1] if progress.timings else {"step": 0, "seconds": 0.0}
    pace = (progress.step - done_before["step"]) / max(progress.seconds - done_before["seconds"], 1e-9)
    timing = {"step": progress.step, "seconds": round(progress.seconds, 3),
              f"{task.unit}_per_second": round(pace * task.per_step, 3)}
    progress.history.append(row)
    progress.timings.append(timing)
    progress.sums, progress.summed = {}, 0
    if accelerator.is_main_process:
        write_table(reports / "history.csv", progress.history)
        write_table(reports / "timings.csv", progress.timings)
        log({name: value for name, value in {**row, **timing}.items() if name != "step"}, progress.step)
    for alarm in task.alarms(progress.history):
        if alarm.step == progress.step:
            say(f"ALARM, {alarm}")
    return row


def _check_sound(progress: Progress, terms: dict[str, float], losses: tuple[str, ...]) -> None:
    for name, value in terms.items():
        if not math.isfinite(value):
            raise TesseraeError(
                f"step {progress.step}: the term {name!r} is {value}, so training stops with the last checkpoint "
                "kept; try half the learning rate, a grad_clip of 1, or precision: fp32."
            )
    check_exploded(progress.step, terms, progress.history, losses)


def _evaluate(task: Task, progress: Progress, log: Callable, reports: Path, folder: Path, say: Callable,
              accelerator: Accelerator) -> None:
    with as_written():
        measures = Group(accelerator).of_first(task.evaluate(progress.step))  # rounding must not part them
    progress.latest = {"step": progress.step, **measures}
    held_out = {f"val_{name}": value for name, value in measures.items()}
    if progress.history and progress.history[-1]["step"] == progress.step:
        progress.history[-1].update(held_out)
    else:
        progress.history.append({"step": progress.step, **held_out})
    if accelerator.is_main_process:
        write_table(reports / "history.csv", progress.history)
        log(held_out, progress.step)
    say(f"  held out at step {progress.step}: " + "  ".join(f"{k} {v:.4g}" for k, v in measures.items()))
    if not progress.best or measures[task.score] < progress.best[task.score]:
        progress.best = progress.latest
        # kept under its step until the checkpoint that knows of it is written
        _export(task, folder / f"best-{progress.step:08d}", accelerator)


def _export(task: Task, folder: Path, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        task.export(None)
        return
    with writing(folder):
        try:
            task.export(folder)
        except Exception:
            for part in folder.glob("*.part"):  # on a full disk they take what is left
                part.unlink(missing_ok=True)
            raise


def _checkpoint(task: Task, progress: Progress, folder: Path, accelerator: Accelerator) -> None:
    # a step without a number, or far off, must not become the checkpoint that the next run goes on from
    sums = {name: accelerator.reduce(pair, "sum").tolist() for name, pair in progress.sums.items()}
    _check_sound(progress, {name: total / count for name, (total, count) in sums.items()}, task.losses)
    each = {name: Group(accelerator).each(pair) for name, pair in progress.sums.items()}
    state = {"task": task.state(), "progress": vars(progress) | {"sums": each},
             "precision": accelerator.mixed_precision}
    if accelerator.is_main_process:
        save_checkpoint(folder, progress.step, state)
        _settle_best(progress, folder)
    accelerator.wait_for_everyone()


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


def _line(row: dict, task: Task, progress: Progress, block: Any, began_at: int, spent: float) -> str:
    pace = (progress.step - began_at) / max(spent, 1e-9)
    left = (block.steps - progress.step) / pace
    if block.max_seconds:
        left = max(0.0, min(left, block.max_seconds - progress.seconds))
    shown = "  ".join(f"{name} {row[name]:.3g}" for name in task.spoken if name in row)
    return (f"step {progress.step}/{block.steps}  {shown}  {pace * task.per_step:.0f} {task.unit}/s  "
            f"ETA {int(left) // 60}:{int(left) % 60:02d}")


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
