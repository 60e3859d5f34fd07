"""What this machine's processor is quick at, asked of oneDNN or timed; and whether code can be compiled here."""

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


def has_bf16() -> bool:
    """Whether oneDNN computes in bf16 here; without it each number is turned to fp32 and back by itself, which takes
    tens of times as long as fp32."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and supported()


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


def times_as_fast(usual: Callable[[], object], other: Callable[[], object]) -> float:
    """How many times as fast as `usual` the other is.

    In turn and each at its best of eight: others may be at work, and what depends on it should be so each time.
    """
    seconds = [(_seconds(usual), _seconds(other)) for _ in range(8)]
    return min(pair[0] for pair in seconds) / min(pair[1] for pair in seconds)


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
