"""A stage: found from anywhere below the root, its parameters, its report, its run."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tesserae import stage as stages
from tesserae import tracking
from tesserae.errors import DiskFullError, TesseraeError
from tesserae.params import load_params
from tesserae.stage import Stage, StageError, lineage, stage_block
from tests.plain import plain_text

ROOT = Path(__file__).parents[1]
PARAMS = load_params(ROOT / "tests/plain.yaml")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of two files, with a store that is not there: these tests are about folders."""
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params.yaml").write_text(plain_text())
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    return tmp_path


def test_a_notebook_finds_its_stage(root):
    stage = Stage.open("vqgan", "image")
    assert stage.root == stage.home == root
    assert stage.name == "vqgan-image"
    assert stage.block == stage.params.vqgan["image"]
    assert stage.reports == root / "reports/vqgan-image"
    assert stage.reports.is_dir()
    assert stage.path("models", stage.name) == root / "models/vqgan-image"
    assert (root / "models").is_dir()
    assert Stage.open("prepare").block == stage.params.prepare


def test_overrides_are_what_the_stage_and_its_lineage_have(root):
    stage = Stage.open("vqgan", "image", overrides={"vqgan.image.steps": 7, "size": "xs"})
    assert (stage.block.steps, stage.params.size) == (7, "xs")
    recorded = lineage(stage.params, "vqgan", "image")
    assert (recorded["size"], recorded["vqgan"]["image"]["steps"]) == ("xs", 7)
    assert load_params(root / "params.yaml").vqgan["image"].steps != 7


def test_outside_a_repository_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TesseraeError, match=r"holds dvc.yaml: start in a clone"):
        Stage.open("prepare")


def test_checkpoints_survive_dvcs_temporary_copy(root, monkeypatch):
    copy = root / ".dvc/tmp/exps/tmp0"
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (copy / name).write_bytes((root / name).read_bytes())
    monkeypatch.chdir(copy)
    stage = Stage.open("vqgan", "image")
    assert stage.root == copy
    assert stage.checkpoints == root / "checkpoints"


@pytest.mark.parametrize(
    ("kind", "target", "words"),
    [
        ("vqgan", "imag", "vqgan.imag is not in params.yaml: add it, or take one of image."),
        ("vqgan", None, "name one of image"),
        ("prepare", "image", "prepare has no targets"),
        ("scenes", None, "scenes is not a stage: take one of prepare"),
    ],
)
def test_a_wrong_stage_is_named_with_its_remedy(kind, target, words):
    with pytest.raises(StageError) as caught:
        stage_block(PARAMS, kind, target)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lineage_holds_what_the_result_depends_on():
    always = {"size", "seed", "precision", "compile", "effort", "prepare"}
    assert set(lineage(PARAMS, "prepare", None)) == always
    assert set(lineage(PARAMS, "codebook", "image")) == {*always, "vqgan", "codebook"}
    sample = lineage(PARAMS, "sample", "class")
    assert set(sample) == {*always, "vqgan", "transformer", "sample", "evaluation"}
    assert set(lineage(PARAMS, "vqgan", "image")) == {*always, "vqgan", "evaluation"}
    assert sample["vqgan"] == {"image": PARAMS.vqgan["image"].model_dump()}


@pytest.mark.parametrize(("effort", "expected"), [(1, 48), (3, 144), (0.5, 24), (0.01, 8)])
def test_sampling_follows_effort(root, effort, expected):
    path = root / "params.yaml"
    text = re.sub(r"num_eval_samples: \d+", "num_eval_samples: 48", path.read_text())
    path.write_text(re.sub(r"effort: \S+", f"effort: {effort}", text))
    stage = Stage.open("sample", "class")
    assert stage.block.num_eval_samples == expected
    assert stage.block.completions == stage.params.sample["class"].completions
    assert lineage(stage.params, "sample", "class")["sample"]["class"]["num_eval_samples"] == 48


def test_metrics_are_sorted_rounded_and_valid_json(root):
    stage = Stage.open("prepare")
    stage.metrics({"b": 1 / 3, "a": np.float32(1e-9), "n": np.int64(7)})
    stage.metrics({"worst": float("inf"), "inner": {"z": 2.0, "list": [0.1234567891]}})
    text = (stage.reports / "metrics.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    inner = {"z": 2.0, "list": [0.123457]}
    assert values == {"a": 1e-9, "b": 0.333333, "n": 7, "worst": None, "inner": inner}
    assert list(values) == sorted(values)
    Stage.open("prepare").metrics({"only": 1})
    assert json.loads((stage.reports / "metrics.json").read_text()) == {"only": 1}  # an execution starts anew


def test_numbers_keep_their_protocol_beside_them(root, monkeypatch):
    """Calls are joined, a number that is measured again has its new record, MLflow gets the numbers alone."""
    monkeypatch.delenv(tracking.RUN_VARIABLE)
    with Stage.open("vqgan", "image") as stage:
        stage.metrics({"val_lpips": 0.3, "val_lpips_low": 0.25}, [{"of": "val_lpips", "n": 9}])
        stage.metrics({"rfid": 4.0}, [{"of": "rfid", "n_generated": 48, "features": "Inception"}])
        stage.metrics({"val_lpips": 0.31}, [{"of": "val_lpips", "n": 10}])
    values = json.loads((stage.reports / "metrics.json").read_text())
    assert values["protocol"] == [{"of": "rfid", "n_generated": 48, "features": "Inception"},
                                  {"of": "val_lpips", "n": 10}]
    assert values["val_lpips"] == 0.31
    run = tracking.runs_table(root, "vqgan-image").iloc[0]
    assert {name for name in run.index if name.startswith("metrics.")} == {
        "metrics.val_lpips", "metrics.val_lpips_low", "metrics.rfid"}


def test_inception_weights_that_are_not_there_are_said_before_any_work(root, monkeypatch):
    path = root / "params.yaml"
    path.write_text(path.read_text().replace('inception_weights: ""', 'inception_weights: weights/inception.pth'))
    with pytest.raises(StageError) as caught:
        Stage.open("prepare")
    message = str(caught.value)
    assert message.startswith("evaluation.inception_weights names weights/inception.pth, and ")
    assert f"{root / 'weights/inception.pth'} is no file: put the weights there, or set the key" in message
    assert "\n" not in message
    (root / "weights").mkdir()
    (root / "weights/inception.pth").touch()
    assert Stage.open("prepare").inception_weights == root / "weights/inception.pth"
    copy = root / ".dvc/tmp/exps/tmp0"  # DVC's experiments see the repository's file
    copy.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (copy / name).write_bytes((root / name).read_bytes())
    monkeypatch.chdir(copy)
    assert Stage.open("prepare").inception_weights == root / "weights/inception.pth"


def test_the_last_numbers_are_the_end_of_their_curves(root, monkeypatch):
    """Not points at step 0, from which every curve of a comparison would begin."""
    monkeypatch.delenv(tracking.RUN_VARIABLE)
    with Stage.open("prepare") as stage:
        for step, value in ((6, 0.9), (12, 0.6)):
            stage.run.metrics({"val_nll": value}, step)
        stage.metrics({"steps": 12, "val_nll": 0.5})
        stage.metrics({"val_bits": 0.7})
    run = tracking.runs_table(root, "prepare").iloc[0]
    assert run["metrics.val_nll"] == 0.5
    curves = tracking.history(root, run["run_id"], ["val_nll", "val_bits"])
    assert curves["step"].tolist() == [6, 12]
    assert curves["val_nll"].tolist() == [0.9, 0.5]
    assert curves["val_bits"].iloc[-1] == 0.7


def test_a_full_disk_is_one_sentence(root, full_disk, monkeypatch):
    stage = Stage.open("prepare")
    stage.metrics({"n": 1})
    full_disk(root / "reports")
    with pytest.raises(DiskFullError, match=r"prepare/metrics\.json could not be written: free some space"):
        stage.metrics({"n": 2})
    with pytest.raises(DiskFullError, match=r"prepare/noise\.png could not be written"):
        stage.figure(Image.new("RGB", (4, 4)), "noise")
    monkeypatch.undo()
    assert [path.name for path in stage.reports.iterdir()] == ["metrics.json"]
    assert json.loads((stage.reports / "metrics.json").read_text()) == {"n": 1}


def test_figures_are_saved_small_and_shown_whole(root):
    stage = Stage.open("prepare")
    noise = np.random.default_rng(0).integers(0, 256, (450, 600, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    shown = [stage.figure(picture, "noise")]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown[0].data))), noise)
    figure = Figure(figsize=(10, 7.5))
    figure.subplots().imshow(noise)
    shown.append(stage.figure(figure, "plot"))
    for name in ("noise", "plot"):
        path = stage.reports / f"{name}.png"
        assert path.stat().st_size < stages.FIGURE_BYTES
        with Image.open(path) as saved:
            saved.load()
            assert saved.width / saved.height == pytest.approx(4 / 3, rel=0.15)
    for each in shown:
        with Image.open(io.BytesIO(each.data)) as whole:
            assert whole.mode != "P"
            assert whole.width >= 600


def textured(colours, side=48, columns=20):
    """A grid of pictures of these colours (N,3), each with the light and the weave of a photograph."""
    generator = np.random.default_rng(0)
    light = np.linspace(0.55, 1, side)[:, None, None] * generator.normal(1, 0.06, (len(colours), side, side, 1))
    pictures = (np.asarray(colours)[:, None, None] * light).clip(0, 255).astype(np.uint8)
    rows = [np.concatenate(list(pictures[start:start + columns]), 1) for start in range(0, len(pictures), columns)]
    return np.concatenate(rows)


def dull_but_one():
    """Grey and blue pictures, and among them a yellow one."""
    colours = np.random.default_rng(1).integers((60, 60, 80), (140, 150, 190), (400, 3))
    colours[57] = 250, 215, 10
    return textured(colours)


def saturated():
    hues = np.random.default_rng(2).random((400, 1)) * 2 * np.pi + np.array([0, 2, 4]) * np.pi / 3
    return textured((127.5 + 127.5 * np.cos(hues)).astype(np.uint8))


def masks_beside_pictures():
    pixels = saturated()
    pixels[:, ::2] = pixels[::4, ::4].repeat(4, 0).repeat(4, 1)[:len(pixels), ::2]
    pixels[:240] = np.random.default_rng(3).integers(0, 256, (10, 40, 3), dtype=np.uint8).repeat(24, 0).repeat(24, 1)
    return pixels


@pytest.mark.parametrize("make", [dull_but_one, saturated, masks_beside_pictures])
def test_the_colours_of_a_small_figure_are_true(root, make):
    """Whatever was done to bring 2 MB below the limit: no pixel is far from what it was, in no channel."""
    picture = Image.fromarray(make())
    stage = Stage.open("prepare")
    stage.figure(picture, "colours")
    path = stage.reports / "colours.png"
    assert path.stat().st_size < stages.FIGURE_BYTES
    saved = Image.open(path)
    assert saved.width > 0.4 * picture.width
    expected = np.asarray(picture.resize(saved.size, Image.Resampling.LANCZOS)).astype(int)
    error = np.abs(np.asarray(saved.convert("RGB")) - expected)
    assert error.mean() < 2.5
    assert np.percentile(error, 99.9) <= 5
    assert error.max() <= 5


@pytest.mark.parametrize("classes", [3, 182])
def test_masks_are_saved_exactly(root, classes):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (classes, 3), dtype=np.uint8)
    mask = colours[generator.integers(0, classes, (110, 150)).repeat(6, 0).repeat(6, 1)]
    stage = Stage.open("prepare")
    stage.figure(Image.fromarray(mask), "mask")
    assert (stage.reports / "mask.png").stat().st_size < stages.FIGURE_BYTES
    assert np.array_equal(np.asarray(Image.open(stage.reports / "mask.png").convert("RGB")), mask)


def test_a_mask_that_is_too_large_has_no_mixed_colours(root):
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (182, 3), dtype=np.uint8)
    stage = Stage.open("prepare")
    stage.figure(Image.fromarray(colours[generator.integers(0, 182, (900, 900))]), "mask")
    assert (stage.reports / "mask.png").stat().st_size < stages.FIGURE_BYTES
    found = np.asarray(Image.open(stage.reports / "mask.png").convert("RGB")).reshape(-1, 3)
    assert {tuple(colour) for colour in np.unique(found, axis=0)} <= {tuple(colour) for colour in colours}


def test_a_small_figure_keeps_its_pixels(root):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    stage = Stage.open("prepare")
    stage.figure(picture, "small")
    assert np.array_equal(np.asarray(Image.open(stage.reports / "small.png")), np.asarray(picture))


def test_a_figure_of_pyplot_is_not_shown_twice(root):
    from matplotlib import pyplot

    figure = pyplot.figure()
    Stage.open("prepare").figure(figure, "plot")
    assert not pyplot.fignum_exists(figure.number)


def test_the_run_ends_as_the_stage_did(root, monkeypatch):
    monkeypatch.delenv(tracking.RUN_VARIABLE)
    with Stage.open("prepare") as stage:
        stage.metrics({"n": 1})
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), Stage.open("prepare") as stage:  # noqa: PT012
            stage.metrics({"n": 1})
            raise error
    table = tracking.runs_table(root, "prepare")
    assert table["status"].tolist() == ["KILLED", "FAILED", "FINISHED"]
    assert table["metrics.n"].tolist()[-1] == 1
    monkeypatch.setenv("RANK", "1")
    assert Stage.open("prepare").run.key is None, "only the first process reports"


def test_the_model_goes_to_the_run(root, monkeypatch):
    monkeypatch.delenv(tracking.RUN_VARIABLE)
    with Stage.open("vqgan", "image") as stage:
        folder = stage.path("models", "vqgan-image", "model.safetensors").parent
        for name in ("model.safetensors", "config.json"):
            (folder / name).write_text(name)
    kept = {path.name for path in (root / "mlruns").glob("*/artifacts/model/*")}
    assert kept == {"model.safetensors", "config.json"}
