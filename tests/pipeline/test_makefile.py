"""make: what is missing is said in a sentence, what is done is not done again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("setup", "data", "own", "repro", "test", "sources", "lint", "lab", "exp-show", "ui", "bench", "example")


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


@pytest.mark.parametrize("letter", ["%", ":"])
def test_a_path_that_cannot_work_is_refused_at_once(folder, letter):
    """MLflow reads its own place as a pattern with %; : separates the folders of PATH."""
    renamed = folder.rename(folder.with_name(f"my{letter}20clone"))
    done = make(renamed, "setup")
    assert done.returncode != 0
    assert f"rename the folder {renamed}, then run make again" in done.stderr
    assert not (renamed / ".venv").exists()


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


def installed(folder: Path) -> None:
    """An environment as pip leaves it: a command `dvc` says where it runs, and its pip installs nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    tools = folder / ".venv/bin"
    for name in ("pip", "dvc"):
        head = f"#!/bin/sh\n'''exec' \"{tools}/python\" \"$0\" \"$@\"\n' '''\n"
        (tools / name).write_text(f"{head}import sys; print(sys.prefix)\n")
        (tools / name).chmod(0o755)
    packages = next(folder.glob(".venv/lib/python3*/site-packages"))
    for name in ("pip", "pip-1.dist-info", "tesserae", "tesserae/pipeline"):
        (packages / name).mkdir()
    for name in ("pip/__main__.py", "pip-1.dist-info/RECORD", "tesserae/__init__.py", "tesserae/pipeline/__init__.py",
                 "tesserae/pipeline/repair.py"):
        (packages / name).touch()


@pytest.mark.parametrize("name", ["new place", "it's new", "new$place#1", "new"])
def test_after_a_move_the_commands_start_the_environment_of_the_new_place(folder, name):
    installed(folder)
    assert make(folder, "setup").returncode == 0
    (folder / "src/tesserae/pipeline").mkdir(parents=True)
    for module in ("__init__.py", "pipeline/__init__.py"):
        (folder / "src/tesserae" / module).touch()
    shutil.copy(ROOT / "src/tesserae/pipeline/relocate.py", folder / "src/tesserae/pipeline")
    new = folder.rename(folder.with_name(name))
    assert "The clone was moved or copied" in make(new, "setup").stdout
    done = subprocess.run([new / ".venv/bin/dvc"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{new / '.venv'}\n", "")
    assert "Nothing to be done" in make(new, "setup").stdout


def test_what_a_killed_set_up_left_half_done_is_done_again(folder):
    """pip writes RECORD last, and takes a package without it for whole."""
    installed(folder)
    packages = next(folder.glob(".venv/lib/python3*/site-packages"))
    for name in ("half-1.dist-info", "whole-1.dist-info", "~ther"):
        (packages / name).mkdir()
    (packages / "whole-1.dist-info/RECORD").touch()
    assert make(folder, "setup").returncode == 0
    left = {path.name for path in packages.iterdir()}
    assert "whole-1.dist-info" in left
    assert not left & {"half-1.dist-info", "~ther"}
    (folder / ".venv/.installed").unlink()
    (packages / "pip-1.dist-info/RECORD").unlink()  # killed while pip itself came in
    shutil.rmtree(packages / "pip")
    (folder / ".config/pip").mkdir(parents=True)
    (folder / ".config/pip/pip.conf").write_text("[global]\nno-index = true\n")  # the packages are not to come
    make(folder, "setup")
    assert list(packages.glob("pip-*.dist-info/RECORD"))


def test_lab_is_for_this_machine_alone_and_so_for_root_too(folder):
    line = make(folder, "--dry-run", "lab").stdout.splitlines()[-1]
    assert "--ip 127.0.0.1" in line
    assert "--allow-root" in line


@pytest.mark.parametrize("target", TARGETS[1:])
def test_every_target_sets_up_first(folder, target):
    text = make(folder, "--dry-run", target).stdout
    assert text.index("-m venv") < text.index("-r requirements.lock") < len(text) - 1
    last = {"data": ".venv/bin/python -m tesserae.data.obtain", "own": ".venv/bin/python -m tesserae.pipeline.own",
            "repro": "dvc repro"}
    assert text.rstrip().splitlines()[-1].startswith(last.get(target, ""))


def test_ci_runs_tests_and_lint():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-2:] == ["make test", "make lint"]
