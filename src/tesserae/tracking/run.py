"""One run a stage execution, whatever happens to the store: records go to a journal, another process sends them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.tracking import describe
from tesserae.tracking.journal import Journal, in_words, new_key, outbox
from tesserae.tracking.store import IMPATIENT, PICTURES, experiment_name, real_root

RUN_VARIABLE = "TESSERAE_RUN_ID"  # set by the pipeline: the notebook's kernel joins that run
END_SECONDS = 60.0  # wait at the end of a run for what is not sent yet
SHOWN_PIXELS = 1024  # small pictures are enlarged to about this width, by whole numbers
SYNC = "python -m tesserae.tracking sync"

_open_runs: dict[tuple[str, str], Run] = {}


class Run:
    """One MLflow run, which begins with the first thing that is recorded.

    Its methods return at once and never raise: what they record waits on disk until it is sent. journal: None where
    nothing is recorded.
    """

    def __init__(self, journal: Journal | None, root: str | Path = ".", name: str = "", params: Mapping | None = None,
                 tags: Mapping | None = None):
        self._journal, self._root, self._name = journal, root, name
        self._params, self._tags = params or {}, tags or {}
        self._numbers: dict[str, float] = {}
        self._began = self._opened = self._warned = False
        self._id: str | None = None
        self._sender: subprocess.Popen | None = None
        self._last_time = 0  # of the newest metrics, in milliseconds

    @property
    def key(self) -> str | None:
        """The journal's name, by which another process may join the run; None where nothing is recorded."""
        return self._journal.key if self._journal else None

    @property
    def id(self) -> str | None:
        """The run's id in the store, once it is known."""
        if self._journal and self._id is None:
            self._id = self._journal.sent.get("run_id")
            if self._id is None and self._sender and self._sender.poll() is not None:
                self._id = self._sender.stdout.readline().strip() or None
        return self._id

    def metrics(self, values: Mapping[str, Any], step: int | None = None, section: str = "train") -> None:
        """Record numbers, nested mappings with dots between; what is not a number is left out.

        MLflow's pages show them by section: val_* under "val/", all others under `section`. Those of the section
        "report" are a stage's results, which the run's description shows.
        """
        # of metrics of one step and one millisecond MLflow takes the larger for the last
        self._last_time = now = max(int(time.time() * 1000), self._last_time + 1)
        rows = []
        for key, value in describe.flatten(values).items():
            if isinstance(value, (int, float)) or hasattr(value, "item"):
                with suppress(TypeError, ValueError):
                    rows.append([_in_section(_name(key), section), float(value), now, int(step or 0)])
                    if section == "report":
                        self._numbers[key] = float(value)
        if rows:
            self._record({"kind": "metrics", "rows": rows})
        if rows and section == "report":
            self.tags({"mlflow.note.content": describe.description(self._root, self._name, self._numbers)})

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters, nested mappings with dots between. A value once recorded stays."""
        flat = {_name(key): _text(value) for key, value in describe.flatten(values).items()}
        if flat:
            self._record({"kind": "params", "values": flat})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record tags, over those of the same name."""
        if values:
            texts = {_name(key): _text(value, describe.TAG_LENGTH) for key, value in values.items()}
            self._record({"kind": "tags", "values": texts})

    def figure(self, figure, name: str) -> None:
        """Record a matplotlib figure or a PIL image as `figures/<name>`, for instance "usage.png"."""
        self._record_files("files", lambda: {name: _png(_as_pil(figure))}, to="figures")

    def image(self, image, key: str, step: int) -> None:
        """Record one picture of a series: (H,W,3) uint8 array or PIL image.

        MLflow shows it by step, in a section that comes before those of the metrics.
        """
        self._record_files("image", lambda: {"image.png": _png(_enlarged(_as_pil(image)))},
                           key=PICTURES + _name(key), step=int(step), at_ms=int(time.time() * 1000))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file or the content of a folder as it is now, under `folder` of the run.

        Beside an executed notebook MLflow gets it as HTML, which its pages show.
        """
        def content() -> dict[str, Path]:
            whole = Path(path).resolve(strict=True)
            return {each.name: each for each in whole.iterdir()} if whole.is_dir() else {whole.name: whole}

        self._record_files("files", content, to=folder)

    def model(self, *folders: Path) -> None:
        """Record a model for `mlflow.pyfunc.load_model`: its folder, then those that it needs beside."""
        self._record_files("model", lambda: {f"{each.name}/{name}": each / name for each in folders
                                             for name in ("config.json", "model.safetensors")}, main=folders[0].name)

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
        self.flush()
        if self._journal.exists():
            print(f"Not sent to MLflow yet: {in_words(self._journal.waiting()) or 'how this run ended'}. It waits in "
                  f".tracking/outbox, and the next stage or {SYNC} sends it.", file=sys.stderr, flush=True)

    def flush(self, seconds: float = END_SECONDS) -> None:
        """Wait until all is sent, or the store has failed, or the time is up; not where another process sends it."""
        end, size = time.monotonic() + seconds, self._journal.size() if self._journal else 0
        while self._sender and self._sender.poll() is None and time.monotonic() < end:
            if self._opened:  # else the sender ends by itself
                sent = self._journal.sent
                if sent.get("problem") or sent.get("seen", 0) >= size:
                    return
            time.sleep(0.05)

    def _begin(self) -> None:
        root, experiment = self._root, os.environ.get("DVC_EXP_NAME", "")
        differing = describe.changed(root, self._params)
        new = self._journal.begin({
            "name": describe.run_name(self._name, experiment, describe.in_words(differing)),
            "uri": os.environ.get("MLFLOW_TRACKING_URI") or None, "experiment": experiment_name(),
            "began": int(time.time() * 1000), "group": describe.group(root)})
        self._opened = True
        if not new:
            return
        earlier = _open_runs.get((str(root), self._name))
        if earlier:  # a cell of a notebook was run again
            earlier._end("KILLED")
        _open_runs[str(root), self._name] = self
        every = json.dumps(describe.flatten(self._params), default=str)
        if len(every) <= describe.TAG_LENGTH:
            self.params(describe.main_params(self._params, differing))
            self.tags({describe.PARAMS_TAG: every})
        else:
            self.params(self._params)
        self.tags({"mlflow.note.content": describe.description(root, self._name, {}),
                   **describe.provenance(root, self._name, self._params), **self._tags})
        for each in describe.datasets_read(root) if self._name != "prepare" else ():
            self._record({"kind": "input", **each})
        self._sender = start_sender(self._journal)

    def _end(self, status: str) -> None:
        self._opened = False
        self._safely(lambda: self._journal.append({"kind": "end", "status": status, "at": int(time.time() * 1000)}))
        self._journal.close()
        _open_runs.pop((str(self._root), self._name), None)

    def _record(self, record: dict[str, Any]) -> None:
        self.begin()
        if self._opened:
            self._safely(lambda: self._journal.append(record))

    def _record_files(self, kind: str, content: Callable[[], dict], **more: Any) -> None:
        self.begin()
        if self._opened:
            self._safely(lambda: self._journal.append_files(kind, content(), **more))

    def _safely(self, job: Callable[[], Any]) -> None:
        try:
            job()
        except Exception as error:
            if not self._warned:
                self._warned = True
                reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
                print(f"Something could not be recorded for MLflow ({reason[:200]}); the work goes on without it.",
                      file=sys.stderr, flush=True)


def start_run(root: str | Path, stage_name: str, params: Mapping | None = None, tags: Mapping | None = None) -> Run:
    """The run of a stage's execution, or the one that TESSERAE_RUN_ID names. It begins when something is recorded.

    params: nested mappings, recorded under dotted keys. tags: joined to those of `provenance`. What another run of
    this process records for the same stage ends then. Nothing here raises or waits because of the store.
    """
    joined = os.environ.get(RUN_VARIABLE)
    if joined == "":  # the pipeline wants none
        return silent_run()
    folder = outbox(real_root(root)) / (joined or new_key(stage_name))
    return Run(Journal(folder), root, stage_name, params, tags)


def silent_run() -> Run:
    """A run that records nothing, for all processes but the first."""
    return Run(None)


def start_sender(journal: Journal) -> subprocess.Popen:
    """A process that sends the journal, and gives up soon where the store does not answer: what fails waits."""
    return subprocess.Popen([sys.executable, "-m", "tesserae.tracking.sender", str(journal.folder)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                            env=IMPATIENT | os.environ, start_new_session=True)  # so that Ctrl-C does not reach it


def _in_section(key: str, section: str) -> str:
    return f"val/{key.removeprefix('val_')}" if key.startswith("val_") else f"{section}/{key}"


def _name(key: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", str(key))[:240]


def _text(value: Any, limit: int = 6000) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:limit]


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _enlarged(image):
    factor = max(1, SHOWN_PIXELS // image.width)
    return image.resize((image.width * factor, image.height * factor), 0) if factor > 1 else image  # 0: nearest pixel


def _as_pil(image):
    """Matplotlib figure, array or PIL image -> PIL image."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", bbox_inches="tight")
        return Image.open(buffer)
    import numpy as np

    return Image.fromarray(np.array(image))
