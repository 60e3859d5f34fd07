"""MLflow: everything arrives, nothing raises, two may write at once."""

import json
import multiprocessing
import subprocess
import sys
import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tesserae import tracking
from tesserae.tracking.provenance import provenance

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(store_of):
    """One store for all tests that can share it."""
    return store_of()


def test_what_is_logged_comes_back(root):
    params = {"vqgan": {"image": {"K": 8, "betas": [0.5, 0.9]}}}
    run = tracking.start_run(root, "vqgan-image", params, {"mine": "yes"})
    for step in range(5):
        run.metrics({"loss": {"rec": 1 / (step + 1)}, "usage": np.float32(0.5), "note": "no number"}, step)
    run.metrics({"last": float("nan")})
    run.image(np.full((8, 8, 3), 200, np.uint8), "samples", 3)
    run.image(Image.new("RGB", (4, 4)), "samples", 2)
    figure = Figure()
    figure.subplots().plot([1, 2])
    run.figure(figure, "curve.png")
    (root / "notes.txt").write_text("hello")
    run.artifact(root / "notes.txt", "texts")
    run.finish()

    table = tracking.runs_table(root, "vqgan-image")
    (row,) = table.to_dict("records")
    assert row["run_id"] == run.id
    assert (row["stage"], row["status"], row["tags.mine"]) == ("vqgan-image", "FINISHED", "yes")
    assert row["params.vqgan.image.K"] == 8
    assert row["params.vqgan.image.betas"] == [0.5, 0.9]
    assert row["metrics.loss.rec"] == pytest.approx(0.2)
    history = tracking.history(root, run.id, ["loss.rec", "usage"])
    assert history["step"].tolist() == [0, 1, 2, 3, 4]
    assert history["loss.rec"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert "note" not in tracking.history(root, run.id)
    pictures = tracking.images(root, run.id)
    assert [(key, step) for key, step, _ in pictures] == [("samples", 2), ("samples", 3)]
    assert np.asarray(Image.open(pictures[1][2])).min() == 200
    files = {path.name for path in (root / "mlruns").rglob("*") if path.is_file()}
    assert {"curve.png", "notes.txt"} <= files


def test_tags_tie_a_run_to_code_data_and_parameters(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0123abcd.dir\n  path: data\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    monkeypatch.setenv("DVC_STAGE", "vqgan@image")
    monkeypatch.setenv("DVC_EXP_NAME", "wide")
    tags = tracking.provenance(tmp_path, "vqgan-image", {"a": {"b": 1}})
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert tags["git.commit"] == head.stdout.strip()
    assert tags["git.dirty"] == "false"
    assert tags["data.hash"] == "0123abcd"
    assert (tags["dvc.stage"], tags["dvc.experiment"]) == ("vqgan@image", "wide")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/new.py").write_text("1")
    assert tracking.provenance(tmp_path, "vqgan-image", {})["git.dirty"] == "true"


def test_params_hash_is_of_values_not_of_order():
    assert tracking.params_hash({"a": 1, "b": {"c": 2}}) == tracking.params_hash({"b": {"c": 2}, "a": 1})
    assert tracking.params_hash({"a": 1}) != tracking.params_hash({"a": 2})


def test_an_environment_variable_names_the_run_to_join(root, monkeypatch):
    first = tracking.start_run(root, "joined", {"seed": 0})
    first.flush()
    monkeypatch.setenv(tracking.RUN_VARIABLE, first.key)
    second = tracking.start_run(root, "joined", {"seed": 0, "more": 1})
    second.metrics({"n": 1})
    first.flush()  # who started the run sends, also for those that joined it
    assert second.id == first.id
    table = tracking.runs_table(root, "joined")
    assert len(table) == 1
    assert (table["status"][0], table["metrics.n"][0], table["params.more"][0]) == ("RUNNING", 1, 1)
    monkeypatch.setenv(tracking.RUN_VARIABLE, first.id)  # a run of the store
    third = tracking.start_run(root, "joined")
    third.metrics({"n": 2})
    third.flush()
    assert tracking.history(root, first.id, ["n"])["n"].tolist() == [2]
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    assert tracking.start_run(root, "joined").key is None  # the pipeline has none


def test_a_run_that_died_without_a_word_is_ended_by_the_next(root):
    code = "import os; from tesserae import tracking as t; t.start_run('.', 'dies').flush(); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    alive = tracking.start_run(root, "lives")
    alive.flush()  # its own first, then what the dead left
    assert tracking.runs_table(root, "dies")["status"].tolist() == ["KILLED"]
    tracking.start_run(root, "another").finish()
    assert tracking.runs_table(root, "lives")["status"].tolist() == ["RUNNING"]
    alive.finish()


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
    run.flush()
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
    code = "from tesserae import tracking; tracking.start_run('.', 'prepare', {'a': 1}).finish()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "mlflow.db").is_file()


def test_a_notebook_that_was_only_saved_leaves_the_code_clean(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *words], check=True)

    cells = [{"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None, "source": ["x = 1"]}]
    path = tmp_path / "notebooks/05_sample.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps({"cells": cells}))
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "x")
    for execution_count, source, dirty in ((None, "x = 1", "false"), (3, "x = 1\n", "false"), (3, "x = 2", "true")):
        path.write_text(json.dumps({"cells": [cells[0] | {"execution_count": execution_count, "source": source}]}))
        assert provenance(tmp_path, "sample-class", {})["git.dirty"] == dirty
    (tmp_path / "notebooks/new.ipynb").write_text("{}")
    path.write_text(json.dumps({"cells": cells}))
    assert provenance(tmp_path, "sample-class", {})["git.dirty"] == "true"
