"""What dvc.yaml calls: a notebook run as a stage.

    python -m tesserae.pipeline notebooks/02_train_vqgan.ipynb --target image

The notebook runs in the interpreter that runs this, from its own folder as in JupyterLab, and its output is
seen here as it comes. The executed copy goes to reports/notebooks/<stage>.ipynb and to the MLflow run.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tesserae import tracking
from tesserae.errors import TesseraeError, is_full, see_writable, sentence_of
from tesserae.files import find_root
from tesserae.params import ParamsError, load_params, settings
from tesserae.pipeline.kernel import EARLY, die_with_dvc, scratch_folder
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

KEEP = ("The experiment {name} is kept under its name. git checkout params.yaml dvc.lock && dvc checkout goes back "
        "to the last commit; git commit params.yaml dvc.lock goes on from here.")
FULL = "The disk is full: free some space, then run again."
PATIENCE = 600  # seconds that a kernel on a busy machine may take to start, or to hand over what it printed


class PipelineError(TesseraeError, RuntimeError):
    """The notebook could not be run to its end."""


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the notebook ran to its end, 1 when not, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m tesserae.pipeline", description="Run a notebook as a stage."
    )
    parser.add_argument("notebook", type=Path, help="for instance notebooks/02_train_vqgan.ipynb")
    parser.add_argument("--target", help="the block in params.yaml, for instance image")
    parser.add_argument("--params", default="params.yaml", help="the parameters file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="a value in place of the file's, such as vqgan.image.steps=20; may be repeated")
    options = parser.parse_args(arguments)
    if os.environ.get("DVC_STAGE"):
        die_with_dvc()  # else this would go on alone, beside the next `dvc repro`
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
        sentence = FULL if is_full(error) else sentence_of(error)
        if sentence is None:
            raise
        print(f"\n{sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        exec("")  # an interrupt inside an exec of text, as imports have, leaves a mark at which Python ends by SIGINT
        return 130
    return 0


def run_stage(notebook: Path, target: str | None = None, params_file: str = "params.yaml",
              overrides: Mapping[str, Any] | None = None) -> Path:
    """Run the notebook of a stage; returns its executed copy, which holds what was reached on failure, too.

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
    run = tracking.start_run(root, name, recorded, send=False)
    parameters = {"params_file": params_file, "overrides": dict(overrides or {})}
    parameters |= {"target": target} if target else {}
    began, status = time.monotonic(), "FAILED"
    try:
        with _kernel(root, run.key, notebook.resolve()) as kernel:
            run.send()  # it and the kernel import for seconds, at the same time
            _execute(notebook.resolve(), executed, parameters, kernel)
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


def _execute(notebook: Path, executed: Path, parameters: dict[str, Any], kernel) -> None:
    """Papermill, with its failures put as one TesseraeError."""
    _be_quiet()
    sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema goes without; its grammar takes seconds to build
    import papermill
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        with _signals_to(kernel) as stopping:
            papermill.execute_notebook(
                notebook, executed, parameters, cwd=notebook.parent, kernel_name="python3", language="python",
                progress_bar=False, log_output=False, stdout_file=sys.stdout, stderr_file=sys.stderr,
                autosave_cell_every=10, km=kernel, start_timeout=PATIENCE, iopub_timeout=PATIENCE,
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        if error.traceback == [error.evalue]:  # TesseraeError shows itself so, see there
            raise PipelineError(error.evalue) from None
        sentence = FULL if is_full(error.evalue) else sentence_of(error.evalue)
        if sentence:
            raise PipelineError(sentence) from None
        trace = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", line) for line in error.traceback)
        print(f"\n{trace}", file=sys.stderr)
        where = f"{executed.parent.parent.name}/{executed.parent.name}/{executed.name}"
        raise PipelineError(f"{notebook.name} failed with {error.ename}: see {where}.") from None
    except (DeadKernelError, RuntimeError) as error:
        if not isinstance(error, DeadKernelError) and run_sync(kernel.is_alive)():
            raise
        if stopping.is_set():
            raise KeyboardInterrupt from None
        raise PipelineError(
            f"The kernel of {notebook.name} died, most often for lack of memory: try a smaller batch_size."
        ) from None


@contextmanager
def _kernel(root: Path, run_key: str | None, notebook: Path):
    """The manager of a kernel that starts: for this interpreter, the sources at this root, this run.

    Its kernel spec comes first, so that no "python3" of another installation is taken. The sources come first in
    PYTHONPATH, so that DVC's temporary copies of the repository run their own. This process's own environment stays.
    """
    from ipykernel.kernelspec import write_kernel_spec
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync

    environment = os.environ | {
        tracking.RUN_VARIABLE: run_key or "",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a warning about frozen modules
        # Threads that spin while they wait slow each other tenfold as soon as another program wants a core; those
        # that sleep at once take half the time again to wake up. So they spin for some microseconds.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
        "PYTHONPATH": _joined(str(root / "src"), os.environ.get("PYTHONPATH")),
    }
    with scratch_folder() as (folder, short):
        write_kernel_spec(folder / "kernels" / "python3", {
            "argv": [sys.executable, "-m", "tesserae.pipeline.kernel", "-f", "{connection_file}", EARLY,
                     *_imports(notebook)]})
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc" if short else "tcp",
                                    connection_file=str(folder / "k.json"))
        kernel.kernel_spec_manager.kernel_dirs.insert(0, str(folder / "kernels"))
        kernel.shutdown_wait_time = 2.0
        try:
            run_sync(kernel.start_kernel)(cwd=str(notebook.parent), env=environment)
            yield kernel
        finally:
            if kernel.has_kernel:
                run_sync(kernel.shutdown_kernel)(now=kernel.context.closed)  # nbclient closes it if the start failed


def _imports(notebook: Path) -> list[str]:
    """The modules that the notebook's cells import, in their order."""
    found: dict[str, None] = {}
    with suppress(ValueError, KeyError, SyntaxError):  # papermill is to speak of it
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        for cell in (cell for cell in cells if cell["cell_type"] == "code"):
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.Import):
                    found |= dict.fromkeys(alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found[node.module] = None
    return list(found)


@contextmanager
def _signals_to(kernel):
    """Ctrl-C and SIGTERM interrupt the notebook's cell, which may then write a checkpoint and end.

    A second one, or half a minute without an end, stops the kernel where it is. Yields an event, set by the first.
    """
    asked = threading.Event()

    def handle(number, frame):
        if asked.is_set() or not kernel.has_kernel:
            raise KeyboardInterrupt
        asked.set()
        print("\nStopping; once more to stop at once.", file=sys.stderr, flush=True)
        os.kill(kernel.provisioner.pid, signal.SIGINT)
        signal.alarm(30)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield asked
    finally:
        signal.alarm(0)
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def _joined(first: str, rest: str | None) -> str:
    return os.pathsep.join(filter(None, (first, rest)))


def _be_quiet() -> None:
    """Silence what papermill and its libraries say about themselves."""
    for name in ("papermill", "traitlets", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for module in ("papermill", "nbformat", "nbclient", "zmq", "jupyter_client", "jupyter_core", "traitlets"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
