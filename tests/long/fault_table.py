"""Faults, what the user sees of each, and what is kept, as a table.

    python tests/long/fault_table.py

A small training meets each fault in the real loop. The full disk is a real one, a tmpfs of its own, where mounting is
permitted.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
from test_loop import Toy, run

from tesserae.errors import TesseraeError
from tesserae.locks import held
from tesserae.training.checkpoints import steps_in

PLACES = 10  # that each of a checkpoint's two files is cut at
Seen = tuple[str, str]  # what the user sees, what is kept


def trained(folder: Path, task: Toy | None = None, **changes) -> tuple[list[str], list[int]]:
    """Lines that a training says, its last one perhaps an error, and the steps of the checkpoints it leaves."""
    said: list[str] = []
    try:
        run(task or Toy(), folder, Accelerator(cpu=True), said, **changes)
    except (TesseraeError, KeyboardInterrupt) as error:
        said += [str(error)] if str(error) else []
    return said, steps_in(folder / "checkpoints")


def kept(steps: list[int]) -> str:
    """In words."""
    return f"the checkpoint of step {steps[-1]}" if steps else "nothing was there yet"


class Faulty(Toy):
    """`change(terms)` from step 11 on."""

    def __init__(self, change: Callable[[dict], dict]) -> None:
        super().__init__()
        self.change = change

    def step(self, step: int) -> dict:
        terms = super().step(step)
        return self.change(terms) if step >= 11 else terms


def bad_number(folder: Path) -> Seen:
    said, steps = trained(folder, Faulty(lambda terms: terms | {"loss": torch.tensor(math.nan)}))
    return said[-1], kept(steps)


def explosion(folder: Path) -> Seen:
    said, steps = trained(folder, Faulty(lambda terms: {name: 1e4 + value for name, value in terms.items()}))
    return said[-1], kept(steps)


def interrupt(folder: Path) -> Seen:
    said, steps = trained(folder, Toy(lambda step: os.kill(os.getpid(), 2) if step == 11 else None))
    return said[-1], kept(steps)


def two_at_once(folder: Path) -> Seen:
    trained(folder, steps=10)
    with held(folder / "checkpoints", "a training"):
        said, steps = trained(folder)
    return said[-1], kept(steps)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of 1 MiB there; False where that is not permitted."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
                             capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disk(folder: Path) -> Seen:
    def fill(step: int) -> None:
        if step == 11:
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as stream:
                while True:
                    stream.write(bytes(512))

    with small_disk(folder) as mounted:
        if not mounted:
            return "(no disk could be mounted here; tests/training has a stand-in)", ""
        said, steps = trained(folder, Toy(fill))
        (folder / "filler").unlink()
        again, _ = trained(folder)
        return said[-1], f"{kept(steps)}; with space again: {again[0]}"


def cut_checkpoints(folder: Path) -> Seen:
    """Each of the newest checkpoint's files, cut at PLACES places: every time the one before is used."""
    trained(folder / "whole", steps=16)
    newest = sorted((folder / "whole" / "checkpoints").glob("step-00000016.*"))
    lines = set()
    for file in newest:
        for place in range(PLACES):
            copy = folder / "copy"
            shutil.copytree(folder / "whole", copy)
            cut = copy / "checkpoints" / file.name
            with cut.open("r+b") as stream:
                stream.truncate(file.stat().st_size * place // PLACES)
            said, _ = trained(copy)
            lines.add((said[0].split(" (")[0], said[1]))
            shutil.rmtree(copy)
    assert len(lines) == 1, lines
    (damage, going_on), = lines
    return f"{damage} (why); the one before it is used.", f"{going_on}, each of {len(newest) * PLACES} times"


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def pickle_bomb(folder: Path) -> Seen:
    trained(folder, steps=16)
    with (folder / "checkpoints" / "step-00000016.safetensors").open("wb") as stream:
        pickle.dump(Bomb(folder / "gone off"), stream)
    said, _ = trained(folder)
    return said[0], f"{said[1]}; the code {'RAN' if (folder / 'gone off').exists() else 'was not run'}"


def server_down(folder: Path) -> Seen:
    code = ("from tesserae import tracking; run = tracking.start_run('.', 'prepare')\n"
            "for step in range(20): run.metrics({'loss': 1.0}, step)\n"
            "run.finish()")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=os.environ | {"MLFLOW_TRACKING_URI": uri},
                              capture_output=True, text=True, check=True)
    first, last = done.stderr.splitlines()
    return first, last


FAULTS = {"a loss that is no number": bad_number, "a loss that explodes": explosion, "Ctrl-C": interrupt,
          "a second run of the same stage": two_at_once, "a full disk": full_disk,
          "a checkpoint that was cut": cut_checkpoints, "a checkpoint that is a pickle": pickle_bomb,
          "MLflow's server is down": server_down}


def main() -> None:
    """Print it as Markdown."""
    print("| fault | what is said | what is kept |\n| --- | --- | --- |")
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            said, left = (text.replace(folder, "...") for text in fault(Path(folder)))
        print(f"| {name} | {said} | {left} |")


if __name__ == "__main__":
    main()
