"""One process at a time writes a folder."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tesserae.errors import TesseraeError

WAIT_SECONDS = 15.0  # for one that is just ending


@contextmanager
def held(folder: Path, here: bool = True) -> Iterator[None]:
    """Hold `folder` for this process; of several that train together only the one with `here` does.

    The lock is the system's: it goes with the process, however that ends. Raises TesseraeError, naming who holds it.
    """
    if not here:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    card = folder.with_name(f"{folder.name}.holder")
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise TesseraeError(
            f"{folder.parent.name}/{folder.name} is being written by {_holder(card)}: wait until that ends or stop "
            "it, then run again."
        ) from None
    try:
        card.write_text(json.dumps(_this_process()), encoding="utf-8")
        yield
    finally:
        card.unlink(missing_ok=True)
        lock.release()


def _this_process() -> dict[str, str | int]:
    return {"what": "a notebook" if "ipykernel" in sys.modules else "a training", "process": os.getpid(),
            "parent": os.getppid(), "since": time.strftime("%H:%M:%S")}


def _holder(card: Path) -> str:
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
        return "{what} (process {process}, started by process {parent}, at work since {since})".format(**found)
    except (OSError, ValueError, KeyError, AttributeError):
        return "another process"
