"""From pictures to samples in a clone: everything runs, then nothing, then only what a change touches."""

import csv
import io
import json
import re
import time

import psutil
import pytest
from PIL import Image

from tesserae import tracking

INPUTS = ["inputs@class", "inputs@layout"]
STAGES = ["prepare", "vqgan@image", "vqgan@segmentation", "codebook@image", "codebook@segmentation",
          "transformer@class", "transformer@layout", "sample@class", "sample@layout", "highres@layout"]
SMALL = {"channels": 32, "channel_mult": [1, 1], "patch": 4, "z_channels": 32, "codebook_size": 16, "codebook_dim": 8,
         "crop": 16, "steps": 4, "batch_size": 4, "warmup": 0, "log_every": 2, "sample_every": 4, "eval_every": 4,
         "eval_images": 4, "checkpoint_every": 4}  # of both VQGANs: f = 8, so 4x4 codes a picture
FEW = {"batch_size": 16, "dictionary": 4, "patches": 2, "num_images": 4}
SHALLOW = {"n_layer": 1, "n_head": 2, "n_embd": 32, "steps": 4, "batch_size": 4, "warmup": 0, "log_every": 2,
           "sample_every": 4, "eval_every": 4, "eval_images": 8, "checkpoint_every": 4}
ONE = {"top_k": 0, "per_class": 1, "num_eval_samples": 12, "completions": 1, "neighbours": 1, "num_conditions": 1}
TINY = {
    "threads": 1,
    "scenes": {"count": 48, "size": 32},
    "prepare": {"image_size": 32, "min_side": 16, "holdout": 0.3},
    "vqgan.image": SMALL | {"disc_start": 2, "disc_channels": 8, "disc_layers": 1},
    "vqgan.segmentation": SMALL | {"zoom": 2.0},
    "codebook.image": FEW,
    "codebook.segmentation": FEW,
    "transformer.class": SHALLOW,
    "transformer.layout": SHALLOW | {"window": 2},
    "sample.class": ONE,
    "sample.layout": ONE | {"stride": 2},
    "highres.layout": {"sizes": [[32, 48]], "compare_stride": 2, "tile": 8},
}
pytestmark = pytest.mark.slow


def shrunk(values: dict) -> dict:
    """The parameters of the repository, with the smallest sizes that go through every line."""
    for name, changes in TINY.items():
        *way, last = name.split(".")
        block = values
        for key in way:
            block = block[key]
        block[last] = block[last] | changes if isinstance(changes, dict) else changes
    return values


def end_of_queue(clone, seconds: float = 900) -> str:
    """Wait until DVC's workers, which end by themselves, have ended; what the queue holds then.

    Nothing is asked while they work: a worker that reads half of a question dies, and leaves the rest in the queue.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        while workers(clone) and time.monotonic() < end:
            time.sleep(1)
        status = clone.run("dvc", "queue", "status")
        if "Queued" not in status:
            return status
        clone.run("dvc", "queue", "start", "--jobs", "2")
    raise AssertionError("the queue did not end")


def workers(clone) -> list[int]:
    """The processes of DVC's queue for this clone."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        if "queue-worker" in (process.info["cmdline"] or ()) and process.info["cwd"] == str(clone.root):
            found.append(process.pid)
    return found


def stages_run(text: str) -> list[str]:
    return re.findall(r"Running stage '(.+?)'", text)


@pytest.fixture(scope="module")
def repository(clone):
    """The clone with its data, and the whole pipeline run once."""
    clone.set_params(shrunk(clone.params()))
    clone.run("python", "-m", "tesserae.scenes")
    clone.run("dvc", "add", "-q", "data")
    clone.commit("Add the data")
    assert sorted(stages_run(clone.run("dvc", "repro"))) == sorted(["check", *INPUTS, *STAGES])
    assert clone.run("git", "status", "--porcelain").split() == ["??", "dvc.lock"]
    clone.commit("Run the pipeline")
    return clone


def test_every_stage_leaves_its_results(repository):
    root = repository.root
    models = [name.replace("@", "-") for name in STAGES if name.startswith(("vqgan", "transformer"))]
    for name in models:
        assert (root / "models" / name / "model.safetensors").stat().st_size > 1000
    for name in STAGES:
        name = name.replace("@", "-")
        assert json.loads((root / f"reports/{name}/metrics.json").read_text())
        assert json.loads((root / f"reports/notebooks/{name}.ipynb").read_text())["cells"]
    for name in models:
        rows = list(csv.DictReader((root / f"reports/{name}/history.csv").open()))
        assert int(rows[-1]["step"]) == 4
    for name in ("class", "layout", "highres-layout"):
        assert any((root / "samples" / name).rglob("*.png"))
    with Image.open(next((root / "samples/highres-layout").rglob("*.png"))) as picture:
        assert picture.size == (48, 32)
    pictures = list((root / "reports").rglob("*.png"))
    assert len(pictures) > 10
    assert max(path.stat().st_size for path in pictures) < 300_000


def test_every_execution_is_a_finished_run(repository):
    table = tracking.runs_table(repository.root)
    first = table[table["tags.dvc.experiment"].isna()] if "tags.dvc.experiment" in table else table
    assert sorted(first["tags.dvc.stage"]) == sorted(STAGES)
    assert set(table["status"]) == {"FINISHED"}
    assert set(table["tags.git.dirty"]) == {"false"}
    assert table["tags.data.hash"].nunique() == 1


def test_a_second_repro_runs_nothing(repository):
    began = time.monotonic()
    text = repository.run("dvc", "repro")
    assert stages_run(text) == ["check"]
    assert time.monotonic() - began < 30
    assert repository.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"sample.class.temperature": 0.5, "transformer.layout.n_layer": 2}, ["sample@class", "transformer@layout"]),
        ({"transformer.class.n_layer": 2, "codebook.segmentation.num_images": 3, "highres.layout.stride": 2},
         ["codebook@segmentation", "highres@layout", "transformer@class"]),
        ({"codebook.image.num_images": 3, "vqgan.segmentation.codebook_size": 32, "sample.layout.temperature": 0.5},
         ["codebook@image", "sample@layout", "vqgan@segmentation"]),
        ({"vqgan.image.codebook_size": 32, "scenes.count": 1}, ["vqgan@image"]),
        ({"prepare.holdout": 0.4}, ["prepare"]),
    ],
)
def test_a_change_runs_what_it_touches(repository, changes, first):
    before = repository.params()
    values = repository.params()
    for name, value in changes.items():
        *way, last = name.split(".")
        inner = values
        for key in way:
            inner = inner[key]
        inner[last] = value
    repository.set_params(values)
    try:
        text = repository.run("dvc", "repro", "--dry")
    finally:
        repository.set_params(before)
    assert sorted(stages_run(text)) == sorted(["check", *first])  # what follows depends on what comes out of it


def test_the_tables_and_plots_of_dvc_work(repository):
    shown = json.loads(repository.run("dvc", "metrics", "show", "--json"))
    values = next(iter(shown.values()))["data"]
    assert {f"reports/{name.replace('@', '-')}/metrics.json" for name in STAGES} == set(values)
    assert not any("protocol" in each["data"] for each in values.values())  # words would make the table unreadable
    assert "frechet_vgg16_low" in values["reports/sample-class/metrics.json"]["data"]
    repository.run("dvc", "plots", "show", "--out", "plots")
    page = (repository.root / "plots/index.html").read_text()
    assert page.count("<img") >= 5
    assert page.count("/curves.png") + page.count("_curves.png") >= 1, "what is shown without a network"
    assert page.count("vega") >= 2


def test_queued_experiments_run_beside_the_workspace(repository):
    """Three at once in DVC's temporary copies: results come back apart, runs go to the one store."""
    settings = {
        "deep": "transformer.class.n_layer=2",
        "cool": "sample.class.temperature=0.5",
        "hot": "sample.class.temperature=2.0",
    }
    for name, setting in settings.items():
        repository.run("dvc", "exp", "run", "--queue", "--name", name, "--set-param", setting)
    repository.run("dvc", "queue", "start", "--jobs", "2")
    status = end_of_queue(repository)
    assert status.count("Success") == 3, status
    rows = list(csv.DictReader(io.StringIO(repository.run("dvc", "exp", "show", "--csv"))))
    found = {row["Experiment"]: row for row in rows if row["Experiment"]}
    assert set(settings) <= set(found)
    assert found["deep"]["transformer.class.n_layer"] == "2"
    assert float(found["hot"]["sample.class.temperature"]) == 2.0
    assert repository.run("git", "status", "--porcelain", "--untracked-files=no") == ""
    table = tracking.runs_table(repository.root)
    runs = table.groupby("tags.dvc.experiment")["stage"].apply(sorted).to_dict()
    assert runs == {
        "deep": ["sample-class", "transformer-class"],
        "cool": ["sample-class"],
        "hot": ["sample-class"],
    }
    assert set(table["status"]) == {"FINISHED"}
