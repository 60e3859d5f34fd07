"""The MLflow store: its address, a client that gives up soon, and what its failures mean."""

from __future__ import annotations

import logging
import os
import re
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tesserae.errors import is_full
from tesserae.tracking.sqlite import StoreFault, fault_of_file, path_of, prepare, take_along, uri_of, without_litter

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
    return uri_of(real_root(root) / "mlflow.db")


def make_client(root: str | Path, uri: str | None = None):
    """An MlflowClient for the address; None: the default store. A SQLite file is made where it is missing.

    Raises StoreFault where that file cannot be used, and what MLflow raises.
    """
    client = load_mlflow()
    home, address = real_root(root), uri or default_uri(root)
    file = path_of(address)
    if file is None:
        return client(address)
    with _one_at_a_time(file), without_litter(address):
        prepare(file, client)
        if not uri:
            take_along(file, home)
        return client(address)


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


def _one_at_a_time(file: Path) -> ExitStack:
    """A lock beside the file: MLflow's own making of a store does not bear two processes at once."""
    from filelock import FileLock

    stack = ExitStack()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(FileLock(f"{file}.lock"))
    except OSError as error:
        if not file.exists():
            raise StoreFault(f"{file} cannot be made ({error.strerror}): see to the folder and its rights.") from None
    return stack  # without a lock where the folder is read-only: a store that is there may be read


def refuses(error: Exception) -> bool:
    """Whether the store answered and will never take this record, so that trying again is of no use."""
    return isinstance(error, (KeyError, TypeError)) or getattr(error, "error_code", "") in REFUSALS


def passes_soon(error: Exception) -> bool:
    """Whether another writer held the SQLite file too long."""
    said = "database is locked" in str(error) or getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
    return said or getattr(error, "passes", False)


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


def explained(error: Exception, uri: str) -> Exception:
    """The StoreFault that says best what the error means for a SQLite file; where there is none, the error."""
    file = None if isinstance(error, StoreFault) else path_of(uri)
    return (fault_of_file(file, error) if file else None) or error


def reason_of(error: Exception) -> str:
    """The innermost reason, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_full(error):
        return "the disk is full"
    if "unsupported URI" in text:
        return "MLflow knows no such kind of address"
    found = re.findall(r"\[Errno -?\d+\] ([^'\")]+)|(timed out|No module named [\w'.]+)", text)
    reason = next((part for pair in reversed(found) for part in pair if part), text)
    return re.split(r"(?<=\w)\. ", reason)[0].strip()[:200]
