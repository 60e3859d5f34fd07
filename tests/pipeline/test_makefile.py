"""make: what is missing is said in a sentence, what is done is not done again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("setup", "data", "repro", "test", "lint", "lab", "ui", "bench")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "a clone"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def make(folder: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess:
    environment = {"PATH": path or os.environ["PATH"], "HOME": str(folder)}
    command = [shutil.which("make"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_without_arguments_it_lists_its_targets(folder):
    text = make(folder).stdout
    for target in TARGETS:
        assert f"make {target}" in text


def test_an_old_python_is_refused_in_a_sentence(folder, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "grep", "echo", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    for name in ("python3", "python3.11"):
        (tools / name).write_text("#!/bin/sh\nexit 1\n")  # as a shim does, or a version below 3.11
        (tools / name).chmod(0o755)
    done = make(folder, "test", path=str(tools))
    assert done.returncode != 0
    assert "No Python 3.11 or later with its venv module was found: install one" in done.stderr
    assert not (folder / ".venv").exists()


def test_a_second_set_up_does_nothing_until_the_pins_change(folder):
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    os.utime(folder / "requirements.lock", (1, 1))
    os.utime(folder / "pyproject.toml", (1, 1))
    (folder / ".venv/.installed").touch()
    assert "Nothing to be done" in make(folder, "setup").stdout
    os.utime(folder / "requirements.lock")
    os.utime(folder / ".venv/.installed", (2, 2))
    assert "-r requirements.lock" in make(folder, "--dry-run", "setup").stdout


@pytest.mark.parametrize("target", TARGETS[1:])
def test_every_target_sets_up_first(folder, target):
    text = make(folder, "--dry-run", target).stdout
    assert text.index("-m venv") < text.index("-r requirements.lock") < len(text) - 1
    assert text.rstrip().splitlines()[-1].startswith(
        {"data": "\t|| .venv/bin/python -m tesserae.data.scenes", "repro": "dvc repro"}.get(target, "")
    )


def test_data_that_is_there_stays(folder):
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to("/bin/false")
    (folder / ".venv/.installed").touch()
    (folder / "data").mkdir()
    (folder / "data/mine.png").touch()
    assert make(folder, "data").returncode == 0
    assert [path.name for path in (folder / "data").iterdir()] == ["mine.png"]


def test_ci_runs_tests_and_lint():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make test", "make lint"]
