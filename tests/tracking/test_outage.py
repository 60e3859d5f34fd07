"""A store that is down, silent, or fails half-way: the work goes on, and in the end all is there once."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tesserae import tracking
from tesserae.tracking import sender
from tesserae.tracking.__main__ import main
from tesserae.tracking.journal import Journal, journals
from tesserae.tracking.replay import deliver
from tesserae.tracking.store import Store

SYNC = [sys.executable, "-m", "tesserae.tracking", "sync"]


PARAMS = {"seed": 1, "vqgan": {"steps": 5}}


def record_all(run, pictures=3):
    """A bit of everything, into a run that has PARAMS."""
    for step in range(20):
        run.metrics({"loss": step / 2, "usage": 0.5}, step)
    for step in range(pictures):
        run.image(np.full((8, 8, 3), step, np.uint8), "samples", step)
    run.artifact(__file__, "figures")


def check_all(home, pictures=3, status="FINISHED"):
    """Everything of `record_all` is in the store, once, and nothing waits."""
    (row,) = tracking.runs_table(home).to_dict("records")
    assert (row["params.seed"], row["params.vqgan.steps"]) == (1, 5)
    assert row["status"] == status
    table = tracking.history(home, row["run_id"])
    assert table["loss"].tolist() == [step / 2 for step in range(20)]
    found = tracking.images(home, row["run_id"])
    assert [(key, step) for key, step, _ in found] == [("samples", step) for step in range(pictures)]
    assert len(list((home / "mlruns").rglob(Path(__file__).name))) == 1
    assert len(list((home / "mlruns").rglob("*.webp"))) == pictures
    assert journals(home) == []
    assert list((home / ".tracking/outbox").iterdir()) == []


def finished(home, name):
    run = tracking.start_run(home, name)
    run.begin()
    run.finish()


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]  # bound, but nobody listens


def test_a_server_that_is_down_costs_nothing_and_gets_everything_later(home, monkeypatch, closed_port, capfd):
    uri = f"http://127.0.0.1:{closed_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run = tracking.start_run(home, "prepare", PARAMS)
    began = time.monotonic()
    record_all(run)
    assert time.monotonic() - began < 5
    run.finish()
    assert time.monotonic() - began < 20, "MLflow's import, and an answer that does not come"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"MLflow's store {uri} fails (Connection refused). The work goes on; what it records ")
    assert said[1] == ("Not all that prepare recorded is in MLflow yet: it waits in .tracking/outbox, and the next "
                       "stage or python -m tesserae.tracking sync sends it.")

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (home / "dvc.yaml").touch()
    done = subprocess.run(SYNC, cwd=home, capture_output=True, text=True)
    assert done.returncode == 1, "the store it was meant for is still down"
    assert "Connection refused" in done.stdout
    done = subprocess.run([*SYNC, "--to", Store(home).uri], cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r".*-prepare-\w+: sent\.\nNothing else waits in \.tracking/outbox\.\n", done.stdout)
    check_all(home)


def test_a_server_that_never_answers_slows_nothing(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # connections wait in its queue for ever
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        run = tracking.start_run(home, "prepare", PARAMS)
        began = time.monotonic()
        record_all(run)
        assert time.monotonic() - began < 5
        run.finish()
        assert time.monotonic() - began < 20
    (journal,) = journals(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    deliver(journal, Store(home))
    check_all(home)


@pytest.mark.parametrize(("uri", "reason"), [
    ("htp://server:5000", "MLflow knows no such kind of address"),
    ("sqlite:", "Could not parse"),
])
def test_an_address_that_is_none_is_one_sentence(home, monkeypatch, capfd, uri, reason):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    finished(home, "prepare")
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith(f"MLflow's store {uri} fails ({reason}")
    assert "The work goes on" in said[0]
    assert len(said) == 2
    (home / "dvc.yaml").touch()
    monkeypatch.chdir(home)
    assert main(["sync", "--to", Store(home).uri]) == 0
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.runs_table(home)["stage"].tolist() == ["prepare"]


def test_a_password_is_not_shown(home, monkeypatch, capfd, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port}")
    finished(home, "prepare")
    said = capfd.readouterr().err
    assert "secret" not in said
    assert "127.0.0.1" in said


def test_metrics_wait_while_the_store_is_away(home, monkeypatch, capfd, unsent):
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.5)
    run = tracking.start_run(home, "prepare", PARAMS)
    run.begin()
    sending = sender.Sender(*journals(home))
    failing = sending.store.client = Failing(sending.store.client, at=0, length=10**6)
    thread = threading.Thread(target=sending.work)
    thread.start()
    record_all(run)
    time.sleep(0.3)
    assert 0 < failing.calls + 1 < 3, "a store that is away is left alone for a while"
    failing.length = 0
    time.sleep(0.6)
    run.finish()
    thread.join(30)
    check_all(home)
    assert capfd.readouterr().err.count("fails (no answer). The work goes on") == 1, "one sentence"


def test_a_killed_stage_is_ended_by_its_sender(home):
    """kill -9: what it recorded arrives, with nobody's help."""
    code = ("from tesserae import tracking as t; r = t.start_run('.', 'dies')\n"
            "for step in range(50): r.metrics({'loss': step}, step)\n"
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", code], cwd=home, check=False)
    deadline = time.monotonic() + 60
    while journals(home) and time.monotonic() < deadline:
        time.sleep(0.1)
    (row,) = tracking.runs_table(home).to_dict("records")
    assert (row["status"], row["metrics.loss"]) == ("KILLED", 49)


class KilledError(BaseException):
    """In the place of kill -9: nothing that the code does for ordinary errors happens."""


class Failing:
    """A client that fails from call `at` on, `length` times, before the call is done or after."""

    def __init__(self, client, at, length, after=False, error=ConnectionError):
        self.client, self.at, self.length, self.after, self.error, self.calls = client, at, length, after, error, -1

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls += 1
            fails = self.at <= self.calls < self.at + self.length
            if fails and not self.after:
                raise self.error("no answer")
            answer = getattr(self.client, name)(*arguments, **options)
            if fails:
                raise self.error("no answer")
            return answer
        return call


@pytest.fixture
def filled(home, unsent):
    """A store, and beside it the journal of a finished run that was never sent."""
    run = tracking.start_run(home, "prepare", PARAMS)
    record_all(run)
    run.finish()
    return home


@pytest.mark.parametrize("error", [ConnectionError, KilledError])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_store_that_fails_at_any_call_loses_and_doubles_nothing(filled, after, error):
    """At each call in turn; the sender is then another, as after a kill."""
    for at in range(100):
        waiting = journals(filled)
        if not waiting:
            break
        store = Store(filled)
        store.client = Failing(store.client, at=at % 4, length=1, after=after, error=error)
        with contextlib.suppress(error):
            deliver(waiting[0], store)
    assert at > 3
    check_all(filled)


@pytest.mark.parametrize("function", ["note", "remove"])
def test_a_sender_that_dies_while_it_notes_loses_and_doubles_nothing(filled, monkeypatch, function):
    before = getattr(Journal, function)
    calls = 0

    def dying(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls % 2:
            raise KilledError
        return before(*arguments, **options)

    monkeypatch.setattr(Journal, function, dying)
    for _ in range(30):
        for journal in journals(filled):
            with contextlib.suppress(KilledError):
                deliver(journal, Store(filled))
    assert calls > 1
    monkeypatch.undo()
    check_all(filled)


def test_a_store_that_takes_no_files_gets_the_numbers(filled):
    (journal,) = journals(filled)
    store = Store(filled)

    class NoFiles(Failing):
        def log_image(self, *_, **__):
            raise PermissionError("read-only")

    store.client = NoFiles(store.client, at=0, length=0)
    with pytest.raises(PermissionError):
        deliver(journal, store)
    (row,) = tracking.runs_table(filled).to_dict("records")
    assert (row["status"], row["metrics.loss"]) == ("FINISHED", 9.5)
    assert journal.sent["facts"] > journal.sent.get("files", 0), "pictures and the file wait"
    deliver(journal, Store(filled))
    check_all(filled)


def test_what_the_store_refuses_is_kept_and_holds_nothing_up(filled):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    (journal,) = journals(filled)
    store = Store(filled)

    class Choosy(Failing):
        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            if metrics:
                raise MlflowException("no such metric", INVALID_PARAMETER_VALUE)
            return self.client.log_batch(run_id, params=params, tags=tags)

    store.client = Choosy(store.client, at=0, length=0)
    assert deliver(journal, store)
    assert "no such metric" in (filled / ".tracking/refused" / journal.key / "records.jsonl").read_text()
    assert journals(filled) == []


@pytest.mark.slow
def test_sync_killed_again_and_again(home, unsent):
    """Real processes and kill -9: everything arrives once."""
    (home / "dvc.yaml").touch()
    for number in range(12):
        run = tracking.start_run(home, f"stage-{number}", PARAMS)
        record_all(run, pictures=8)
        run.finish()
    for waiting in (11, 9, 7):  # killed each time that so few wait, early in the next
        process = subprocess.Popen(SYNC, cwd=home, stdout=subprocess.DEVNULL)
        while len(journals(home)) > waiting and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was killed before the end"
    assert journals(home)
    done = subprocess.run(SYNC, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    table = tracking.runs_table(home)
    assert len(table) == 12
    assert set(table["status"]) == {"FINISHED"}
    for run_id in table["run_id"]:
        assert len(tracking.images(home, run_id)) == 8
        assert len(tracking.history(home, run_id)) == 20
    done = subprocess.run(SYNC, cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Nothing else waits in .tracking/outbox.\n")


def test_a_full_disk_is_one_sentence_and_the_work_goes_on(home, monkeypatch, capfd):
    run = tracking.start_run(home, "prepare", PARAMS)
    run.begin()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.journal.os, "write", full)
    run.metrics({"loss": 1.0}, 1)
    run.image(np.zeros((4, 4, 3), np.uint8), "x", 1)
    monkeypatch.undo()
    run.metrics({"loss": 2.0}, 2)
    run.finish()
    assert capfd.readouterr().err == (
        "Something could not be recorded for MLflow (No space left on device); the work goes on without it.\n")
    (row,) = tracking.runs_table(home).to_dict("records")
    assert row["metrics.loss"] == 2.0


def test_an_outbox_that_cannot_be_made_leaves_a_silent_run(tmp_path, capfd):
    (tmp_path / ".tracking").write_text("a file")
    run = tracking.start_run(tmp_path, "prepare")
    run.metrics({"loss": 1.0}, 1)
    run.finish()
    assert run.key is None
    assert "the work goes on without it" in capfd.readouterr().err


def test_nothing_else_is_kept_by_git():
    lines = (Path(__file__).parents[2] / ".gitignore").read_text().splitlines()
    assert "/.tracking/" in lines
