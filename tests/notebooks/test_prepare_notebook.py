"""The data's notebook, run on tiny folders as the pipeline runs it."""

import json
import shutil

import nbformat
import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_text
from tiny_project import PLAIN, REPOSITORY

from tesserae.data.pictures import Pictures
from tesserae.errors import TesseraeError
from tesserae.pipeline.runner import run_stage
from tesserae.scenes.render import write_scenes


def project(folder):
    (folder / "dvc.yaml").touch()
    (folder / "notebooks").mkdir()
    shutil.copy(REPOSITORY / "notebooks" / "01_prepare_data.ipynb", folder / "notebooks")
    (folder / "params.yaml").write_text(plain_text())
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


def put_noise(data, paths, size=(40, 50)):
    """A picture of noise at each of these paths below `data`."""
    for number, path in enumerate(paths):
        place = data / path
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)


def test_a_flat_folder_without_labels(tmp_path):
    folder = project(tmp_path)
    put_noise(folder / "data", [f"{number}.png" for number in range(6)])
    run(folder)
    assert (folder / "reports" / "prepare" / "paired.png").exists()  # DVC keeps a figure of that name
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert metrics["classes"] == 0
    assert metrics["train"] + metrics["validation"] == 6


def test_without_data_one_sentence(tmp_path):
    folder = project(tmp_path)
    with pytest.raises(TesseraeError, match=r"data does not exist: put pictures there, .*tesserae\.scenes"):
        run(folder)


def written(folder, changes):
    """params.yaml with these changes of the block prepare."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(PLAIN.read_text())
    values["prepare"] |= changes
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)


@pytest.mark.parametrize(("classes", "each"), [(1, 2), (1, 3), (1, 8), (3, 1), (4, 2), (200, 2)])
def test_few_pictures(tmp_path, classes, each):
    folder = project(tmp_path)
    put_noise(folder / "data", [f"class {number % classes}/{number}.png" for number in range(classes * each)])
    text = shown(run(folder))
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert metrics["train"] + metrics["validation"] == classes * each
    assert metrics["validation"] >= 1
    if classes == 200:
        assert metrics["validation"] == metrics["train"] == 200
    assert text.count("one picture") <= 1
    assert max(path.stat().st_size for path in (folder / "reports" / "prepare").glob("*.png")) < 300_000


def test_the_commands_for_own_pictures_in_a_folder_of_landscapes(tmp_path):
    folder = project(tmp_path)
    write_scenes(folder / "data", 24, 40, 0)
    put_noise(folder / "data" / "mine", [f"{('cats', 'dogs')[number % 2]}/{number}.png" for number in range(6)])
    with pytest.raises(TesseraeError, match=r"None of the 6 pictures in .*data/mine can be used .*has no depth .*set "
                                            r"prepare\.source to .*data/mine to train on these alone"):
        run(folder)
    assert not (folder / "prepared").exists()
    written(folder, {"source": "data/mine"})
    run(folder)
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert (metrics["classes"], metrics["train"] + metrics["validation"]) == (2, 6)


def test_small_pictures_name_the_key_and_its_value_admits_them(tmp_path):
    folder = project(tmp_path)
    put_noise(folder / "data", [f"{number}.png" for number in range(8)], (28, 28))
    with pytest.raises(TesseraeError, match=r"prepare\.min_side is 32\): set prepare\.min_side to 28 to take them"):
        run(folder)
    written(folder, {"min_side": 28})
    run(folder)
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert metrics["train"] + metrics["validation"] == 8


@pytest.mark.parametrize(("view", "column", "words"), [
    ("segmentation", "depth", r"vqgan\.image\.column = 'depth' holds no masks, which view: segmentation reads"),
    ("depth", "segmentation", r"view: depth reads a column of depth, and segmentation holds masks"),
])
def test_a_column_that_a_view_cannot_read_is_refused_before_training(tmp_path, view, column, words):
    folder = project(tmp_path)
    write_scenes(folder / "data", 24, 40, 0)
    path = folder / "params.yaml"
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(path.read_text())
    values["vqgan"]["image"] |= {"view": view, "column": column, "gan_loss": "none", "perceptual_weight": 0.0}
    values["vqgan"]["image"]["pixel_loss"] = "cross_entropy" if view == "segmentation" else "l1"
    with path.open("w") as file:
        yaml.dump(values, file)
    with pytest.raises(TesseraeError, match=words):
        run(folder)


def test_a_column_that_the_data_lack_is_refused_before_any_work(tmp_path):
    folder = project(tmp_path)
    write_scenes(folder / "data", 24, 40, 0)
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("column: image ", "column: flow "))
    with pytest.raises(TesseraeError, match=r"vqgan\.image\.column = 'flow' is not among the columns of .*data, "
                                            r"which are image, depth, segmentation: name one of them, "
                                            r"remove vqgan\.image"):
        run(folder)
    assert not list(folder.glob(".prepared*"))


def test_value_ranges_are_noted_and_measured(tmp_path):
    folder = project(tmp_path)
    (folder / "data").mkdir()
    rows = []
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 4096, (40, 50), dtype=np.uint16)
        values[0, 0] = 4000
        depth = 600 + values
        depth[:10] = 0
        Image.fromarray(values.clip(0, 4000)).save(folder / "data" / f"{number}.png")
        Image.fromarray(depth.clip(0, 4600)).save(folder / "data" / f"depth-{number}.png")
        rows.append({"file_name": f"{number}.png", "depth_file_name": f"depth-{number}.png"})
    (folder / "data" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = shown(run(folder))
    assert "image holds whole numbers from 0 to 4,000; 0 to 4,095 is black to white in every picture" in text
    assert "depth holds whole numbers from 0 to 4,600; 0 to 4,600 is black to white in every picture" in text
    assert "25 % of depth's pixels are 0, the usual mark for no measurement" in text
    metrics = json.loads((folder / "reports" / "prepare" / "metrics.json").read_text())
    assert (metrics["image_black"], metrics["image_white"]) == (0, 4095)
    assert (metrics["depth_largest"], metrics["depth_white"]) == (4600, 4600)
