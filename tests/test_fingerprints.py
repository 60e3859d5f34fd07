"""Whose checkpoint is it? Facts decide, and what is told about them is true."""

import os

from tesserae import fingerprints
from tesserae.files import find_root
from tesserae.fingerprints import PACE, checkpoint_folder, fingerprint_inputs
from tesserae.params import load_params

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
