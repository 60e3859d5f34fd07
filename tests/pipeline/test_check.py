"""What cannot work is refused before an output goes; what changed is noticed, and what did not is not."""

import json
import re
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_whole_pipeline import end_of_queue, stages_run
from tests.plain import plain_text

from tesserae.files import write_table

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STAGES = ["prepare", "vqgan@image", "codebook@image", "inputs@class", "transformer@class", "sample@class"]
NOTEBOOK = "notebooks/02_train_vqgan.ipynb"


@pytest.fixture(scope="module")
def project(clone):
    """A clone of which DVC believes that all stages have run: their outputs are there, and hold their names."""
    (clone.root / "params.yaml").write_text(plain_text())
    for number in range(3):
        path = clone.root / f"data/cats/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"picture {number}")
    clone.run("dvc", "add", "-q", "data")
    clone.run("python", "-m", "tesserae.pipeline.check")
    pipeline = YAML(typ="safe", pure=True).load((clone.root / "dvc.yaml").read_text())["stages"]
    for name in STAGES:
        kind, _, key = name.partition("@")
        stage = pipeline[kind].get("do", pipeline[kind])
        for out in (*stage["outs"], *stage.get("metrics", ()), *stage.get("plots", ())):
            _write(clone.root / (out if isinstance(out, str) else next(iter(out))).replace("${key}", key))
    clone.run("python", "-m", "tesserae.pipeline.inputs", "--target", "class")
    clone.run("dvc", "commit", "-q", "--force")
    clone.commit("Everything has run")
    assert stages_run(clone.run("dvc", "repro")) == ["check"]
    assert clone.run("git", "status", "--porcelain") == ""
    return clone


def _write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        write_table(path, [{"step": 1, "rec": 0.5}])
    elif path.suffix:
        path.write_text(json.dumps({"value": 1}))
    else:
        path.mkdir(exist_ok=True)
        (path / "model.safetensors").write_text(path.name)


@pytest.fixture
def params(project):
    """The text of params.yaml, which is put back."""
    path = project.root / "params.yaml"
    text = path.read_text()
    yield text
    path.write_text(text)


def outputs(project):
    return sorted(path for folder in ("prepared", "models", "codes", "samples", "reports")
                  for path in (project.root / folder).rglob("*"))


REFUSED = {
    "size": (r"codebook_size: 256", "codebook_size: 1", "params.yaml: vqgan.image.codebook_size = 1 is not allowed"),
    "heads": (r"n_head: auto", "n_head: 3", "must be a multiple of n_head = 3"),
    "weights": (r'inception_weights: ""', "inception_weights: gone.pth",
                "evaluation.inception_weights names gone.pth"),
    "no folder": (r"source: data", "source: nowhere", "prepare.source = nowhere is not there"),
    "outputs": (r"source: data", "source: .", "holds what the pipeline itself writes"),
    "file": (r"source: data", "source: params.yaml", "prepare.source = params.yaml is a file"),
    "hub": (r"source: data", "source: nobody/nothing", "nobody/nothing is neither a folder here nor a dataset that"),
    "column": (r"column: image", "column: depht", "vqgan.image.column = 'depht' is not among the columns of data"),
}


def refuse(project, params, fault, *commands):
    """Make one thing wrong, and see that each command stops at the check with its sentence alone."""
    (old, new, message), before = REFUSED[fault], outputs(project)
    text, count = re.subn(old, new, params, count=1)
    assert count == 1
    (project.root / "params.yaml").write_text(text)
    for command in commands:
        shown = project.run(*command, fails=True)
        assert message in shown
        assert "Traceback" not in shown
        assert command[0] == "python" or stages_run(shown) == ["check"]
        assert outputs(project) == before
    (project.root / "params.yaml").write_text(params)


@pytest.mark.parametrize("fault", ["size", "hub"])
def test_what_cannot_work_leaves_every_output(project, params, monkeypatch, fault):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nobody waits for a hub
    refuse(project, params, fault, ["dvc", "repro"], ["dvc", "repro", "--force", "vqgan@image"])
    assert stages_run(project.run("dvc", "repro")) == ["check"]
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize("fault", sorted({*REFUSED} - {"size", "hub"}))
def test_what_cannot_work_is_refused_by_the_check(project, params, fault):
    refuse(project, params, fault, ["python", "-m", "tesserae.pipeline.check"])


def test_damaged_inception_weights_are_refused_before_training(project, params):
    (project.root / "weights.pth").write_text("half of a file")
    before = outputs(project)
    text = params.replace('inception_weights: ""', "inception_weights: weights.pth")
    (project.root / "params.yaml").write_text(text)
    shown = project.run("dvc", "repro", fails=True)
    (project.root / "weights.pth").unlink()
    assert "evaluation.inception_weights names" in shown
    assert "which is damaged" in shown
    assert outputs(project) == before


def test_a_hub_is_not_asked_again_for_what_is_prepared(project, params, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = project.root / "prepared/made.json"
    (project.root / "params.yaml").write_text(params.replace("source: data", "source: nobody/nothing"))
    made.write_text(json.dumps({"prepare": {"source": "nobody/nothing", "hub_config": "", "hub_split": "",
                                            "hub_revision": ""}}))
    try:
        project.run("python", "-m", "tesserae.pipeline.check")
        made.write_text(made.read_text().replace('"hub_split": ""', '"hub_split": "test"'))
        assert "nobody/nothing is neither" in project.run("python", "-m", "tesserae.pipeline.check", fails=True)
    finally:
        made.unlink()
        (project.root / "params.yaml").write_text(params)
        project.run("python", "-m", "tesserae.pipeline.check")


def test_a_refused_experiment_says_how_to_get_back(project, params):
    before = outputs(project)
    shown = project.run("dvc", "exp", "run", "-S", "vqgan.image.codebook_size=1", fails=True)
    assert "params.yaml keeps the change: to get back, set vqgan.image.codebook_size: 256 there." in shown
    assert outputs(project) == before


def test_what_a_stage_run_alone_lost_can_be_brought_back(project, params):
    """`--single-item` passes over the check."""
    before = outputs(project)
    (project.root / "params.yaml").write_text(params.replace("codebook_size: 256", "codebook_size: 1"))
    shown = project.run("dvc", "repro", "--single-item", "vqgan@image", fails=True)
    assert "dvc checkout brings back what the stage made before." in shown
    project.run("dvc", "checkout")
    assert [path for path in outputs(project) if path.name != "vqgan-image.ipynb"] == [
        path for path in before if path.name != "vqgan-image.ipynb"]
    (project.root / "params.yaml").write_text(params)
    project.run("dvc", "checkout", "--force")


def test_another_source_is_logged(project, params, tmp_path):
    shutil.copytree(project.root / "data", tmp_path / "pictures")
    (project.root / "params.yaml").write_text(params.replace("source: data", f"source: {tmp_path / 'pictures'}"))
    assert f"prepare.source was data and is {tmp_path / 'pictures'} now." in project.run("dvc", "repro", "check")
    (project.root / "params.yaml").write_text(params)
    assert f"prepare.source was {tmp_path / 'pictures'} and is data now." in project.run("dvc", "repro", "check")
    assert "prepare.source" not in project.run("dvc", "repro", "check")


def test_what_was_edited_runs_and_nothing_else(project, params):
    (project.root / "params.yaml").write_text(params.replace("per_class: ", "per_class: 1"))
    assert stages_run(project.run("dvc", "repro", "--dry")) == ["check", "sample@class"]


def test_a_saved_notebook_runs_nothing_and_an_edited_one_its_stages(project):
    path = project.root / NOTEBOOK
    before = path.read_text()
    notebook = json.loads(before)
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.12.1"}
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"another-{number}"
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    try:
        path.write_text(json.dumps(notebook, indent=4))
        assert stages_run(project.run("dvc", "repro")) == ["check"]
        assert project.run("dvc", "status").split() == ["check:", "always", "changed"]
        cell["source"] = ["print(1)"]
        path.write_text(json.dumps(notebook))
        project.run("python", "-m", "tesserae.pipeline.check")
        assert "vqgan@image" in project.run("dvc", "status")
        path.write_text("{")
        assert "02_train_vqgan.ipynb is no notebook" in project.run("dvc", "repro", fails=True)
    finally:
        path.write_text(before)
        project.run("python", "-m", "tesserae.pipeline.check")
    assert project.run("dvc", "status").split() == ["check:", "always", "changed"]


def test_other_codes_than_those_it_reads_do_not_train_a_transformer_again(project, params):
    other = project.root / "codes/other/train.safetensors"
    other.parent.mkdir()
    other.write_text("codes")
    try:
        assert stages_run(project.run("dvc", "repro")) == ["check", "inputs@class"]
        own = project.root / "codes/image/model.safetensors"
        own.write_text("other codes")
        project.run("python", "-m", "tesserae.pipeline.inputs", "--target", "class")
        changed = project.run("dvc", "status")
        assert "transformer@class" in changed
        assert "sample@class" in changed
    finally:
        shutil.rmtree(other.parent)
        project.run("git", "checkout", "-q", "dvc.lock")
        project.run("dvc", "checkout", "-q", "--force")
    assert project.run("git", "status", "--porcelain") == ""


def test_pictures_elsewhere_are_noticed_and_data_is_not_asked_for(project, params, tmp_path):
    elsewhere = tmp_path / "pictures"
    shutil.copytree(project.root / "data", elsewhere)
    (project.root / "params.yaml").write_text(params.replace("source: data", f"source: {elsewhere}"))
    (project.root / "data").rename(project.root / "data-away")
    try:
        project.run("python", "-m", "tesserae.pipeline.check")
        first = (project.root / ".checked/source.json").read_text()
        (elsewhere / "cats/3.png").write_text("one more")
        assert "Running stage 'prepare'" in project.run("dvc", "repro", "prepare", fails=True)  # no real pictures
        assert json.loads(first)["files"] == 3
        assert json.loads((project.root / ".checked/source.json").read_text())["files"] == 4
    finally:
        (project.root / "data-away").rename(project.root / "data")
        (project.root / "params.yaml").write_text(params)
        project.run("git", "checkout", "-q", ".")
        project.run("dvc", "checkout", "-q", "--force")
    assert stages_run(project.run("dvc", "repro")) == ["check"]


def test_data_dvc_follows_the_pictures_in_data(project, params):
    """An experiment begins with a checkout, and a colleague with a pull."""
    tracked = project.root / "data.dvc"
    before = tracked.read_text()
    (project.root / "data/cats/9.png").write_text("one more")
    project.run("python", "-m", "tesserae.pipeline.check")
    assert "nfiles: 4" in tracked.read_text()
    (project.root / "data/cats/9.png").unlink()
    project.run("python", "-m", "tesserae.pipeline.check")
    assert tracked.read_text() == before


def test_reports_of_blocks_that_are_gone_move_aside(project, params):
    text = re.sub(r"\n(sample|transformer):(.*)\n  class:", r"\n\1:\2\n  other:", params)
    (project.root / "params.yaml").write_text(text)
    shown = project.run("dvc", "repro", "check")
    assert "params.yaml has no stage any more for models/transformer-class, " in shown
    assert (project.root / "earlier/models/transformer-class/model.safetensors").read_text() == "transformer-class"
    assert not (project.root / "reports/sample-class").exists()
    (project.root / "params.yaml").write_text(params)
    project.run("dvc", "checkout")
    assert stages_run(project.run("dvc", "repro")) == ["check"]


def test_a_relative_source_works_in_a_queued_experiment(project, params):
    """DVC runs it in a copy elsewhere; seen from there, the folder would be another one."""
    pictures = project.root.parent / "beside"
    shutil.copytree(project.root / "data", pictures)
    (project.root / "params.yaml").write_text(params.replace("source: data", "source: ../beside"))
    project.run("dvc", "exp", "run", "--queue", "--name", "beside", "-S", "seed=1", "check")
    project.run("dvc", "queue", "start")
    assert "Success" in end_of_queue(project)
    shutil.rmtree(pictures)
