"""The notebooks that are no stages: comparing runs, and the playground and its widgets."""

import datetime
import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import papermill
import pytest
import torch
from PIL import Image
from tiny_project import CLASSES, PLAIN, REPOSITORY, make_project

from tesserae import figures, playground, tracking
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.playground import work


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(tracking.RUN_VARIABLE, raising=False)
    return make_project(tmp_path)


def _execute(project, name, **parameters):
    (project / "notebooks").mkdir(exist_ok=True)
    return papermill.execute_notebook(REPOSITORY / "notebooks" / name, project / "out.ipynb", parameters,
                                      cwd=project / "notebooks", kernel_name="python3", progress_bar=False)


def _shown(notebook, kind):
    return [output["data"][kind] for cell in notebook.cells for output in cell.get("outputs", [])
            if kind in output.get("data", {})]


def _record(project, size, lpips):
    run = tracking.start_run(project, "vqgan-image", {"vqgan": {"image": {
        "codebook_size": size, "channel_mult": [1, 2], "patch": 4}}})
    for step in range(3):
        run.metrics({"rec": lpips + 3 - step, "val_lpips": lpips + 3 - step}, step)
    run.image(figures.grid_image(torch.zeros(2, 3, 8, 8), 2), "reconstructions", 2)
    run.metrics({"val_lpips": lpips}, 3)
    run.finish()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_runs_are_compared_however_many_there_are(project, count):
    for number in range(count):
        _record(project, 64 * 4**number, 0.3 - 0.1 * number)
    notebook = _execute(project, "07_compare_runs.ipynb")
    words = {0: "No run of vqgan-image", 1: "nothing to compare", 3: "they differ in vqgan.image.codebook_size"}
    assert words[count] in _shown(notebook, "text/markdown")[0]
    assert len(_shown(notebook, "image/png")) == 4  # figures, or the words that stand for them
    if count == 3:
        assert "K 64" in _shown(notebook, "text/html")[0]
        assert "0.1000" in _shown(notebook, "text/html")[1]


def test_the_playground_opens(project):
    notebook = _execute(project, "08_playground.ipynb")
    assert len(_shown(notebook, "application/vnd.jupyter.widget-view+json")) == 4


@pytest.fixture
def models(project, monkeypatch):
    monkeypatch.chdir(project)
    return playground.load_models()


def _picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def _upload(content: bytes) -> tuple[dict]:
    return ({"name": "mine", "type": "image/png", "size": len(content), "content": memoryview(content),
             "last_modified": datetime.datetime.now(datetime.UTC)},)


def _png(size, colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "png")
    return buffer.getvalue()


def test_the_drawing_follows_its_controls(models):
    controls = playground.sample_panel(models).controls
    assert [name for name, _ in controls["class"].options] == CLASSES
    first = controls["view"].value
    controls["sample"].click()
    assert controls["view"].value == first
    controls["another"].click()
    assert controls["seed"].value == 1
    assert controls["view"].value != first
    controls["count"].value = 2
    controls["seed"].value = 0
    controls["sample"].click()
    assert _picture(controls["view"].value).width < _picture(first).width


def test_what_is_sampled_depends_on_the_filters(models):
    controls = playground.sample_panel(models).controls
    controls["top_k"].value, controls["top_p"].value, controls["count"].value = 0, 1.0, 3
    controls["sample"].click()
    free = controls["view"].value
    controls["top_k"].value = 1
    controls["sample"].click()
    tiles = np.array_split(np.asarray(_picture(controls["view"].value))[4:, 4:], 3, axis=1)
    assert controls["view"].value != free
    assert (tiles[0] == tiles[2]).all()


def test_a_label_that_the_transformer_lacks_is_said_in_the_panel(models):
    models.class_names[2] = "unknown"
    controls = playground.sample_panel(models).controls
    before = controls["view"].value
    controls["class"].value = 2
    controls["sample"].click()
    assert "a number from 0 to 1" in controls["message"].value
    assert controls["view"].value == before
    assert not controls["sample"].disabled


@pytest.mark.parametrize(("part", "share"), [("upper half", 1 / 2), ("lower half", 1 / 2), ("left half", 1 / 2),
                                             ("right half", 1 / 2), ("all but the middle", 3 / 4), ("nothing", 0)])
@pytest.mark.parametrize("shape", [(4, 4), (8, 8)])
def test_masks_give_their_share(part, share, shape):
    mask = work.kept_codes(part, shape)
    assert mask.shape == shape
    assert mask.float().mean() == share


def test_halves_lie_where_they_say():
    assert work.kept_codes("upper half", (4, 6))[0].all()
    assert work.kept_codes("left half", (4, 6))[:, :3].all()
    assert not (work.kept_codes("right half", (5, 5)) & work.kept_codes("left half", (5, 5))).any()
    assert not work.kept_codes("all but the middle", (5, 5))[2, 2]


def test_a_completion_shows_what_is_kept_and_samples_the_rest(models):
    controls = playground.complete_panel(models).controls
    controls["picture"].value = 1
    controls["top_k"].value, controls["top_p"].value, controls["count"].value = 0, 1.0, 3
    controls["sample"].click()
    tiles = np.array_split(np.asarray(_picture(controls["view"].value))[4:, 4:], 5, axis=1)
    side = tiles[0].shape[1] - 4
    assert (tiles[0][:side // 2] == tiles[1][:side // 2]).all()
    assert (tiles[1][side // 2:side, :side] == 204).all()
    assert len({tile.tobytes() for tile in tiles[2:]}) == 3


def test_the_completion_takes_the_pictures_own_class(models):
    controls = playground.complete_panel(models).controls
    controls["picture"].value = 3
    assert controls["class"].value == int(models.held_out.labels[3])
    before = controls["view"].value
    controls["given"].value = "nothing"
    controls["sample"].click()
    assert controls["view"].value != before


def test_codes_are_painted_undone_and_reset(models):
    controls = playground.codes_panel(models).controls
    views = ("picture shown", "codes", "decoded")
    start = {name: controls[name].value for name in views}
    code = (int(work.encode(models, models.held_out.batch([0])[0])[2, 2]) + 1) % 16
    controls["code"].value = code
    controls["paint"].click()
    assert f"on code {code}." in controls["message"].value
    assert "1 of them painted" in controls["message"].value
    assert controls["picture shown"].value == start["picture shown"]
    assert controls["codes"].value != start["codes"]
    assert controls["decoded"].value != start["decoded"]
    controls["undo"].click()
    controls["undo"].click()  # more often than there was something to undo
    assert {name: controls[name].value for name in views} == start
    controls["brush"].value = 4
    controls["paint"].click()
    controls["reset"].click()
    assert {name: controls[name].value for name in views} == start


def test_the_code_under_the_frame_is_picked_up(models):
    controls = playground.codes_panel(models).controls
    codes = work.encode(models, models.held_out.batch([0])[0])
    controls["row"].value, controls["column"].value = 0, 3
    controls["pick up"].click()
    assert controls["code"].value == int(codes[0, 3])


def test_a_click_moves_the_frame_and_chooses_a_code(models):
    """In pixels of the canvas, as a browser reports it."""
    controls = playground.codes_panel(models).controls
    codes = work.encode(models, models.held_out.batch([0])[0])
    for name in ("picture shown", "codes", "decoded"):
        for row, column in ((0, 3), (3, 0), (1, 2)):
            side = controls[name].canvas.width // 4
            controls[name].click((column + 0.5) * side, (row + 0.3) * side)
            assert (controls["row"].value, controls["column"].value) == (row, column)
            assert f"on code {int(codes[row, column])}." in controls["message"].value
    side = controls["codebook"].canvas.width / 4  # 16 codes in rows of 4
    controls["codebook"].click(2.5 * side, 1.5 * side)
    assert controls["code"].value == 6
    controls["paint"].click()
    assert "on code 6." in controls["message"].value


def test_the_held_out_slider_shows_its_picture_at_once(models):
    controls = playground.complete_panel(models).controls
    before = controls["view"].value
    controls["picture"].value = 3
    seen = _picture(controls["view"].value).convert("RGB")
    assert controls["view"].value != before
    expected = figures.to_pixels(models.held_out.batch([3]))[0]
    assert seen.getpixel((6, 6)) == tuple(expected[0, 0])
    shown = controls["view"].value
    controls["given"].value = "nothing"
    assert controls["view"].value != shown


def test_a_missing_vqgan_of_a_condition_leaves_the_codes(project, monkeypatch):
    monkeypatch.chdir(project)
    depth = {"kind": "codes", "name": "depth", "vocab": 16, "window": (4, 4)}
    small = TransformerConfig(codebook_size=16, prefix_vocab=16, prefix_length=16, max_tokens=16, n_layer=1, n_head=2,
                             n_embd=16, conditions=(depth,), window=(4, 4))
    LatentTransformer(small).save_pretrained("models/transformer-class")
    models = playground.load_models()
    for panel in (playground.sample_panel, playground.complete_panel, playground.paint_panel):
        assert "vqgan-depth" in panel(models).controls["message"].value
    assert playground.codes_panel(models).controls["decoded"].value


def test_pictures_that_lost_their_classes_have_numbers_for_names(project, monkeypatch):
    monkeypatch.chdir(project)
    prepared = datasets.load_from_disk("prepared").remove_columns("label")
    prepared.save_to_disk("other")
    shutil.rmtree("prepared")
    Path("other").rename("prepared")
    controls = playground.complete_panel(playground.load_models()).controls
    assert [name for name, _ in controls["class"].options] == ["class 0", "class 1"]
    assert controls["view"].value


def test_long_class_names_and_labels_fit(models):
    models.class_names = {0: "very long " * 20 + "end", 1: "two\nlines"}
    controls = playground.sample_panel(models).controls
    assert max(len(name) for name, _ in controls["class"].options) <= 32
    assert all(control.style.description_width == "100px" for control in controls.values()
               if getattr(control, "description", "") in ("temperature", "top-k (0: all)"))


def test_painting_stays_inside_the_map():
    codes = torch.zeros(4, 4, dtype=torch.int64)
    assert work.paint(codes, 0, 0, 7, brush=3).sum() == 4 * 7
    assert work.paint(codes, 3, 1, 7, brush=2).sum() == 2 * 7
    assert work.paint(codes, 2, 2, 7).nonzero().tolist() == [[2, 2]]
    assert codes.sum() == 0


def test_a_file_of_ones_own_takes_the_place_of_the_held_out_picture(models):
    controls = playground.codes_panel(models).controls
    before = controls["picture shown"].value
    controls["file"].value = _upload(_png((90, 60), (255, 0, 0)))
    red = _picture(controls["picture shown"].value).convert("RGB")
    assert red.getpixel((20, 20)) == (255, 0, 0)
    controls["file"].value = _upload(b"no picture at all")
    assert "refused" in controls["message"].value
    controls["picture"].value = 1
    controls["picture"].value = 0
    assert controls["picture shown"].value == before


def test_a_file_is_prepared_as_the_set_is():
    picture = Image.new("RGB", (90, 30), (0, 0, 255))
    picture.paste((255, 0, 0), (20, 0, 70, 30))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    middle = work.read_picture(memoryview(buffer.getvalue()), 16, "cover")
    assert (middle == torch.tensor([255, 0, 0])[:, None, None]).all()
    with pytest.raises(TesseraeError, match="refused"):
        work.read_picture(b"", 16, "cover")


def test_without_a_transformer_codes_can_still_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path, transformer=False))
    models = playground.load_models()
    for panel in (playground.sample_panel(models), playground.complete_panel(models)):
        assert "run `dvc repro` first" in panel.controls["message"].value
    assert playground.codes_panel(models).controls["decoded"].value


def test_without_classes_there_is_one_choice(project, monkeypatch):
    monkeypatch.chdir(project)
    start = TransformerConfig(codebook_size=16, prefix_vocab=1, max_tokens=16, n_layer=1, n_head=2, n_embd=16)
    LatentTransformer(start).save_pretrained("models/transformer-class")
    controls = playground.complete_panel(playground.load_models()).controls
    assert [name for name, _ in controls["class"].options] == ["any"]
    assert controls["view"].value


def test_nothing_trained_at_all_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text(PLAIN.read_text())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TesseraeError, match="run dvc repro prepare first"):
        playground.load_models()
