"""What the parameters name outside of themselves is looked for before any work, and its key is in the sentence."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tesserae import tracking
from tesserae.data.prepare import prepare
from tesserae.data.sources import are_scenes, read_made
from tesserae.errors import TesseraeError
from tesserae.named import check_named, unmet
from tesserae.params import check_params
from tesserae.scenes.render import write_scenes
from tesserae.stage import Stage

VALUES = YAML(typ="safe", pure=True).load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
EVERY = (("prepare", None), ("vqgan", "image"), ("codebook", "image"), ("transformer", "class"), ("sample", "class"),
         ("highres", "layout"))


def params_with(path=(), value=None, **prepare):
    values = copy.deepcopy(VALUES)
    values["prepare"] |= prepare
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if path:
        inner[path[-1]] = value
    return check_params(values)


def photos(folder, depth=True):
    """Somebody's pictures with depth."""
    generator, rows = np.random.default_rng(0), []
    (folder / "depth").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(generator.integers(0, 9999, (40, 40)).astype(np.uint16)).save(folder / f"depth/{number}.png")
        rows.append({"file_name": f"{number}.png"} | ({"depth_file_name": f"depth/{number}.png"} if depth else {}))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def landscapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("landscapes")
    write_scenes(root / "data", 4, 32, 0)
    return root


def test_the_built_in_scenes_are_known_by_their_files(landscapes, tmp_path):
    assert are_scenes(landscapes / "data")
    photos(tmp_path / "mine")
    assert not are_scenes(tmp_path / "mine")
    assert not are_scenes(tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/metadata.jsonl").write_text("[1]\n")
    assert not are_scenes(tmp_path / "odd")


@pytest.mark.parametrize("kind", [kind for kind, _ in EVERY])
def test_landscapes_are_not_rendered_for_other_data(tmp_path, monkeypatch, kind):
    """Each stage says so before it works, also when the raw folder has gone."""
    photos(tmp_path / "data")
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    params = params_with(min_side=16, image_size=96)
    words = r"^highres\.layout\.conditions_from = 'scenes' renders landscapes as conditions, .*: set it to held_out"
    if kind != "prepare":
        report = prepare(tmp_path / "data", tmp_path / "prepared", params.prepare, 0)
        assert report.columns == ["depth"]
        assert read_made(tmp_path / "prepared")["scenes"] is False
        (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(TesseraeError, match=words):
        Stage(tmp_path, kind, dict(EVERY)[kind], params)
    params = params_with(("highres", "layout", "conditions_from"), "held_out", min_side=16)
    Stage(tmp_path, kind, dict(EVERY)[kind], params)


def test_landscapes_are_rendered_for_the_landscapes(landscapes):
    check_named(params_with(), landscapes, landscapes)
    prepare(landscapes / "data", landscapes / "prepared", params_with(min_side=16).prepare, 0)
    assert read_made(landscapes / "prepared")["scenes"] is True
    check_named(params_with(min_side=16), landscapes, landscapes)


@pytest.mark.parametrize(("path", "key"), [
    (("sample", "layout", "condition_image"), r"sample\.layout\.condition_image"),
    (("highres", "layout", "conditions_from"), r"highres\.layout\.conditions_from"),
])
def test_files_that_are_not_there_or_no_pictures(tmp_path, path, key):
    photos(tmp_path / "data")
    base = {"conditions_from": "held_out"}

    def check(value):
        params = params_with(path, value)
        if path[0] == "sample":
            block = params.highres["layout"].model_copy(update=base)
            params = params.model_copy(update={"highres": {"layout": block}})
        check_named(params, tmp_path, tmp_path)

    with pytest.raises(TesseraeError, match=rf"^{key} names .*mine\.png, which does not exist: name a picture"):
        check("mine.png")
    (tmp_path / "mine.png").write_text("no picture")
    with pytest.raises(TesseraeError, match=rf"^{key} names .*mine\.png, which is no picture that can be read \(not"):
        check("mine.png")
    Image.new("P", (20, 20)).save(tmp_path / "mine.png")
    check("mine.png")


def test_a_folder_of_layouts_is_read_as_a_whole(tmp_path):
    photos(tmp_path / "data")
    folder = tmp_path / "layouts"
    folder.mkdir()
    params = params_with(("highres", "layout", "conditions_from"), "layouts")
    (folder / ".DS_Store").write_bytes(b"1")
    with pytest.raises(TesseraeError, match=r"layouts holds no picture: put some there, or change highres\.layout"):
        check_named(params, tmp_path, tmp_path)
    Image.new("P", (20, 20)).save(folder / "a.png")
    check_named(params, tmp_path, tmp_path)
    (folder / "b.txt").write_text("a note")
    with pytest.raises(TesseraeError, match=r"^highres\.layout\.conditions_from names .*b\.txt, which is no picture"):
        check_named(params, tmp_path, tmp_path)


def test_what_a_set_cannot_give_is_said_with_its_key():
    said = unmet(params_with(), [], 7)
    keys = ["transformer.class.condition", "transformer.layout.condition", "vqgan.image.eval_images"]
    assert [text.partition(" ")[0] for text in said] == keys
    assert "no classes" in said[0]
    assert "the 7 that are held out" in said[2]
    assert "prepare.holdout above 0.1" in said[2]
    assert unmet(params_with(), ["a"], 64) == []
