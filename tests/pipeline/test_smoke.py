"""make smoke: what it runs is the default project, small; it runs apart from the user's files."""

import subprocess
from pathlib import Path

import pytest

from tesserae.params import check_params, load_params
from tesserae.pipeline.smoke import SMALL, Clone, SmokeError

ROOT = Path(__file__).parents[2]


def test_every_stage_of_the_default_project_runs_at_four_steps():
    small, default = check_params(SMALL), check_params({})
    for kind in ("vqgan", "codebook", "transformer", "sample", "highres"):
        assert list(getattr(small, kind)) == list(getattr(default, kind))
    trained = [*small.vqgan.values(), *small.transformer.values()]
    assert {block.steps for block in trained} == {4}
    assert all(block.checkpoint_every < 4 and block.sample_every < 4 for block in trained), "also what recurs"
    image = small.vqgan["image"]
    assert 0 < image.perceptual_start < image.disc_start < 4, "each part of the objective joins"


def test_a_clone_has_the_code_and_the_parameters_asked_for(tmp_path):
    clone = Clone.make(ROOT, tmp_path / "clone", {"size": "xs"})
    assert load_params(clone.folder / "params.yaml") == check_params({"size": "xs"})
    assert (clone.folder / "src/tesserae/params/sizes.py").is_file()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone.folder, capture_output=True, text=True)
    assert status.stdout == ""
    lines = []
    clone.run("python", "-c", "import tesserae; print(tesserae.__file__)", each_line=lines.append)
    assert lines == [str(clone.folder / "src/tesserae/__init__.py")]
    with pytest.raises(SmokeError, match=r"(?s)no such luck\n.*failed; the whole log is .*log\.txt\."):
        clone.run("python", "-c", "import sys; print('no such luck'); sys.exit(3)")
