"""One run a stage execution, whatever happens to the store: records go to a journal, another process sends them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.tracking import describe
from tesserae.tracking.journal import SYNC, Journal, new_key, outbox
from tesserae.tracking.store import IMPATIENT, PICTURES, real_root

RUN_VARIABLE = "TESSERAE_RUN_ID"  # set by the pipeline: the notebook's kernel joins that run
END_SECONDS = 60.0  # wait at the end of a run for what is not sent yet
SHOWN_PIXELS = 1024  # small pictures are enlarged to about this width, by whole numbers
VALUE_LENGTH = 6000  # MLflow's limit of a parameter

_open_runs: dict[tuple[str, str], Run] = {}


class Run:
    """One MLflow run, which begins with the first thing that is recorded.

    Its methods return at once and never raise: what they record waits on disk until it is sent. journal: None where
    nothing is recorded.
    """

    def __init__(self, journal: Journal | None, root: str | Path = ".", name: str = "",
                 params: Mapping | None = None):
        self._journal, self._root, self._name, self._params = journal, root, name, params or {}
        self._numbers: dict[str, float] = {}
        self._began = self._opened = self._warned = False
        self._sender: subprocess.Popen | None = None
        self._last_time = 0  # of the newest metrics, in milliseconds

    @property
    def key(self) -> str | None:
        """The journal's name, by which another process may join the run; None where nothing is recorded."""
        return self._journal.key if self._journal else None

    def metrics(self, values: Mapping[str, Any], step: int | None = None, section: str = "train") -> None:
        """Record numbers, nested mappings with dots between; what is not a number is left out.

        MLflow's pages show them by section: val_* under "val/", all others under `section`. Those of the section
        "report" are a stage's results, which the run's description shows.
        """
        numbers = {}
        for key, value in describe.flatten(values).items():
            if not isinstance(value, str):
                with suppress(TypeError, ValueError):
                    numbers[key] = float(value)
        if not numbers:
            return
        # of metrics of one step and one millisecond MLflow takes the larger for the last
        self._last_time = max(_now(), self._last_time + 1)
        rows = [[_in_section(_name(key), section), value, self._last_time, int(step or 0)]
                for key, value in numbers.items()]
        self._record("metrics", rows=rows)
        if section == "report":
            self._numbers |= numbers
            self._describe()

    def image(self, image, key: str, step: int) -> None:
        """Record one picture of a series: (H,W,3) uint8 array or PIL image.

        MLflow shows it by step, in a section that comes before those of the metrics.
        """
        self._record("image", lambda place: _enlarged(image).save(place / "image.png"),
                     key=PICTURES + _name(key), step=int(step), time=_now())

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file as it is now, under `folder` of the run; a notebook also as HTML, for MLflow's pages."""
        self._record("files", lambda place: shutil.copy(path, place), to=folder)

    def model(self, *folders: Path) -> None:
        """Record a model for `mlflow.pyfunc.load_model`: its folder, then those that it needs beside."""
        def keep(place: Path) -> None:
            for folder in folders:
                shutil.copytree(folder, place / folder.name)

        self._record("model", keep, main=folders[0].name)

    def begin(self) -> None:
        """Begin the run before anything else is recorded."""
        if self._journal and not self._began:
            self._began = True
            self._safely(self._begin)
            if not self._opened:
                self._journal = None  # nothing can be recorded, which is said

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: "FINISHED", "FAILED" or "KILLED"; wait a little until all is sent."""
        if not self._opened:
            return
        self._end(status)
        if self._sender:
            with suppress(subprocess.TimeoutExpired):
                self._sender.wait(END_SECONDS)
        if self._journal.exists():
            print(f"Not all that {self._name} recorded is in MLflow yet: it waits in .tracking/outbox, and the next "
                  f"stage or {SYNC} sends it.", file=sys.stderr, flush=True)

    def _begin(self) -> None:
        root, experiment = self._root, os.environ.get("DVC_EXP_NAME", "")
        differing = describe.in_words(describe.changed(root, self._params))
        new = self._journal.begin({
            "name": describe.run_name(self._name, experiment, differing),
            "uri": os.environ.get("MLFLOW_TRACKING_URI"), "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME"),
            "began": _now(), "group": describe.group(root)})
        self._opened = True
        if not new:
            return
        earlier = _open_runs.get((str(root), self._name))
        if earlier:  # a cell of a notebook was run again
            earlier._end("KILLED")
        _open_runs[str(root), self._name] = self
        params = describe.flatten(self._params)
        self._record("params", rows=[[_name(key), _text(value)] for key, value in params.items()])
        self._record("tags", rows=list(describe.provenance(root, self._name).items()))
        self._describe()
        for each in describe.datasets_read(root) if self._name != "prepare" else ():
            self._record("input", **each)
        self._sender = start_sender(self._journal)

    def _describe(self) -> None:
        text = describe.description(self._root, self._name, self._numbers)
        self._record("tags", rows=[["mlflow.note.content", text]])

    def _end(self, status: str) -> None:
        self._opened = False
        self._safely(lambda: self._journal.append("end", status=status, time=_now()))
        self._journal.close()
        _open_runs.pop((str(self._root), self._name), None)

    def _record(self, kind: str, write: Callable[[Path], Any] | None = None, **content: Any) -> None:
        self.begin()
        if self._opened:
            self._safely(lambda: self._journal.append(kind, write, **content))

    def _safely(self, job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception as error:
            if not self._warned:
                self._warned = True
                reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
                print(f"Something could not be recorded for MLflow ({reason[:200]}); the work goes on without it.",
                      file=sys.stderr, flush=True)


def start_run(root: str | Path, stage_name: str, params: Mapping | None = None) -> Run:
    """The run of a stage's execution, or the one that TESSERAE_RUN_ID names. It begins when something is recorded.

    params: nested mappings, recorded under dotted keys. What another run of this process records for the same stage
    ends then. Nothing here raises or waits because of the store.
    """
    joined = os.environ.get(RUN_VARIABLE)
    if joined == "":  # the pipeline wants none
        return silent_run()
    return Run(Journal(outbox(real_root(root)) / (joined or new_key(stage_name))), root, stage_name, params)


def silent_run() -> Run:
    """A run that records nothing, for all processes but the first."""
    return Run(None)


def start_sender(journal: Journal) -> subprocess.Popen:
    """A process that sends the journal, and gives up soon where the store does not answer: what fails waits."""
    return subprocess.Popen([sys.executable, "-m", "tesserae.tracking.sender", str(journal.folder)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=IMPATIENT | os.environ,
                            start_new_session=True)  # so that Ctrl-C does not reach it


def _now() -> int:
    """Milliseconds, as MLflow counts."""
    return int(time.time() * 1000)


def _in_section(key: str, section: str) -> str:
    return f"val/{key.removeprefix('val_')}" if key.startswith("val_") else f"{section}/{key}"


def _name(key: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", str(key))[:240]


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:VALUE_LENGTH]


def _enlarged(image):
    """A PIL image of what may be an array, with pixels that are squares of pixels where it is small."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.asarray(image))
    factor = max(1, SHOWN_PIXELS // picture.width)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
