"""Stores without the seconds that MLflow takes to make one, and journals that nobody sends."""

import shutil
from types import SimpleNamespace

import pytest

from tesserae import tracking
from tesserae.tracking.store import Store

OUTSIDE = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_STAGE", "DVC_EXP_BASELINE_REV",
           tracking.RUN_VARIABLE)


@pytest.fixture(autouse=True)
def _no_store_from_outside():
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what it patched
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def store_of(tmp_path_factory):
    """Makes folders with an empty store each."""
    first = tmp_path_factory.mktemp("first")
    assert Store(first).client

    def make():
        return shutil.copytree(first, tmp_path_factory.mktemp("store"), dirs_exist_ok=True)

    return make


@pytest.fixture
def home(store_of):
    """A folder with an empty store of its own."""
    return store_of()


@pytest.fixture
def unsent(monkeypatch):
    """Runs only write their journals."""
    ended = SimpleNamespace(wait=lambda _: 0)
    monkeypatch.setattr(tracking.run, "start_sender", lambda _: ended)
