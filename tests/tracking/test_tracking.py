"""MLflow: everything arrives, nothing raises, two may write at once."""

import json
import multiprocessing
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tesserae import tracking
from tesserae.tracking.describe import changed, datasets_read, in_words, provenance
from tesserae.tracking.journal import journals
from tesserae.tracking.replay import deliver
from tesserae.tracking.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(store_of):
    """One store for all tests that can share it."""
    return store_of()


def test_what_is_logged_comes_back(root):
    params = {"vqgan": {"image": {"K": 8, "betas": [0.5, 0.9]}}}
    run = tracking.start_run(root, "vqgan-image", params)
    for step in range(5):
        run.metrics({"loss": {"rec": 1 / (step + 1)}, "usage": np.float32(0.5), "note": "no number"}, step)
    run.metrics({"last": float("nan")})
    run.image(np.full((8, 8, 3), 200, np.uint8), "samples", 3)
    run.image(Image.new("RGB", (4, 4)), "samples", 2)
    (root / "notes.txt").write_text("hello")
    run.artifact(root / "notes.txt", "texts")
    run.finish()

    table = tracking.runs_table(root, "vqgan-image")
    (row,) = table.to_dict("records")
    assert (row["stage"], row["status"]) == ("vqgan-image", "FINISHED")
    assert row["params.vqgan.image.K"] == 8
    assert row["params.vqgan.image.betas"] == [0.5, 0.9]
    assert row["metrics.loss.rec"] == pytest.approx(0.2)
    history = tracking.history(root, row["run_id"], ["loss.rec", "usage"])
    assert history["step"].tolist() == [0, 1, 2, 3, 4]
    assert history["loss.rec"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert "note" not in tracking.history(root, row["run_id"])
    pictures = tracking.images(root, row["run_id"])
    assert [(key, step) for key, step, _ in pictures] == [("samples", 2), ("samples", 3)]
    assert np.asarray(Image.open(pictures[1][2])).min() == 200
    files = {path.name for path in (root / "mlruns").rglob("*") if path.is_file()}
    assert "notes.txt" in files


def test_tags_tie_a_run_to_code_data_and_parameters(tmp_path, monkeypatch):
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0123abcd.dir\n  path: data\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    monkeypatch.setenv("DVC_STAGE", "vqgan@image")
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    tags = provenance(tmp_path, "vqgan-image")
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == head.stdout.strip()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"]
    assert tags["mlflow.source.git.branch"]
    assert tags["mlflow.user"]
    assert tags["git.dirty"] == "false"
    assert tags["data.hash"] == "0123abcd"
    assert (tags["dvc.stage"], tags["dvc.experiment"]) == ("vqgan@image", "wide")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/new.py").write_text("1")
    assert provenance(tmp_path, "vqgan-image")["git.dirty"] == "true"


def git(folder, *words):
    subprocess.run(["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=b", *words], check=True)


def committed(folder, params):
    (folder / "params.yaml").write_text(params)
    git(folder, "init", "-q")
    git(folder, "add", "params.yaml")
    git(folder, "commit", "-q", "-m", "x")


def changes(folder, values):
    return in_words(changed(folder, values))


def test_a_name_says_what_differs_from_the_committed_parameters(tmp_path):
    assert changes(tmp_path, {"seed": 1}) == "", "no repository"
    committed(tmp_path, "seed: 0\nvqgan:\n  image: {lr: 1.0e-4, betas: [0.5, 0.9], levels: auto, steps: 10}\n"
                        "  edge: {steps: 10}\n")
    values = {"seed": 0, "vqgan": {"image": {"lr": 1e-4, "betas": (0.5, 0.9), "levels": [4], "steps": 10.0}}}
    assert changes(tmp_path, values) == ""
    assert changes(tmp_path, values | {"seed": 1}) == "seed=1"
    values["vqgan"] = {"image": {"lr": 2e-4, "steps": 20}, "edge": {"steps": 5}}
    assert changes(tmp_path, values) == "lr=0.0002, vqgan.image.steps=20, vqgan.edge.steps=5"


def test_all_parameters_can_be_searched_in_mlflow(home):
    params = {"seed": 0, "vqgan": {"image": {"lr": 2e-4, **{f"key_{number}": number for number in range(150)}}}}
    run = tracking.start_run(home, "vqgan-image", params)
    run.begin()
    run.finish()
    store = Store(home)
    (found,) = store.client.search_runs([store.experiment], "params.`vqgan.image.lr` = '0.0002'")
    assert len(found.data.params) == 152


def test_a_run_begins_when_something_is_recorded(home):
    tracking.start_run(home, "opened").finish()
    assert tracking.runs_table(home).empty
    assert not list((home / ".tracking").glob("outbox/*"))


def test_a_cell_that_is_run_again_leaves_no_orphan(home):
    first = tracking.start_run(home, "vqgan-image")
    first.metrics({"rec": 1}, 1)
    second = tracking.start_run(home, "vqgan-image")
    first.metrics({"rec": 2}, 2)  # goes on until the second records
    second.metrics({"rec": 3}, 1)
    first.metrics({"rec": 4}, 3)
    second.finish()
    while journals(home):
        time.sleep(0.05)
    assert sorted(tracking.runs_table(home)[["status", "metrics.rec"]].itertuples(index=False, name=None)) == [
        ("FINISHED", 3), ("KILLED", 2)]


def test_a_process_joins_the_run_of_another(root, monkeypatch):
    first = tracking.start_run(root, "joined", {"seed": 0})
    first.begin()
    monkeypatch.setenv(tracking.RUN_VARIABLE, first.key)
    second = tracking.start_run(root, "joined", {"seed": 0})
    second.metrics({"n": 1}, section="report")
    while "metrics.n" not in (table := tracking.runs_table(root, "joined")):  # who began the run sends for both
        time.sleep(0.1)
    assert table["status"].tolist() == ["RUNNING"]
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    silent = tracking.start_run(root, "joined")
    silent.metrics({"n": 2})
    assert silent.key is None, "the pipeline wants none"
    first.finish()
    assert tracking.runs_table(root, "joined")["status"].tolist() == ["FINISHED"]


def test_stages_of_one_execution_of_dvc_have_a_parent(home, monkeypatch, unsent):
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789abcdef")
    for name, status in (("prepare", "FINISHED"), ("vqgan-image", "FAILED")):
        run = tracking.start_run(home, name)
        run.metrics({"n": 1}, 1)
        run.finish(status)
        deliver(*journals(home), Store(home))
    monkeypatch.delenv("DVC_EXP_NAME")
    alone = tracking.start_run(home, "alone")
    alone.begin()
    alone.finish()
    deliver(*journals(home), Store(home))
    store = Store(home)
    runs = {run.info.run_name: run for run in store.client.search_runs([store.experiment])}
    assert set(runs) == {"wide", "prepare: wide", "vqgan-image: wide", "alone"}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {"wide": None, "alone": None, "prepare: wide": runs["wide"].info.run_id,
                       "vqgan-image: wide": runs["wide"].info.run_id}
    assert runs["wide"].info.status == "FAILED"
    assert sorted(tracking.runs_table(home)["stage"]) == ["alone", "prepare", "vqgan-image"]


def test_the_environment_names_store_and_experiment(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    run = tracking.start_run(home, "prepare")
    run.metrics({"n": 1}, 1)
    run.finish()
    assert tracking.runs_table(home)["metrics.n"].tolist() == [1]
    client = Store(home, f"sqlite:///{tmp_path}/other.db").client
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    assert len(client.search_runs([experiment.experiment_id])) == 1
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert tracking.runs_table(home).empty


def test_a_run_describes_itself(home, unsent):
    (home / "dvc.yaml").write_text("stages:\n  vqgan:\n    foreach: [image]\n    do: {desc: Learn a codebook}\n")
    for split, digest in (("train", "0123"), ("validation", "4567")):
        (home / "prepared" / split).mkdir(parents=True)
        (home / "prepared" / split / "state.json").write_text(json.dumps({"_fingerprint": digest}))
    (home / "run.ipynb").write_text(json.dumps({
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": ["# A headline"]}],
        "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    assert len(datasets_read(home)) == 2
    run = tracking.start_run(home, "vqgan-image")
    run.metrics({"rec": 0.3, "val_rec": 0.4}, 10)
    run.metrics({"rfid": 4.25, "val_lpips": 0.3}, 10, section="report")
    run.artifact(home / "run.ipynb", "notebook")
    run.finish()
    store = Store(home)
    deliver(*journals(home), store)
    found = store.client.get_run(store.client.search_runs([store.experiment])[0].info.run_id)
    assert found.data.tags["mlflow.note.content"] == (
        "**vqgan-image**: Learn a codebook.\n\nrfid **4.25**, val_lpips **0.3**")
    assert set(found.data.metrics) == {"train/rec", "val/rec", "val/lpips", "report/rfid"}
    assert [(each.dataset.name, each.dataset.digest, each.tags[0].value) for each in found.inputs.dataset_inputs] == [
        ("prepared/train", "0123", "training"), ("prepared/validation", "4567", "validation")]
    (page,) = (home / "mlruns").rglob("run.html")
    assert ">A headline<" in page.read_text()
    row = tracking.runs_table(home).iloc[0]
    assert (row["metrics.rec"], row["metrics.val_rec"], row["metrics.rfid"]) == (0.3, 0.4, 4.25)


def test_runs_of_an_older_version_are_read(home):
    """Their metrics have no sections, their pictures other separators."""
    store = Store(home)
    run = store.client.create_run(store.experiment, tags={"stage": "vqgan-image"}).info.run_id
    store.client.log_metric(run, "val_lpips", 0.5, step=3)
    store.client.log_metric(run, "val/lpips", 0.4, step=4)  # as a newer one
    (home / "images").mkdir()
    Image.new("RGB", (4, 4)).save(home / "images" / "samples%step%2%timestamp%1%ab-c.png")
    store.client.log_artifacts(run, str(home / "images"), "images")
    assert tracking.history(home, run)["val_lpips"].tolist() == [0.5, 0.4]
    assert [(key, step) for key, step, _ in tracking.images(home, run)] == [("samples", 2)]


@pytest.mark.parametrize(
    ("copy", "home"),
    [
        ("r/.dvc/tmp/exps/tmpab12", "r"),
        ("r/.dvc/tmp/exps/standalone/tmpab12", "r"),
        ("r/.dvc/tmp/exp/tmpab12", "r/.dvc/tmp/exp/tmpab12"),
    ],
)
def test_dvcs_temporary_copies_report_to_the_repository(tmp_path, copy, home):
    (tmp_path / copy).mkdir(parents=True)
    assert tracking.real_root(tmp_path / copy) == tmp_path / home


def write_many(root: str, number: int) -> None:
    run = tracking.start_run(root, f"stage-{number}", {"number": number})
    for step in range(300):
        run.metrics({"value": step, "other": number}, step)
        if step % 50 == 0:
            run.image(np.zeros((8, 8, 3), np.uint8), "grid", step)
            time.sleep(0.01)
    run.finish()


def test_two_experiments_may_write_at_once(tmp_path):
    """From nothing: even the store itself is created by whoever comes first."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(str(tmp_path), number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    table = tracking.runs_table(tmp_path)
    assert sorted(table["params.number"]) == [0, 1, 2]
    assert set(table["status"]) == {"FINISHED"}
    for run_id in table["run_id"]:
        assert len(tracking.history(tmp_path, run_id)) == 300
        assert len(tracking.images(tmp_path, run_id)) == 6


def test_what_cannot_be_recorded_does_not_stop_the_rest(root, capfd):
    run = tracking.start_run(root, "refused", {"long": "x" * 100_000, "a name/with:odd*signs": 1})
    run.artifact(root / "missing.txt")
    run.image("not a picture", "x", 0)
    run.metrics({"odd*name": 1, "ok": 2}, 0)
    run.finish()
    (row,) = tracking.runs_table(root, "refused").to_dict("records")
    assert (row["metrics.ok"], row["status"]) == (2, "FINISHED")
    assert capfd.readouterr().err.count("\n") == 1, "one sentence"


def test_logging_costs_a_step_next_to_nothing(root):
    run = tracking.start_run(root, "prepare")
    run.begin()
    values = {f"term_{n}": 0.5 for n in range(20)}
    began = time.thread_time()  # of this thread alone: the machine may be busy
    for step in range(1000):
        run.metrics(values, step)
    assert (time.thread_time() - began) / 1000 < 1e-3
    run.finish()


def test_importing_the_module_does_not_import_mlflow():
    code = "import sys, tesserae.tracking, tesserae.stage; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_new_store_is_made_without_noise(tmp_path):
    code = "from tesserae import tracking as t; r = t.start_run('.', 'prepare', {'a': 1}); r.begin(); r.finish()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()
