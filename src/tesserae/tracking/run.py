"""One run a stage execution, whatever happens to the store: records go to the outbox, a thread sends them on."""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesserae.tracking.outbox import Box, Outbox, Writer
from tesserae.tracking.provenance import flatten, provenance
from tesserae.tracking.sending import BATCH
from tesserae.tracking.store import real_root
from tesserae.tracking.thread import Sender

RUN_VARIABLE = "TESSERAE_RUN_ID"  # set by pipeline.py: the notebook's kernel joins that run
THUMBNAIL = 256  # pixels: MLflow's overviews show these


class Run:
    """One MLflow run. Its methods return at once and never raise: what they record waits on disk until it is sent.

    key: the run's name in the outbox, by which another process may join it. Both None where nothing is recorded.
    """

    def __init__(self, box: Box | None, sender: Sender | None = None):
        self._box, self._sender = box, sender
        self._writer: Writer | None = None
        self._warned = self._sending = False
        self._told = 0  # when numbers were recorded last, in milliseconds
        self.key = box.key if box else None
        if box:
            self._safely(lambda: setattr(self, "_writer", box.writer()))

    @property
    def id(self) -> str | None:
        """The run's id in the store, once it is known."""
        return self._box.run_id if self._box else None

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers, nested mappings with dots between; what is not a number is left out."""
        # of numbers of one step and one millisecond MLflow shows the larger as the last
        self._told = now = max(int(time.time() * 1000), self._told + 1)
        rows = []
        for key, value in flatten(values).items():
            if isinstance(value, (int, float)) or hasattr(value, "item"):
                try:
                    rows.append([_name(key), float(value), now, int(step or 0)])
                except (TypeError, ValueError):
                    continue
        for start in range(0, len(rows), BATCH):
            self._fact("metrics", rows=rows[start:start + BATCH])

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters, nested mappings with dots between. A value once recorded stays."""
        self._fact("params", values={_name(key): _text(value) for key, value in flatten(values).items()})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record tags, over those of the same name."""
        self._fact("tags", values={_name(key): _text(value, 5000) for key, value in values.items()})

    def figure(self, figure, name: str) -> None:
        """Record a matplotlib figure or a PIL image as `figures/<name>`, for instance "usage.png"."""
        self._files(lambda: {name: _encoded(_as_pil(figure), "png")}, "figures")

    def image(self, image, key: str, step: int) -> None:
        """Record one picture of a series: (H,W,3) uint8 array or PIL image. MLflow shows it by step."""
        mark = f"{_name(key).replace('/', '~')}+step+{int(step)}+timestamp+{int(time.time() * 1000)}+{uuid.uuid4()}"

        def content() -> dict[str, bytes]:
            whole = _as_pil(image)
            longest = max(whole.size)
            small = whole.resize([max(1, side * THUMBNAIL // longest) for side in whole.size])
            return {f"{mark}.png": _encoded(whole, "png"), f"{mark}+compressed.webp": _encoded(small, "webp")}

        self._files(content, "images", series=True)

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file or a whole folder as it is now, under `folder` of the run."""
        self._files(lambda: Path(path).resolve(strict=True), folder)

    def send(self) -> None:
        """Begin to send, in a thread; nothing where that has begun, or where another process does it."""
        if self._sender and not self._sending:
            self._sending = True
            self._sender.start()
            atexit.register(self._sender.leave)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: "FINISHED", "FAILED" or "KILLED"; wait a little until all is sent."""
        if self._box and self._writer:
            self._safely(lambda: self._box.end(status))
            self._safely(self._writer.close)
            self._writer = None
        self.send()
        if self._sender:
            self._sender.finish()

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything is sent, or the store has failed, or the time is up.

        A run that was joined is sent by the process that started it: nothing is waited for.
        """
        if self._sender:
            self._sender.flush(seconds)

    def _fact(self, kind: str, **content: Any) -> None:
        if self._writer and any(content.values()):
            self._safely(lambda: self._writer.fact({"kind": kind, **content}))

    def _files(self, content, to: str | None, **more: Any) -> None:
        if self._writer:
            self._safely(lambda: self._writer.files(to, content(), **more))

    def _safely(self, job) -> None:
        try:
            job()
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            print(f"Something could not be recorded for MLflow ({reason[:200]}); the work goes on without it.",
                  file=sys.stderr, flush=True)


def start_run(
    root: str | Path,
    stage_name: str,
    params: Mapping | None = None,
    tags: Mapping | None = None,
    send: bool = True,
) -> Run:
    """Start the run of a stage's execution, or join the one that TESSERAE_RUN_ID names.

    params: nested mappings, recorded under dotted keys. tags: joined to those of `provenance`. send: False to leave
    it to the run's `send`, since the import of MLflow takes seconds.
    Neither raises nor waits because of the store: what is recorded goes to the outbox first.
    """
    params = params or {}
    joined = os.environ.get(RUN_VARIABLE)
    if joined == "":  # the pipeline could not start one, and has said so
        return silent_run()
    home = real_root(root)
    outbox = Outbox(home)
    try:
        box = outbox.box(joined) if joined else None
        begun = box is not None
        if box is None:
            uri = os.environ.get("MLFLOW_TRACKING_URI") or None
            header = {"name": stage_name, "uri": uri, "began": int(time.time() * 1000)}
            box = outbox.new(header | ({"run_id": joined, "ends": False} if joined else {}))
    except OSError as error:
        run = silent_run()
        run._warn(error)
        return run
    sender = None if begun else Sender(home, box)
    run = Run(box, sender)
    run.params(params)
    run.tags({**provenance(root, stage_name, params), **(tags or {})})
    if send:
        run.send()
    return run


def silent_run() -> Run:
    """A run that records nothing, for all processes but the first."""
    return Run(None)


def _name(key: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", str(key))[:250]


def _text(value: Any, limit: int = 6000) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:limit]


def _encoded(image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


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
