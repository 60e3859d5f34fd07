"""What dvc.yaml calls: a notebook run as a stage, by papermill.

    python -m tesserae.pipeline notebooks/02_train_vqgan.ipynb --target image

The notebook runs in this environment and from its own folder, as in JupyterLab, and its output is shown as it comes.
The executed copy goes to reports/notebooks/<stage>.ipynb and to the MLflow run.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tesserae import tracking
from tesserae.errors import TesseraeError, is_full, see_writable, sentence_of
from tesserae.files import find_root
from tesserae.params import ParamsError, load_params, settings
from tesserae.pipeline.parent import end_with_dvc
from tesserae.pipeline.repair import keep_lock
from tesserae.stage import DRAWN, StageError, lineage, stage_name, written

STAGES = {
    "01_prepare_data": "prepare",
    "02_train_vqgan": "vqgan",
    "03_analyse_codebook": "codebook",
    "04_train_transformer": "transformer",
    "05_sample": "sample",
    "06_sample_highres": "highres",
}

KEEP = ("The experiment {name} is kept under its name. git checkout params.yaml data.dvc dvc.lock && dvc checkout "
        "goes back to the last commit; git commit params.yaml data.dvc dvc.lock goes on from here.")
FULL = "The disk is full: free some space, then run again."
START_SECONDS = 600  # that a kernel on a busy machine may take to start, or to hand over what it printed
STOP_SECONDS = 30  # that an interrupted cell has to write a checkpoint


class PipelineError(TesseraeError, RuntimeError):
    """The notebook could not be run to its end."""


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the notebook ran to its end, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser("python -m tesserae.pipeline", description="Run a notebook as a stage.")
    parser.add_argument("notebook", type=Path, help="for instance notebooks/02_train_vqgan.ipynb")
    parser.add_argument("--target", help="the block in params.yaml, for instance image")
    parser.add_argument("--params", default="params.yaml", help="the parameters file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a value in place of the file's, such as vqgan.image.steps=20; may be repeated")
    options = parser.parse_args(arguments)
    end_with_dvc()
    if os.environ.get("DVC_STAGE"):
        keep_lock(Path.cwd())
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs begin with the first one ignored
        signal.signal(number, signal.default_int_handler)
    try:
        run_stage(options.notebook, options.target, options.params, settings(options.set))
    except TesseraeError as error:
        print(f"\n{error}", file=sys.stderr)
        if os.environ.get("DVC_STAGE") and isinstance(error, ParamsError | StageError):  # as dvc repro --single-item
            print("dvc checkout brings back what the stage made before.", file=sys.stderr)
        return 1
    except OSError as error:
        sentence = _known_fault(error)
        if sentence is None:
            raise
        print(f"\n{sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def run_stage(notebook: Path, target: str | None = None, params_file: str = "params.yaml",
              overrides: Mapping[str, Any] | None = None) -> Path:
    """Run the notebook of a stage; return its executed copy, which on failure holds what was reached.

    overrides: values that replace the file's, see `load_params`; none also where the notebook's own cell has some.
    Raises TesseraeError: the notebook's own where it raised one, else PipelineError. KeyboardInterrupt after
    SIGINT or SIGTERM.
    """
    if notebook.stem not in STAGES or not notebook.is_file():
        raise PipelineError(f"{notebook} is no stage's notebook: take one of {', '.join(STAGES)}.")
    root = find_root(notebook.resolve().parent)
    kind = STAGES[notebook.stem]
    name = stage_name(kind, target)
    recorded = lineage(load_params(root / params_file, overrides), kind, target)  # a bad file stops here, in a second
    executed = root / "reports" / "notebooks" / f"{name}.ipynb"
    see_writable(executed.parent, *written(root, kind, target))
    executed.parent.mkdir(parents=True, exist_ok=True)
    run = tracking.start_run(root, name, recorded)
    parameters = {"params_file": params_file, "overrides": dict(overrides or {})}
    if target:
        parameters["target"] = target
    began, status = time.monotonic(), "FAILED"
    try:
        with _environment(_for_kernel(root, run.key)):
            run.begin()
            _execute(notebook.resolve(), executed, parameters)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if executed.exists():
            run.artifact(executed, "notebook")
        run.finish(status)
    print(f"{name}: {time.monotonic() - began:.0f} s, {executed.relative_to(root)}", flush=True)
    if kind in DRAWN and root == tracking.real_root(root) and (experiment := os.environ.get("DVC_EXP_NAME")):
        print(KEEP.format(name=experiment), flush=True)
    return executed


def _execute(notebook: Path, executed: Path, parameters: Mapping[str, Any]) -> None:
    """Run papermill; its failures become one TesseraeError, an interrupt a KeyboardInterrupt."""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(papermill|nbformat|nbclient|zmq|jupyter_\w+|traitlets)(\.|$)")
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    encrypted = Config({"KernelManager": {"transport_encryption": "auto"}})  # others on the machine hear nothing
    with _Interrupts() as interrupts:
        try:
            papermill.execute_notebook(
                notebook, executed, parameters, cwd=notebook.parent, kernel_name="python3", language="python",
                progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, autosave_cell_every=10,
                config=encrypted, start_timeout=START_SECONDS, iopub_timeout=START_SECONDS,
                on_cell_start=interrupts.before_cell, on_cell_execute=interrupts.cell_begins,
                on_cell_executed=interrupts.cell_ends)
        except PapermillExecutionError as error:
            if error.ename == "KeyboardInterrupt":
                raise KeyboardInterrupt from None
            raise PipelineError(_failure(error, notebook, executed)) from None
        except (DeadKernelError, RuntimeError) as error:
            if not isinstance(error, DeadKernelError) and _kernels():
                raise
            if interrupts.requested:
                raise KeyboardInterrupt from None
            raise PipelineError(f"The kernel of {notebook.name} died, most often for lack of memory: try a smaller "
                                "batch_size.") from None


def _failure(error, notebook: Path, executed: Path) -> str:
    """The sentence for a cell's error. The trace of one that is not known is printed."""
    if error.traceback == [error.evalue]:  # a TesseraeError shows itself so
        return error.evalue
    sentence = _known_fault(error.evalue)
    if sentence is None:
        trace = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback)
        print(f"\n{trace}", file=sys.stderr)
        where = f"{executed.parent.parent.name}/{executed.parent.name}/{executed.name}"
        sentence = f"{notebook.name} failed with {error.ename}: see {where}."
    return sentence


def _known_fault(error: BaseException | str) -> str | None:
    return FULL if is_full(error) else sentence_of(error)


class _Interrupts:
    """While it is entered, SIGINT and SIGTERM interrupt the cell that runs, which may write a checkpoint and end.

    No other cell begins then. A second signal, or STOP_SECONDS without an end, stops the notebook where it is.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)

    def __init__(self):
        self.requested = self._in_cell = False

    def __enter__(self) -> _Interrupts:
        self._before = [signal.signal(number, self._handle) for number in self.SIGNALS]
        return self

    def __exit__(self, *_) -> None:
        signal.alarm(0)
        for number, handler in zip(self.SIGNALS, self._before):
            signal.signal(number, handler)

    def before_cell(self, **_) -> None:
        if self.requested:
            raise KeyboardInterrupt

    def cell_begins(self, **_) -> None:
        self._in_cell = True

    def cell_ends(self, **_) -> None:
        self._in_cell = False

    def _handle(self, number, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping; once more to stop at once.", file=sys.stderr, flush=True)
        signal.alarm(STOP_SECONDS)
        if self._in_cell:
            for kernel in _kernels():
                kernel.send_signal(signal.SIGINT)


def _kernels() -> list[psutil.Process]:
    """The living kernels that this process started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it may just have ended
            if "ipykernel_launcher" in child.cmdline():
                found.append(child)
    return found


def _for_kernel(root: Path, run_key: str | None) -> dict[str, str]:
    """What the kernel's environment has beside this process's own.

    The sources come first in PYTHONPATH, so that DVC's temporary copies of the repository run their own.
    """
    return {
        tracking.RUN_VARIABLE: run_key or "",
        "JUPYTER_PREFER_ENV_PATH": "1",  # no "python3" of another installation
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a warning about frozen modules
        # Threads that spin while they wait slow each other tenfold as soon as another program wants a core; those
        # that sleep at once take half the time again to wake up. So they spin for some microseconds.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(root / "src"), os.environ.get("PYTHONPATH")))),
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for the block alone, and leave all others as they are."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
