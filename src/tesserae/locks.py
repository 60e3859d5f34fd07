"""One run at a time writes a folder, be it of one process or of several that share the work."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from tesserae.errors import TesseraeError

WAIT_SECONDS = 10.0  # for a run that is just ending


@contextmanager
def held(folder: Path, what: str, run: str | None = None) -> Iterator[None]:
    """Hold `folder`: alone, or together with all processes of the same `run`.

    The lock is the system's: it ends with the process, however the process ends. what: names this process to others,
    who are refused. Raises TesseraeError, which names the holder, and OSError where no file can be made beside
    `folder`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    until = time.monotonic() + WAIT_SECONDS
    while (file := _acquired(path, what, run)) is None:
        if time.monotonic() > until:
            raise TesseraeError(f"{folder.parent.name}/{folder.name} is being written by {_holder(path)}, then run "
                                "again.")
        time.sleep(0.1)
    try:
        yield
    finally:
        with file:
            if _locked(file, fcntl.LOCK_EX):  # the last process of its run
                path.unlink(missing_ok=True)


def run_of(environment: Mapping[str, str]) -> str | None:
    """What names a run of several processes, as torchrun and its like start them; None for one process."""
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return None
    return " ".join(environment.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))


def _acquired(path: Path, what: str, run: str | None) -> IO[str] | None:
    """The file, locked; None where another run holds it."""
    file = path.open("a+", encoding="utf-8")
    if _locked(file, fcntl.LOCK_EX) and os.fstat(file.fileno()).st_nlink:  # else it was removed in the meantime
        file.truncate(0)
        file.write(json.dumps(_card_of_this_process(what, run)))
        file.flush()
        if run is None or _locked(file, fcntl.LOCK_SH):
            return file
    elif run is not None and _locked(file, fcntl.LOCK_SH) and _read_card(path).get("run") == run:
        return file
    file.close()
    return None


def _locked(file: IO[str], kind: int) -> bool:
    """Take the lock and return True, or False where another process has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _card_of_this_process(what: str, run: str | None) -> dict[str, str | int | None]:
    return {"what": what, "process": os.getpid(), "parent": os.getppid(), "host": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"), "run": run}


def _read_card(path: Path) -> dict:
    """What the holder wrote of itself, {} where that cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _holder(path: Path) -> str:
    try:
        card = _read_card(path)
        where = "" if card["host"] == platform.node() else f" on {card['host']}"
        stop = card["process"] if card["run"] is None else card["parent"]
        who = f"process {card['process']}{where}, started by process {card['parent']}, at work since {card['since']}"
        return f"{card['what']} ({who}): wait until it ends or stop it{where} with kill {stop}"
    except KeyError:
        return "another process: wait until it ends"
