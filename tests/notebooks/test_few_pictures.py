"""Every stage on very few pictures, as the pipeline runs them: what needs more is left out and named."""

import json
import shutil

import nbformat
import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae import tracking
from tesserae.pipeline.runner import run_stage

NETWORK = {"channels": 32, "z_channels": 32, "codebook_size": 16, "codebook_dim": 4, "steps": 4, "batch_size": 4,
           "warmup": 1, "log_every": 2, "sample_every": 2, "eval_every": 2, "checkpoint_every": 2, "gan_loss": "none"}
SHALLOW = {"n_layer": 1, "n_head": 2, "n_embd": 16, "steps": 4, "batch_size": 4, "warmup": 1, "log_every": 2,
           "sample_every": 2, "eval_every": 2, "checkpoint_every": 2}
pytestmark = pytest.mark.slow


def make_project(root, repository, pictures, condition):
    """A project of pictures by path, whose transformer has this condition; returns its stages in order."""
    shutil.copytree(repository / "notebooks", root / "notebooks")
    shutil.copytree(repository / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg*"))
    shutil.copy(repository / "dvc.yaml", root)
    yaml = YAML(typ="safe", pure=True)
    values = plain_values()
    values |= {"precision": "fp32", "threads": 1}
    values["prepare"]["image_size"] = 32
    values["vqgan"]["image"] |= NETWORK
    values["transformer"]["class"] |= SHALLOW | {"condition": condition}
    values["sample"]["class"] |= {"num_eval_samples": 24, "per_class": 2, "completions": 2}
    if "edges" in condition:
        values["vqgan"]["edges"] = values["vqgan"]["image"] | {"view": "edges", "perceptual_weight": 0.0}
        values["codebook"]["edges"] = values["codebook"]["image"]
    for path, shade in pictures.items():
        file = root / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(shade).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(file)
    yaml.dump(values, root / "params.yaml")
    return [("01_prepare_data", None), *(("02_train_vqgan", name) for name in values["vqgan"]),
            *(("03_analyse_codebook", name) for name in values["codebook"]),
            ("04_train_transformer", "class"), ("05_sample", "class")]


def printed(notebook):
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    return "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")


@pytest.mark.parametrize(("pictures", "condition", "notes"), [
    ({"a.png": 1, "b.png": 2}, ["edges"], {
        "vqgan-image": "The distance between reconstructions and pictures as sets is left out",
        "sample-class": "lpips_true and lpips_other are left out"}),
    ({"x/1.png": 1, "x/2.png": 2, "y/1.png": 3, "y/2.png": 4, "z/1.png": 5}, ["class"], {
        "sample-class": "near_share is left out"}),
], ids=["two pictures", "classes of one and two"])
def test_the_chain_ends_and_names_what_it_leaves_out(tmp_path, monkeypatch, request, pictures, condition, notes):
    monkeypatch.delenv(tracking.RUN_VARIABLE, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for notebook, target in make_project(tmp_path, request.config.rootpath, pictures, condition):
        run_stage(tmp_path / "notebooks" / f"{notebook}.ipynb", target)
    for stage, words in notes.items():
        assert words in printed(tmp_path / "reports/notebooks" / f"{stage}.ipynb")
    metrics = json.loads((tmp_path / "reports/sample-class/metrics.json").read_text())
    assert "near_share" not in metrics
    assert metrics["distance"] > 0
    assert not [name for name, value in metrics.items() if value is None]
