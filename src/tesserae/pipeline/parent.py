"""A stage ends with the dvc that started it: left alone, it would go on beside the next `dvc repro`."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

POLL_SECONDS = 0.3
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "tcsh", "csh", "ash", "busybox"}  # dvc starts stages by one


def end_with_dvc() -> None:
    """End this process when the dvc that started it is dead; nothing where a user started it.

    Its notebook's kernel ends with it: Jupyter's kernels watch the process that started them.
    """
    if not os.environ.get("DVC_STAGE"):
        return
    ancestors = []
    for ancestor in psutil.Process().parents():
        ancestors.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    threading.Thread(target=_watch, args=(ancestors,), name="parent", daemon=True).start()


def _watch(ancestors: list[psutil.Process]) -> None:
    while all(map(_lives, ancestors)):
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # it ended in between
        return False
