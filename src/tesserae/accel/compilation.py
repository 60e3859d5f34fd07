"""torch.compile in training: `compile: auto | on`. `compile: off` leaves it out."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tesserae.errors import TesseraeError


def compiles(setting: str, device: torch.device, log: Callable[[str], None] = print) -> bool:
    """Whether networks are compiled in training; `setting` as in params.yaml. auto: on a GPU, where minutes of
    compiling are soon made up for.

    Compiling needs a C++ compiler, which is tried before anything is trained: without one auto goes on uncompiled,
    with a message, and on raises TesseraeError.
    """
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    error = cxx_error()
    if error and setting == "on":
        raise TesseraeError(f"compile: on needs a C++ compiler, and {error}: install one (g++, or clang++ on a Mac), "
                            "name it in CXX, or set compile: auto or off.")
    if error:
        log(f"Networks stay uncompiled, which is slower: {error}. Install a C++ compiler, or set compile: off.")
    return not error


def uncompiled() -> contextlib.AbstractContextManager:
    """Compiled networks run as they are written meanwhile: for shapes other than training's, which are rare."""
    return torch.compiler.set_stance("force_eager")


def cxx_error() -> str | None:
    """Why the C++ compiler that torch.compile takes, CXX or else the system's, is of no use; None where it is.

    It compiles a program that reads Python's headers: kernels are called from Python and need them, too.
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
    lines = done.stderr.splitlines() or ["without a message"]
    return f"{compiler} fails ({next((line for line in lines if 'error' in line), lines[0]).strip()[:120]})"
