"""Stores without the seconds that MLflow takes to make one."""

import shutil

import pytest

from tesserae import tracking
from tesserae.tracking.store import make_client


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_STAGE", "DVC_EXP_BASELINE_REV", tracking.RUN_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def store_of(tmp_path_factory):
    """Makes folders with an empty store each."""
    first = tmp_path_factory.mktemp("first")
    make_client(first).search_experiments()

    def make():
        folder = tmp_path_factory.mktemp("store")
        shutil.copy(first / "mlflow.db", folder)
        return folder

    return make


@pytest.fixture
def home(store_of):
    """A folder with an empty store of its own."""
    return store_of()
