"""The store's file: born whole or not at all, left alone where it does not fit, found again after a move."""

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from tesserae import TesseraeError, tracking
from tesserae.tracking.journal import journals
from tesserae.tracking.replay import deliver
from tesserae.tracking.store import SCHEME, Store

pytestmark = pytest.mark.slow

SYNC = [sys.executable, "-m", "tesserae.tracking", "sync"]
HALF = "CREATE TABLE alembic_version (version_num VARCHAR(32)); CREATE TABLE runs (run_uuid VARCHAR(32));"


def statements(path, text):
    with sqlite3.connect(path) as database:
        database.executescript(text)
    database.close()


def record(home, stage="prepare"):
    run = tracking.start_run(home, stage, {"seed": 1})
    run.metrics({"loss": 0.5}, 1)
    run.image(np.zeros((4, 4, 3), np.uint8), "samples", 1)
    run.finish()


def picture(home, stage):
    """The one picture of the stage's run."""
    (run_id,) = tracking.runs_table(home, stage)["run_id"]
    ((_, _, file),) = tracking.images(home, run_id)
    return file


def files_beside(home):
    return sorted(path.name for path in home.glob("mlflow.db*"))


def parts(home):
    return list((home / ".tracking").glob("*.part*"))


@pytest.mark.parametrize("delay", [0, 0.4])
def test_a_kill_while_the_store_is_made_leaves_none_or_a_whole_one(tmp_path, unsent, delay):
    (tmp_path / "dvc.yaml").touch()
    record(tmp_path)
    process = subprocess.Popen(SYNC, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not parts(tmp_path) and process.poll() is None:
        time.sleep(0.002)  # the first byte of the store
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(SYNC, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith(": sent.\nNothing else waits in .tracking/outbox.\n")
    assert tracking.runs_table(tmp_path)["metrics.loss"].tolist() == [0.5]
    assert files_beside(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


def test_a_full_disk_while_the_store_is_made_leaves_none(tmp_path, monkeypatch, unsent):
    record(tmp_path)
    (journal,) = journals(tmp_path)
    monkeypatch.setattr(os, "replace", full_for_the_store)
    with pytest.raises(OSError, match="No space left"):
        deliver(journal, Store(tmp_path))
    monkeypatch.undo()
    assert files_beside(tmp_path) == ["mlflow.db.lock"]
    deliver(journal, Store(tmp_path))
    assert tracking.runs_table(tmp_path)["status"].tolist() == ["FINISHED"]


def full_for_the_store(source, target, replace=os.replace):
    if "mlflow.db" in str(target):
        raise OSError(28, "No space left on device")
    replace(source, target)


def test_the_journal_of_a_store_that_is_gone_does_not_reach_the_new_one(store_of, tmp_path):
    old = store_of()
    statements(old / "mlflow.db", "PRAGMA journal_mode = persist; DELETE FROM experiments; VACUUM;")
    journal = old / "mlflow.db-journal"
    assert journal.is_file(), "SQLite kept it"
    shutil.copy(journal, tmp_path)
    (tmp_path / "mlflow.db-wal").write_bytes(b"rest")
    record(tmp_path)
    assert len(tracking.runs_table(tmp_path)) == 1
    assert files_beside(tmp_path) == ["mlflow.db", "mlflow.db.lock"]


def test_a_half_made_store_is_named_and_nothing_is_lost(tmp_path, capfd):
    (tmp_path / "dvc.yaml").touch()
    statements(tmp_path / "mlflow.db", HALF)
    record(tmp_path)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("mlflow.db holds no whole store, as after a kill while MLflow made it: ")
    command = said[0].split("`")[1]
    done = subprocess.run(SYNC, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].endswith(": not sent yet.")
    assert command in lines[1]
    assert lines[2] == "Then run the same command again."
    subprocess.run(command, shell=True, check=True, cwd=tmp_path.parent)
    done = subprocess.run(SYNC, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(tracking.runs_table(tmp_path)) == 1


def test_a_store_of_another_version_is_kept_as_it_is_until_the_command_migrates_it(store_of, tmp_path, capfd):
    """A quotation mark and a blank in the path, which the command has to quote."""
    home = tmp_path / "it's my clone"
    shutil.copytree(store_of(), home)
    (home / "dvc.yaml").touch()
    path = home / "mlflow.db"
    older_store(path)
    content = path.read_bytes()
    record(home)
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("mlflow.db is of another version of MLflow than the ")
    assert path.read_bytes() == content
    with pytest.raises(TesseraeError, match="of another version"):
        tracking.runs_table(home)
    subprocess.run(said[0].split("`")[1], shell=True, check=True, capture_output=True)
    assert (home / "mlflow.db.bak").read_bytes() == content
    assert subprocess.run(SYNC, cwd=home, capture_output=True).returncode == 0
    assert len(tracking.runs_table(home)) == 1


def older_store(path):
    """A store of the last but one revision."""
    import mlflow
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", os.path.join(os.path.dirname(mlflow.__file__), "store/db_migrations"))
    settings.set_main_option("sqlalchemy.url", f"sqlite:///{path}")
    command.downgrade(settings, "-1")


def test_a_locked_store_is_named(home, capfd):
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("BEGIN EXCLUSIVE")
        record(home)
        said = capfd.readouterr().err
        assert f"{home / 'mlflow.db'} is locked by another program" in said
    record(home)
    assert len(tracking.runs_table(home)) == 2


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.write_text("no store" * 200), "mlflow.db is no SQLite file, so MLflow cannot use it: "),
    (lambda path: path.mkdir(), "mlflow.db is a folder, so MLflow has no store: "),
])
def test_what_is_no_store_is_named_and_the_command_helps(tmp_path, capfd, make, words):
    (tmp_path / "dvc.yaml").touch()
    make(tmp_path / "mlflow.db")
    record(tmp_path)
    said = capfd.readouterr().err
    assert said.startswith(words)
    subprocess.run(said.split("`")[1], shell=True, check=True)
    assert subprocess.run(SYNC, cwd=tmp_path, capture_output=True).returncode == 0
    assert len(tracking.runs_table(tmp_path)) == 1


def test_an_empty_file_becomes_a_store(tmp_path):
    (tmp_path / "mlflow.db").touch()
    record(tmp_path)
    assert len(tracking.runs_table(tmp_path)) == 1


@pytest.mark.parametrize("name", ["number #1", "it's", "Übung"])
def test_any_letter_may_be_in_the_path(store_of, tmp_path, name):
    home = tmp_path / "x" / name
    shutil.copytree(store_of(), home)
    record(home)
    assert picture(home, "prepare").is_relative_to(home / "mlruns")
    assert [path.name for path in (tmp_path / "x").iterdir()] == [name], "nothing is made beside it"


@pytest.mark.parametrize("way", ["moved", "copied"])
@pytest.mark.parametrize("address", ["relative", "absolute"])
def test_a_clone_that_was_moved_takes_its_pictures_along(store_of, tmp_path, monkeypatch, way, address):
    old, new = tmp_path / "old", tmp_path / "new place"
    shutil.copytree(store_of(), old)
    if address == "absolute":  # as older versions made the experiment
        Store(old).client.create_experiment("tesserae", (old / "mlruns").as_uri())
    record(old, "first")
    (shutil.move if way == "moved" else shutil.copytree)(str(old), str(new))
    record(new, "second")
    assert sorted(tracking.runs_table(new)["stage"]) == ["first", "second"]
    for stage in ("first", "second"):
        file = picture(new, stage)
        assert file.is_file()
        assert file.is_relative_to(new)
    assert old.exists() == (way == "copied")
    if way == "copied":
        assert len(list((old / "mlruns").rglob("*.png"))) == 1, "the new one does not go to the old place"
    if address == "relative":
        monkeypatch.chdir(new)
        (run_id,) = tracking.runs_table(new, "first")["run_id"]
        found = Store(new).client.download_artifacts(run_id, "images")
        assert list(Path(found).glob("*.png")), "for MLflow's own pages, too"


def test_the_kind_of_address_that_moves_is_installed():
    assert metadata.entry_points(group="mlflow.artifact_repository", name=SCHEME)


def test_a_store_that_another_address_names_is_made_whole_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/deep/er/runs.db")
    record(tmp_path)
    assert tracking.runs_table(tmp_path)["status"].tolist() == ["FINISHED"]
    assert sorted(path.name for path in (tmp_path / "deep/er").iterdir()) == ["runs.db", "runs.db.lock"]


def test_a_file_that_may_only_be_read_is_read(home):
    record(home)
    (home / "mlflow.db").chmod(0o444)
    home.chmod(0o555)
    try:
        assert len(tracking.runs_table(home)) == 1
    finally:
        home.chmod(0o755)


def test_ui_takes_the_next_port_where_its_own_is_taken(home):
    (home / "dvc.yaml").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "tesserae.tracking", "ui", "--port", str(port)]
        process = subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = process.stdout.readline()
        process.kill()
        process.wait()
    assert re.match(rf"Port {port} is taken\. The runs are at http://127\.0\.0\.1:\d+/#/experiments/\d+/runs$", line)


def test_ui_says_what_is_wrong_with_the_store(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    statements(tmp_path / "mlflow.db", HALF)
    done = subprocess.run([*SYNC[:-1], "ui"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("mlflow.db holds no whole store")
    assert done.stderr.count("\n") == 1


def test_sync_names_the_runs_that_still_record(home, unsent):
    (home / "dvc.yaml").touch()
    run = tracking.start_run(home, "prepare")
    run.metrics({"loss": 1.0}, 1)
    done = subprocess.run(SYNC, cwd=home, capture_output=True, text=True)
    assert done.stdout.endswith(": it is still being recorded, and its stage sends it.\n"
                                "Nothing else waits in .tracking/outbox.\n")
    run.finish()
