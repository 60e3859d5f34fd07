"""The data's notebook, run on tiny folders as the pipeline runs it."""

import json
import shutil

import nbformat
import numpy as np
import pytest
from PIL import Image
from tiny_project import PLAIN, REPOSITORY

from tesserae.data.pictures import Pictures
from tesserae.data.scenes import write_scenes
from tesserae.errors import TesseraeError
from tesserae.pipeline import run_stage


def project(folder):
    (folder / "dvc.yaml").touch()
    (folder / "notebooks").mkdir()
    shutil.copy(REPOSITORY / "notebooks" / "01_prepare_data.ipynb", folder / "notebooks")
    shutil.copy(PLAIN, folder / "params.yaml")
    return folder


def run(folder):
    return run_stage(folder / "notebooks" / "01_prepare_data.ipynb")


def shown(executed):
    """All text that the notebook printed or showed."""
    cells = nbformat.read(executed, as_version=4).cells
    return "\n".join(str(output) for cell in cells if cell.cell_type == "code" for output in cell.outputs)


@pytest.fixture(scope="module")
def landscapes(tmp_path_factory):
    folder = project(tmp_path_factory.mktemp("landscapes"))
    write_scenes(folder / "data", 24, 40, 0)
    (folder / "data" / "lake_day" / "broken.png").write_text("no picture")
    first = next((folder / "data" / "coast_day").glob("*.png"))
    shutil.copy(first, folder / "data" / "coast_day" / "copy.png")
    lines = (folder / "data" / "metadata.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    (folder / "data" / "metadata.jsonl").write_text(
        "\n".join([*lines, json.dumps(row | {"file_name": "coast_day/copy.png"})]) + "\n")
    return folder, run(folder)


def test_the_set_is_there(landscapes):
    folder, _ = landscapes
    counts = {split: len(Pictures.load(folder / "prepared", split)) for split in ("train", "validation")}
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert metrics == counts | {"rejected": 1, "duplicates": 1, "classes": 10}
    assert sum(counts.values()) == 24


def test_the_notebook_names_what_was_left_out(landscapes):
    text = shown(landscapes[1])
    assert "broken.png" in text
    assert "coast_day/copy.png" in text
    assert "depth, segmentation" in text
    assert "26 of 26 files" in text


def test_its_figures_are_there_and_small(landscapes):
    figures = {path.stem: path for path in (landscapes[0] / "reports" / "prepare").glob("*.png")}
    assert set(figures) == {"classes", "paired", "pictures", "sizes"}
    assert max(path.stat().st_size for path in figures.values()) < 300_000


def test_a_flat_folder_without_labels(tmp_path):
    folder = project(tmp_path)
    (folder / "data").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
    run(folder)
    assert (folder / "reports" / "prepare" / "paired.png").exists()  # DVC keeps a figure of that name
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert metrics["classes"] == 0
    assert metrics["train"] + metrics["validation"] == 6


def test_without_data_one_sentence(tmp_path):
    folder = project(tmp_path)
    with pytest.raises(TesseraeError, match=r"data does not exist: put pictures there, .*tesserae\.data\.scenes"):
        run(folder)
