"""Who starts a stage and dies takes its kernel along: real processes, real signals."""

import os
import shlex
import subprocess
import sys
import time

import psutil
import pytest
from test_runner import COMMAND, write_notebook

SLEEPER = "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(120)"


def gone(process: psutil.Process, seconds: float = 8) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def started(command, clone, **environment) -> tuple[subprocess.Popen, psutil.Process]:
    """The process, and the kernel of its notebook once a cell runs in it."""
    process = subprocess.Popen(command, cwd=clone.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "PYTHONPATH": str(clone.root / "src"), "TESSERAE_RUN_ID": "",
                                    **environment})
    for line in process.stdout:
        if line.startswith("kernel "):
            return process, psutil.Process(int(line.split()[1]))
    raise AssertionError("no kernel was started")


def test_killing_the_pipeline_ends_its_kernel(clone):
    write_notebook(clone.root, SLEEPER)
    process, kernel = started(COMMAND, clone)
    process.kill()
    process.wait()
    assert gone(kernel)


@pytest.mark.parametrize("shell", [False, True], ids=["directly", "through a shell"])
def test_killing_dvc_ends_pipeline_and_kernel(clone, shell):
    """What starts the stage here behaves as dvc does; a shell that stays in between hears of nothing."""
    write_notebook(clone.root, SLEEPER)
    inner = ["sh", "-c", shlex.join(COMMAND) + "; true"] if shell else list(COMMAND)
    process, kernel = started([sys.executable, "-c", f"import subprocess; subprocess.run({inner!r})"], clone,
                              DVC_STAGE="vqgan@image")
    pipeline = kernel.parent()
    assert "tesserae.pipeline" in pipeline.cmdline()
    process.kill()
    process.wait()
    assert gone(pipeline)
    assert gone(kernel)


def test_a_stage_that_a_user_starts_outlives_the_shell(clone):
    """`nohup python -m tesserae.pipeline ... &` and good night."""
    write_notebook(clone.root, SLEEPER)
    process, kernel = started([sys.executable, "-c", f"import subprocess; subprocess.run({list(COMMAND)!r})"], clone)
    pipeline = kernel.parent()
    process.kill()
    process.wait()
    time.sleep(1.5)
    assert kernel.is_running()
    pipeline.kill()
    assert gone(kernel)
