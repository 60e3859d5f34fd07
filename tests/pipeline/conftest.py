"""A clone of the repository to run pipelines in, with small parameters."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
FILES = ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", ".dvc/page.html")
FOLDERS = ("notebooks", "src")


class Clone:
    """A folder with the repository's files of this moment, committed, and commands that run in it."""

    def __init__(self, root: Path):
        self.root = root
        (root / ".dvc").mkdir()
        for file in FILES:
            shutil.copy(ROOT / file, root / file)
        for folder in FOLDERS:
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".ipynb_checkpoints")
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
        self.run("git", "init", "-q")
        self.run("git", "config", "user.name", "tests")
        self.run("git", "config", "user.email", "tests@example.org")

    def run(self, *command: str, fails: bool = False, seconds: int = 900) -> str:
        """Run a command here; returns what it printed, both streams."""
        outside = ("MLFLOW_", "DVC_", "TESSERAE_", "PYTEST_", "GIT_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(outside)}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        environment["PYTHONPATH"] = str(self.root / "src")
        # a file, not a pipe: DVC's queue workers stay behind and would keep a pipe open
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            done = subprocess.run(
                command, cwd=self.root, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=seconds
            )
            output.seek(0)
            text = output.read()
        assert (done.returncode != 0) == fails, text
        return text

    def params(self) -> dict:
        return YAML(typ="safe", pure=True).load((self.root / "params.yaml").read_text(encoding="utf-8"))

    def set_params(self, values: dict) -> None:
        with (self.root / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(values, file)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    """One for each test file. There is a blank in its path, as there may be in a user's."""
    return Clone(tmp_path_factory.mktemp("a clone"))
