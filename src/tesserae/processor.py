"""What this machine's processor is quick at, by timing it; and whether code can be compiled here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

EMULATED = 0.1  # bf16 is some 100 times as slow as fp32 where each number is turned to fp32 and back by itself


def emulates_bf16() -> bool:
    """Whether this processor lacks instructions for bf16: a small product takes ten times as long as in fp32."""
    return _bf16_speed(256, rounds=3) < EMULATED


def bf16_speed() -> float:
    """How many times as fast as in fp32 large matrix products are in bf16 here; 0 where it is emulated."""
    return 0.0 if emulates_bf16() else _bf16_speed(1024, rounds=8)


def _bf16_speed(size: int, rounds: int) -> float:
    fp32, bf16 = (torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    return times_as_fast(lambda: fp32 @ fp32, lambda: bf16 @ bf16, rounds)


def cxx_error() -> str | None:
    """Why the C++ compiler that torch.compile takes, CXX or else the system's, is of no use; None where it is.

    A program that reads Python's headers is compiled, for kernels are called from Python and need them, too.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <Python.h>\n#include <vector>\nint main() { return 0; }\n")
        command = [*shlex.split(compiler), "-c", str(source), "-o", str(source.with_suffix(".o")),
                   f"-I{sysconfig.get_paths()['include']}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler} does not run ({getattr(error, 'strerror', None) or 'it takes too long'})"
    if not done.returncode:
        return None
    lines = done.stderr.splitlines() or ["without a word"]
    return f"{compiler} fails ({next((line for line in lines if 'error' in line), lines[0]).strip()[:120]})"


def times_as_fast(usual: Callable[[], object], other: Callable[[], object], rounds: int = 8) -> float:
    """How many times as fast as `usual` the other is.

    In turn and each at its best of `rounds`: others may be at work, and what depends on it should be so each time.
    """
    seconds = [(_seconds(usual), _seconds(other)) for _ in range(rounds)]
    return min(pair[0] for pair in seconds) / min(pair[1] for pair in seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
