"""The MLflow store: its address, a client that gives up soon, and what its failures mean."""

from __future__ import annotations

import logging
import os
import re
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import urlsplit

EXPERIMENT = "tesserae"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # what fails waits in the outbox
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def real_root(root: str | Path) -> Path:
    """The repository itself, where `root` may be DVC's temporary copy of it under .dvc/tmp/exps."""
    root = Path(root).resolve()
    for parent in root.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parents[2]
    return root


def tracking_uri(root: str | Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file at the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)


def default_uri(root: str | Path) -> str:
    """The SQLite file at the repository's root."""
    return f"sqlite:///{real_root(root) / 'mlflow.db'}"


def make_client(root: str | Path, uri: str | None = None):
    """An MlflowClient for the address; None: the default store."""
    client = load_mlflow()
    with _making(root, uri):
        return client(uri or default_uri(root))


def load_mlflow() -> type:
    """MLflow's client class, of an MLflow that keeps quiet, gives up soon and tells nobody else."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient


def experiment_id(client, root: str | Path, uri: str | None = None) -> str:
    """The id of the experiment, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(EXPERIMENT, None if uri else (real_root(root) / "mlruns").as_uri())
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return found.experiment_id


def _making(root: str | Path, uri: str | None):
    """MLflow's own making of a SQLite store does not bear two processes at once."""
    if uri:
        return nullcontext()
    from filelock import FileLock

    return FileLock(real_root(root) / "mlflow.db.lock")


def refuses(error: Exception) -> bool:
    """Whether the store answered and will never take this record, so that trying again is of no use."""
    return isinstance(error, (KeyError, TypeError)) or getattr(error, "error_code", "") in REFUSALS


def passes_soon(error: Exception) -> bool:
    """Whether another writer held the SQLite file too long."""
    return getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE" or "database is locked" in str(error)


def shown(uri: str) -> str:
    """The address without the password in it."""
    return re.sub(r"(?<=://)[^@/]*@", "", uri)


def fault_of(uri: str) -> str:
    """What is wrong with an address by its form, "" where nothing is."""
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        host, _ = urlsplit(uri).hostname, urlsplit(uri).port
        return "" if host else "it names no host"
    except ValueError as error:
        return str(error)


def reason_of(error: Exception) -> str:
    """The innermost reason, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "unsupported URI" in text:
        return "MLflow knows no such kind of address"
    found = re.findall(r"\[Errno -?\d+\] ([^'\")]+)|(timed out|No module named [\w'.]+)", text)
    reason = next((part for pair in reversed(found) for part in pair if part), text)
    return re.split(r"(?<=\w)\. ", reason)[0].strip()[:200]
