"""Whose checkpoint is it? Facts decide, and what is told about them is true."""

import os

import pytest
from ruamel.yaml import YAML

from tesserae import fingerprints, source_code
from tesserae.fingerprints import PACE, checkpoint_folder, code_of, fingerprint_inputs
from tesserae.params import load_params
from tesserae.stage import find_root
from tesserae.training import transformer, vqgan

ROOT = find_root(os.path.dirname(__file__))
BLOCK = load_params(ROOT / "tests/plain.yaml").vqgan["image"]


def leave_checkpoint(folder):
    (folder / "step-00000008.json").write_text("{}")


def test_only_what_is_learned_counts():
    facts = fingerprint_inputs(BLOCK, seed=0, data="d")
    for name in PACE:
        assert fingerprint_inputs(BLOCK.model_copy(update={name: 7}), seed=0, data="d") == facts
    assert fingerprint_inputs(BLOCK.model_copy(update={"lr": 0.5}), seed=0, data="d") != facts
    assert fingerprint_inputs(BLOCK, seed=1, data="d") != facts


def test_what_differs_is_named(tmp_path):
    said = []
    first = checkpoint_folder(tmp_path, "vqgan-image", {"lr": "1", "seed": "0", "data": "d"}, said.append)
    assert checkpoint_folder(tmp_path, "vqgan-image", {"lr": "2", "seed": "0", "data": "d"}, said.append) != first
    assert not said  # without a checkpoint nothing is lost
    leave_checkpoint(first)
    second = checkpoint_folder(tmp_path, "vqgan-image", {"lr": "2", "seed": "1", "data": "d"}, said.append)
    assert "lr, seed are other ones" in said[0]
    assert first.name in said[0]
    leave_checkpoint(second)
    assert checkpoint_folder(tmp_path, "vqgan-image", {"lr": "1", "seed": "0", "data": "d"}, said.append) == first
    assert len(said) == 1  # its own checkpoints are there
    checkpoint_folder(tmp_path, "vqgan-image-small", {"lr": "3"}, said.append)
    assert len(said) == 1  # another stage's are none of its business


def test_checkpoints_without_facts_are_told_of_all_the_same(tmp_path):
    said = []
    old = checkpoint_folder(tmp_path, "vqgan-image", {"lr": "1"}, print)
    leave_checkpoint(old)
    (old / fingerprints.INPUTS).unlink()
    checkpoint_folder(tmp_path, "vqgan-image", {"lr": "2"}, said.append)
    assert "parameters, data or code" in said[0]


BEFORE = '''"""A module."""
def step(x, name="lr"):
    """What it does."""
    if x < 0:
        raise TesseraeError(f"{x} is too small")
    say("a step")
    return {"rate": 2 * x}
'''


@pytest.mark.parametrize(("old", "new", "same"), [
    ('"""What it does."""', '"""Other words."""', True),
    ("    return", "    # a remark\n\n    return", True),
    ("is too small", "must be larger", True),
    ("a step", "one step", True),
    ("2 * x", "3 * x", False),
    ('"rate"', '"pace"', False),
    ('name="lr"', 'name="rl"', False),
    ("x < 0", "x < 1", False),
])
def test_code_counts_and_words_do_not(tmp_path, monkeypatch, old, new, same):
    monkeypatch.setattr(source_code, "PACKAGE", tmp_path)
    assert BEFORE.replace(old, new) != BEFORE
    (tmp_path / "a.py").write_text(BEFORE)
    (tmp_path / "b.py").write_text(BEFORE.replace(old, new))
    assert (code_of("a.py") == code_of("b.py")) is same


@pytest.mark.parametrize(("stage", "module"), [("vqgan", vqgan), ("transformer", transformer)])
def test_dvc_and_checkpoints_look_at_the_same_code(stage, module):
    """Else DVC would run a stage again and find its old model finished.

    Only what measures a finished model may be DVC's alone: then the model is measured again, and not trained.
    """
    deps = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["do"]["deps"]
    code = sorted(dep.removeprefix("src/tesserae/") for dep in deps if dep.startswith("src/"))
    assert set(module.COMPUTING) <= set(code)
    assert all(other.startswith("evaluation/") for other in set(code) - set(module.COMPUTING))
