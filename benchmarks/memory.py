"""Memory of this process, in bytes; on a GPU that of its tensors."""

from __future__ import annotations

import os
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path

import torch


def forget_peak(device: str) -> None:
    """Let the peak of memory begin now, where the system can."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # else what preparing took counts, too
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: str) -> int:
    """The highest memory since `forget_peak`: of the process, on a GPU of its tensors."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Own:
    """The highest memory of this process's own while the context lasts, sampled: without pages of files, which the
    system takes back when it needs them. Where the system does not tell these apart, all that is resident."""

    def __enter__(self) -> Own:
        self.peak, self.over = own_bytes(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.05):
            self.peak = max(self.peak, own_bytes())


def own_bytes() -> int:
    """Memory that no file stands behind."""
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("RssAnon:")[1].split()[0])
    return resident_bytes("cpu")


def release(device: str) -> None:
    """Give a GPU's memory that is not in use to the other sides."""
    if device == "cuda":
        torch.cuda.empty_cache()


def resident_bytes(device: str) -> int:
    """Memory held at this moment."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes(device)
