"""`make smoke`: the whole pipeline at four steps, in a folder of its own, for those who change code.

    python -m tesserae.pipeline.smoke

The folder is .smoke/: a clone with the code as it is here, few rendered landscapes, small networks. Nothing outside
of it is written.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tesserae.errors import TesseraeError, command
from tesserae.files import find_root
from tesserae.params.compose import composed
from tesserae.params.defaults import BLOCKS

FOLDER = ".smoke"
FILES = ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore")
FOLDERS = ("notebooks", "src")
LOG = "reports/log.txt"  # which git ignores
_OUTSIDE = ("MLFLOW_", "DVC_", "TESSERAE_", "GIT_")  # variables of the caller's own runs
_DONE = re.compile(r"[a-z][\w-]*: \d+ s, ")  # what a stage says at its end

_TRAINING = {"steps": 4, "batch_size": 4, "warmup": 1, "log_every": 1, "sample_every": 2, "eval_every": 4,
             "eval_images": 4, "checkpoint_every": 2}
_REPORT = {"batch_size": 16, "dictionary": 4, "patches": 2, "num_images": 4}
_SAMPLING = {"per_class": 1, "num_eval_samples": 4, "completions": 1, "neighbours": 1, "num_conditions": 1}
SMALL: dict[str, Any] = {
    "size": "xs",
    "scenes": {"count": 40, "size": 96},
    "prepare": {"holdout": 0.25},
    "vqgan": {"image": _TRAINING | {"perceptual_start": 2, "disc_start": 3}, "segmentation": _TRAINING},
    "codebook": {name: _REPORT for name in BLOCKS["codebook"]},
    "transformer": {name: _TRAINING for name in BLOCKS["transformer"]},
    "sample": {name: _SAMPLING for name in BLOCKS["sample"]},
    "highres": {"layout": {"sizes": [[96, 128]]}},
    "evaluation": {"reference": 20, "max_train_images": 20},
}


class SmokeError(TesseraeError, RuntimeError):
    """The pipeline did not run to its end."""


class Clone:
    """A folder with this repository's code as it is now, committed there, and parameters of its own."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def make(cls, root: Path, folder: Path, values: Mapping[str, Any]) -> Clone:
        """A new one; values: what its params.yaml has beside the defaults."""
        (folder / ".dvc").mkdir(parents=True)
        for file in FILES:
            shutil.copy(root / file, folder / file)
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
        for name in FOLDERS:
            shutil.copytree(root / name, folder / name, ignore=unwanted)
        (folder / "params.yaml").write_text(composed(values), encoding="utf-8")
        clone = cls(folder)
        clone.run("git", "init", "-q")
        clone.run("git", "add", "-A")
        clone.run("git", "-c", "user.name=smoke", "-c", "user.email=smoke@localhost", "commit", "-q", "-m", "Begin")
        return clone

    def run(self, *words: str, each_line: Callable[[str], None] = lambda line: None) -> None:
        """Run a command in the folder; what it prints goes to the log. Raises SmokeError."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_OUTSIDE)}
        environment["PYTHONPATH"] = str(self.folder / "src")
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        (self.folder / LOG).parent.mkdir(exist_ok=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as log, (
                _started(words, self.folder, environment)) as process:
            for line in process.stdout or ():
                log.write(line)
                each_line(line.rstrip())
        if process.returncode:
            tail = (self.folder / LOG).read_text(encoding="utf-8").splitlines()[-15:]
            failed = f"{' '.join(words)} failed; the whole log is {self.folder / LOG}."
            raise SmokeError("\n".join([*tail, "", failed]))

    def repro(self, *targets: str, each_line: Callable[[str], None] = lambda line: None) -> None:
        """Render the landscapes, then run the pipeline."""
        self.run(sys.executable, "-m", "tesserae.data.obtain")
        self.run(sys.executable, "-m", "dvc", "repro", *targets, each_line=each_line)


@contextmanager
def _started(words: tuple[str, ...], folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """A process whose two streams are one; it ends before this does."""
    process = subprocess.Popen(words, cwd=folder, env=environment, text=True, encoding="utf-8", errors="replace",
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()


def smoke(root: Path) -> None:
    """Run the pipeline at four steps in .smoke/ and print a line a stage. Raises SmokeError."""
    folder = root / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    began = time.monotonic()
    clone = Clone.make(root, folder, SMALL)
    clone.repro(each_line=lambda line: print(f"  {line}") if _DONE.match(line) else None)
    print(f"All stages ran in {time.monotonic() - began:.0f} s. Figures are in {FOLDER}/reports, notebooks in "
          f"{FOLDER}/reports/notebooks, what was printed in {FOLDER}/{LOG}.")


def main() -> None:
    """The command."""
    with command():
        smoke(find_root())


if __name__ == "__main__":
    main()
