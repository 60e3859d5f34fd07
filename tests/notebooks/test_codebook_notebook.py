"""The codebook's notebook, run on a tiny project as the pipeline runs it."""

import json
import shutil

import nbformat
import pandas as pd
import pytest
import torch
from tiny_project import CLASSES, CODES, REPOSITORY, make_project

from tesserae.data.codes import CodeMaps
from tesserae.data.pictures import Pictures
from tesserae.models.vqgan import VQGAN
from tesserae.pipeline.runner import run_stage


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("codebook"), transformer=False)
    (folder / "notebooks").mkdir()
    shutil.copy(REPOSITORY / "notebooks" / "03_analyse_codebook.ipynb", folder / "notebooks")
    run_stage(folder / "notebooks" / "03_analyse_codebook.ipynb", "image")
    return folder


def test_the_code_maps_are_those_of_the_model(project):
    vqgan = VQGAN.from_pretrained(project / "models" / "vqgan-image")
    for split, count in (("train", 20), ("validation", 6)):
        maps = CodeMaps.load(project / "codes" / "image", split)
        pictures = Pictures.load(project / "prepared", split)
        assert maps.indices.shape == (count, 2, 4, 4)
        assert maps.class_names == CLASSES
        assert torch.equal(maps.labels, pictures.labels)
        codes = vqgan.encode(pictures.batch(range(count)) / 127.5 - 1)
        assert (maps.indices[:, 0] == codes).float().mean() > 0.98


def test_the_metrics_agree_with_the_maps(project):
    metrics = json.loads((project / "reports" / "codebook-image" / "metrics.json").read_text())
    used = CodeMaps.load(project / "codes" / "image", "train").indices.unique()
    assert metrics["usage"] == pytest.approx(len(used) / CODES)
    assert metrics["dead"] == CODES - len(used)
    assert 1 < metrics["perplexity"] <= len(used)
    assert {"val_usage", "val_perplexity", "mutual_information_right", "mutual_information_below"} <= set(metrics)


def test_the_ranking_holds_every_code(project):
    table = pd.read_csv(project / "reports" / "codebook-image" / "history.csv")
    assert list(table.columns) == ["rank", "code", "count", "share"]
    assert sorted(table["code"]) == list(range(CODES))
    assert table["count"].sum() == 20 * 2 * 16
    assert table["count"].is_monotonic_decreasing


def test_every_figure_is_there_and_small(project):
    names = {path.stem for path in (project / "reports" / "codebook-image").glob("*.png")}
    assert names == {"usage", "code_maps", "common_codes", "rare_codes", "occurrence", "pairs_right",
                     "pairs_below", "pair_matrix", "projection"}
    assert max(path.stat().st_size for path in (project / "reports" / "codebook-image").iterdir()) < 300_000


def test_the_notebook_shows_its_figures_and_its_verdict(project):
    notebook = nbformat.read(project / "reports" / "notebooks" / "codebook-image.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 9
    assert any("of the 16 codes are used" in output.get("data", {}).get("text/markdown", "") for output in outputs)
