"""The process that runs a notebook's cells for pipeline.py: it never outlives what started it.

    python -m tesserae.pipeline.kernel -f connection.json --import torch pandas

Jupyter gives a kernel its own session, so no signal to the pipeline's group reaches it. Left alone after `kill -9`,
it would go on training, beside the next run of the same stage.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

POLL_SECONDS = 0.5
EARLY = "--import"
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "tcsh", "csh", "ash", "busybox"}
PREFIX, LIVES = "kernel-", "lives"  # of the folders of kernels' sockets, and the lock in each
SOCKET_BYTES = 103  # a socket's path, on the system that bears least (macOS; Linux: 107)
SHORT = ("/tmp", "/var/tmp")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """End this process by SIGKILL when its parent is dead; at once where process `parent` is no longer that."""
    parent = parent or os.getppid()
    _ask_linux()
    if os.getppid() != parent:  # it died before it was asked
        _die()
    _watch(lambda: os.getppid() == parent)


def die_with_dvc() -> None:
    """The same for `dvc`, which starts stages through a shell that may stay in between."""
    import psutil

    line = []
    for ancestor in psutil.Process().parents():
        line.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    if len(line) == 1:
        _ask_linux()
    _watch(lambda: all(ancestor.is_running() and ancestor.status() != psutil.STATUS_ZOMBIE for ancestor in line))


def _ask_linux() -> None:
    """Linux kills a process with its parent, if asked, even one that is stuck in a library."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _watch(well: Callable[[], bool]) -> None:
    """Elsewhere, and where there is a shell in between, a thread looks."""

    def work() -> None:
        while True:
            try:
                if not well():
                    _die()
            except Exception:  # a process that vanishes while it is asked about
                _die()
            time.sleep(POLL_SECONDS)

    threading.Thread(target=work, name="parent", daemon=True).start()


def _die() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
    os._exit(1)


def import_early(modules: Iterable[str]) -> None:
    """Import what the cells will, which takes seconds; a module that fails is left for its cell to speak of."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # before matplotlib reads it
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


@contextlib.contextmanager
def scratch_folder() -> Iterator[tuple[Path, bool]]:
    """A temporary folder for a kernel's sockets, and whether its path is short enough for them to be files.

    Where TMPDIR is too long, it lies in /tmp. What kernels left there whose pipeline was killed is removed.
    """
    from filelock import FileLock, Timeout

    places = [Path(tempfile.gettempdir())]
    if not _short(places[0]):
        places += [place for place in map(Path, SHORT) if os.access(place, os.W_OK | os.X_OK)]
    place = next(filter(_short, places), places[0])
    for rest in place.glob(f"{PREFIX}*/{LIVES}"):
        with contextlib.suppress(OSError, Timeout):
            if rest.stat().st_uid == os.getuid() and time.time() - rest.stat().st_mtime > 1:  # else it just begins
                with FileLock(rest).acquire(timeout=0):  # held for as long as its pipeline lives
                    shutil.rmtree(rest.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True) as folder, \
            FileLock(Path(folder) / LIVES):
        yield Path(folder), _short(place)


def _short(place: Path) -> bool:
    return len(os.fsencode(place / f"{PREFIX}12345678" / "k.json-ipc-12")) <= SOCKET_BYTES


def main() -> None:
    """An IPython kernel, as `python -m ipykernel_launcher` gives it; names after --import are imported first."""
    die_with_parent(int(os.environ.get("JPY_PARENT_PID") or 0))
    if sys.path[0] in ("", os.getcwd()):  # IPython puts it where it belongs
        del sys.path[0]
    if EARLY in sys.argv:
        place = sys.argv.index(EARLY)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        try:
            import_early(sys.argv[place + 1:])
        except KeyboardInterrupt:
            sys.exit(130)
        del sys.argv[place:]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


if __name__ == "__main__":
    main()
