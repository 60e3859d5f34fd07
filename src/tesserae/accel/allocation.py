"""Memory of tensors that were let go: kept for the next ones.

glibc maps every large block afresh and gives it back when it is freed. A step of training makes and frees the same
hundreds of large tensors each time, and the kernel fills each of their pages with zeros again: with 256x256 pictures
that took nearly half of a step. So the C library is told to keep what it has until it is asked to give it back.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of mallopt, as in malloc.h
NEVER, NONE = -1, 0


def keep_freed_memory() -> bool:
    """From now on this process keeps freed memory for its next tensors; whether it could be arranged.

    On Linux with glibc alone; other allocators are left as they are.
    """
    mallopt = _of_glibc("mallopt")
    # the heap's end would be given back, and mapped blocks are
    return mallopt is not None and all([mallopt(TRIM_THRESHOLD, NEVER), mallopt(MMAP_MAX, NONE)])


def give_back_memory() -> None:
    """Return memory that no tensor holds to the system, where it was kept."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str):
    if not sys.platform.startswith("linux"):
        return None
    process = ctypes.CDLL(None)
    return getattr(process, name, None) if hasattr(process, "gnu_get_libc_version") else None
