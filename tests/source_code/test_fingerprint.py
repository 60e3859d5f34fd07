"""The fingerprint of code changes with what is computed, and with nothing else."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

import tesserae
from tesserae.source_code import fingerprint
from tesserae.source_code.fingerprint import canonical, code_of

BEFORE = '''"""A module."""
def step(x, name="lr"):
    """What it does."""
    if x < 0:
        raise TesseraeError(f"{x} is too small")
    say("a step")
    self.log(f"step {x}")
    return {"rate": 2 * x}
'''
SOURCE = '''
"""Most of what the language has."""
from __future__ import annotations
import numpy as np
@cache
def step(x: int, /, *rest: float, rate=1.5, **more) -> dict[str, str]:
    label = f"{x!r:>{rest[0]}} and {more['a']}" "joined" rb"" if x else f"{rate=}"
    with open(b"\\x00") as file, other as (a, b):
        values = [y ** 2 for y in range(10) if y % 2 and (z := y) not in {1, 2j}]
    match x:
        case {"a": [1, *_]} | None:
            return {"caf\u00e9": ..., **more}
    try:
        async_ = lambda: (yield)
    except* OSError as error:
        raise
    del a[1:2, ...]
    return label
class Point(Base, metaclass=Meta):
    x: int = 0
'''.replace(' rb""', "")


@pytest.mark.parametrize(("old", "new", "same"), [
    ('"""What it does."""', '"""Other words."""', True),
    ("    return", "    # a remark\n\n    return", True),
    ("is too small", "must be larger", True),
    ("a step", "one step", True),
    ("step {x}", "{x} steps", True),
    ("2 * x", "3 * x", False),
    ('"rate"', '"pace"', False),
    ('name="lr"', 'name="rl"', False),
    ("x < 0", "x < 1", False),
])
def test_code_counts_and_words_do_not(old, new, same):
    assert BEFORE.replace(old, new) != BEFORE
    assert (canonical(BEFORE) == canonical(BEFORE.replace(old, new))) is same


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def test_it_is_the_same_in_every_version_of_python():
    """Else a new Python would train everything anew: this very value has to be found by all."""
    assert digest(canonical(SOURCE)) == "de830d68f72080aa"


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_other_pythons_find_the_same_where_they_are_installed(version, tmp_path):
    python = shutil.which(f"python{version}")
    if not python or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no Python {version} here")
    alone = Path(fingerprint.__file__).read_text().replace(
        "from tesserae.source_code.graph import computing_modules, source_of", "")
    (tmp_path / "alone.py").write_text(alone)
    code = f"import alone, hashlib; print(hashlib.sha256(alone.canonical({SOURCE!r}).encode()).hexdigest()[:16])"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == digest(canonical(SOURCE)), done.stderr


@pytest.mark.parametrize(("file", "changed"), [
    ("models/quantizers.py", True),
    ("evaluation/images.py", True),
    ("models/transformer.py", False),
    ("tracking/run.py", False),
    ("figures/style.py", False),
])
def test_the_code_of_a_training_is_what_it_imports(tmp_path, file, changed):
    """An edit of what computes gives another fingerprint; any other edit, and every comment, gives the same."""
    shutil.copytree(Path(tesserae.__file__).parent, tmp_path / "tesserae",
                    ignore=shutil.ignore_patterns("__pycache__"))
    edited = tmp_path / "tesserae" / file
    command = [sys.executable, "-c",
               "from tesserae.source_code import code_of; print(code_of('tesserae.training.vqgan'))"]
    found = []
    for addition in ("", "\n# a remark\n", "\nMORE = 1\n"):
        edited.write_text(edited.read_text() + addition)
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        found.append(done.stdout.strip())
    assert found[0] == found[1] == code_of("tesserae.training.vqgan"), done.stderr
    assert (found[1] != found[2]) is changed
