"""make own: params.yaml for one's own pictures, or one sentence."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tesserae.errors import TesseraeError
from tesserae.params import load_params
from tesserae.params.compose import composed
from tesserae.pipeline.own import take

ROOT = Path(__file__).parents[2]


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((40, 40, 3), 80 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "a clone"
    root.mkdir()
    (root / "dvc.yaml").touch()
    shutil.copytree(ROOT / "presets", root / "presets")
    (root / "params.yaml").write_text(composed({}))
    pictures(root / "data/coast_day")
    return root


@pytest.mark.parametrize(("name", "given"), [
    ("my pictures", "../my pictures"), ("pictures", "{place}"), ("näh #1", "{place}/"), ('a "b"', "{place}"),
])
def test_the_pictures_stay_where_they_are(root, tmp_path, name, given):
    place = pictures(tmp_path / name)
    told = take(root, given.format(place=place), "own-64", root)
    params = load_params(root / "params.yaml")
    assert params.prepare.source == str(place)
    assert params.prepare.image_size == 64
    assert "presets/own-64.yaml with the 3 files" in told[0]
    assert any(line.startswith("  vqgan.image: channels 96 -> 128, ") for line in told)
    assert "  vqgan.segmentation: gone" in told
    assert told[-1] == "Next: make repro"
    assert sorted(path.name for path in (root / "data").iterdir()) == ["coast_day"]
    again = take(root, given.format(place=place), "presets/own-spatial.yaml", root)
    assert again[0] == told[0].replace("own-64", "own-spatial")
    assert not any("earlier/" in line for line in [*told, *again]), "neither was edited"
    assert "edges" in load_params(root / "params.yaml").vqgan


def test_a_folder_of_the_clone_is_named_from_it(root):
    pictures(root / "my-pictures")
    take(root, "my-pictures", "own-64", root)
    assert load_params(root / "params.yaml").prepare.source == "my-pictures"
    take(root, "data", "own-64", root)  # copied there instead of the landscapes
    assert load_params(root / "params.yaml").prepare.source == "data"


def test_ones_own_parameters_are_kept(root, tmp_path):
    place = pictures(tmp_path / "pictures")
    mine = (root / "params.yaml").read_text().replace("seed: 0 ", "seed: 7 ")
    (root / "params.yaml").write_text(mine)
    assert "The params.yaml that was here is in earlier/." in take(root, str(place), "own-64", root)
    assert (root / "earlier/params.yaml").read_text() == mine
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", root, *command], check=True)
    assert not any("earlier/" in line for line in take(root, str(place), "photos", root)), "these were committed"


@pytest.mark.parametrize(("given", "said"), [
    ("", "make own needs the folder of the pictures: make own FROM=path/to/pictures"),
    ("nowhere", "FROM=nowhere is not there: name the folder of your pictures"),
    ("presets/own-64.yaml", "is a file: unpack it"),
    ("data/coast_day", "lies inside data/, which DVC keeps as one: move the folder out of it"),
    (".", "holds this clone itself"),
    ("..", "holds this clone itself"),
    ("samples", "is where the pipeline writes"),
    ("empty", "FROM=empty holds no pictures"),
    ("texts", "FROM=texts holds no pictures"),
])
def test_what_cannot_work_is_refused_and_nothing_is_written(root, given, said):
    for name in ("samples", "empty", "texts"):
        (root / name).mkdir()
    (root / "texts/a.txt").write_text("a")
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(TesseraeError, match=said.replace("(", r"\(")):
        take(root, given, "own-64", root)
    assert (root / "params.yaml").read_bytes() == before
    assert not (root / "earlier").exists()


def test_an_unknown_preset_is_refused(root, tmp_path):
    with pytest.raises(TesseraeError, match=r"PRESET=own is no preset: take one of default, .*own-64, own-depth"):
        take(root, str(pictures(tmp_path / "pictures")), "own", root)


def test_masks_are_paired_on_the_way(root, tmp_path):
    place = pictures(tmp_path / "mine")
    (place / "masks").mkdir()
    for number in range(3):
        Image.fromarray(np.full((40, 40), number, np.uint8)).save(place / f"masks/{number}_mask.png")
    with pytest.raises(TesseraeError, match=r"vqgan\.segmentation\.column = 'segmentation' is not among the columns"):
        take(root, str(place), "own-masks", root)
    assert load_params(root / "params.yaml").prepare.source == "data"  # nothing was written
    for _ in range(2):
        told = take(root, str(place), "own-masks", root, "segmentation=masks")
        assert told[0].endswith("metadata.jsonl pairs 3 pictures with segmentation=masks.")
        assert load_params(root / "params.yaml").prepare.source == str(place)


def test_a_wrong_pair_writes_nothing_and_forgotten_masks_are_named(root, tmp_path):
    place = pictures(tmp_path / "mine")
    (place / "masks").mkdir()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(place / "masks/0.png")
    with pytest.raises(TesseraeError, match=r"vqgan\.segmentation\.column = 'segmentation'"):
        take(root, str(place), "own-masks", root, "depth=masks")
    assert not (place / "metadata.jsonl").exists()
    told = take(root, str(place), "own-64", root)
    assert told[0].startswith("The files in the folder masks are taken for pictures of the set: if they are masks")
    assert "PAIR=segmentation=masks" in told[0]
