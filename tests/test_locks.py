"""One run at a time writes a folder: two trainings of one kind, for instance, their checkpoints."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from tesserae import locks
from tesserae.errors import TesseraeError
from tesserae.locks import held


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    code = (f"from pathlib import Path; from tesserae.locks import held\n"
            f"with held(Path({str(tmp_path / 'vqgan-image-0')!r}), 'a training'):\n    print(1, flush=True); input()")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_the_second_says_who_is_first(tmp_path, other, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.2)
    with pytest.raises(TesseraeError) as caught, held(tmp_path / "vqgan-image-0", "a test"):
        pytest.fail("both have it")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path.name}/vqgan-image-0 is being written by a training (process {other.pid}, "
                           f"started by process {os.getpid()}, at work since ")
    assert text.endswith(f": wait until it ends or stop it with kill {other.pid}, then run again.")


def test_another_folder_is_free(tmp_path, other):
    with held(tmp_path / "vqgan-image-1", "a test"):
        assert other.poll() is None


def test_the_second_waits_for_one_that_ends(tmp_path, other):
    threading.Timer(0.3, lambda: other.communicate(b"\n")).start()
    with held(tmp_path / "vqgan-image-0", "a test"):
        assert other.wait() == 0


def test_a_holder_that_is_killed_holds_nothing(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with held(tmp_path / "vqgan-image-0", "a test"):
        assert (tmp_path / ".vqgan-image-0.lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_it_is_free_again_after_a_failure(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), held(tmp_path / "x", "a test"):
            1 / 0  # noqa: B018
