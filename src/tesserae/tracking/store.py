"""The MLflow store: its address, a client for it, and one sentence for what is wrong with it.

A new SQLite store is made aside and renamed, so that a kill leaves none or a whole one. One that another version of
MLflow made is left alone: MLflow would migrate some older ones in place, without a backup.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tesserae.errors import TesseraeError, is_full

EXPERIMENT = "tesserae"
PICTURES = "pictures/"  # the section of pictures by step
SCHEME = "tesserae"  # of addresses of files that move with the repository: see artifacts.py

KIND = {"mlflow.experimentKind": "custom_model_development"}  # as MLflow's pages mark an experiment that trains
IMPATIENT = {  # what fails waits in the outbox
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
}


class StoreFault(TesseraeError):
    """The store cannot be used as it is: what it is, and the command that helps."""


def real_root(root: str | Path) -> Path:
    """The repository itself, where `root` may be DVC's temporary copy of it under .dvc/tmp/exps."""
    root = Path(root).resolve()
    for parent in root.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parents[2]
    return root


def experiment_name() -> str:
    """MLFLOW_EXPERIMENT_NAME where it is set."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def tracking_uri(root: str | Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file at the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)


def default_uri(root: str | Path) -> str:
    """The SQLite file at the repository's root."""
    return _uri_of(real_root(root) / "mlflow.db")


def make_client(root: str | Path, uri: str | None = None):
    """An MlflowClient for the address; None: the default store. A SQLite file is made where it is missing.

    Raises StoreFault where that file cannot be used, and what MLflow raises.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = uri or default_uri(root)
    file = path_of(address)
    if not file:
        return MlflowClient(address)
    with _without_litter(address):
        _prepare(file, real_root(root))
        return MlflowClient(address)


def experiment_id(client, root: str | Path, uri: str | None = None, name: str | None = None) -> str:
    """The id of the experiment, which is made where it is missing.

    An experiment of an older version has an absolute address for its files, which MLflow cannot change; where the
    repository was moved since, that experiment gets another name, and a new one follows it.
    """
    from mlflow.exceptions import MlflowException

    name, home = name or experiment_name(), real_root(root)
    found = client.get_experiment_by_name(name)
    if found and not uri and found.artifact_location.startswith("file:"):
        place = Path(unquote(urlsplit(found.artifact_location).path))
        if place.name == "mlruns" and place != home / "mlruns":
            client.rename_experiment(found.experiment_id, f"{name} (from {place.parent})")
            found = None
    if found is None:
        try:
            return client.create_experiment(name, None if uri else _artifact_location(home), KIND)
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def shown(uri: str) -> str:
    """The address without the password in it."""
    return re.sub(r"(?<=://)[^@/]*@", "", uri)


def fault_of_address(uri: str) -> str:
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
    path, text = path_of(uri), str(error)
    if path is None or isinstance(error, StoreFault):
        return error
    for words, sentence in (
        ("database is locked", f"{path} is locked by another program, such as a database browser: close that."),
        ("not a database", f"{path.name} is no SQLite file, so MLflow cannot use it: {_away(path)}."),
        ("malformed", f"{path.name} is damaged: {_away(path)}."),
        ("readonly", f"{path} may not be written: see to the rights of the file and of its folder."),
        ("unable to open", f"{path} may not be written: see to the rights of the file and of its folder."),
    ):
        if words in text:
            return StoreFault(sentence)
    return error


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


def _artifact_location(home: Path) -> str:
    """Where runs' files go: an address that moves with the repository, where MLflow has been told of its kind."""
    known = metadata.entry_points(group="mlflow.artifact_repository", name=SCHEME)
    return f"{SCHEME}:/mlruns" if known else (home / "mlruns").as_uri()


def _uri_of(path: Path) -> str:
    """The address by which MLflow opens this file: what SQLAlchemy unescapes is escaped."""
    return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")


def path_of(uri: str) -> Path | None:
    """The file that an address names; None where it names no file."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        name = make_url(uri).database
    except ArgumentError:
        return None
    return Path(name).absolute() if name and name != ":memory:" and not name.startswith("file:") else None


@contextmanager
def _without_litter(uri: str) -> Iterator[None]:
    """Around what opens an address: MLflow makes the folder that an escaped one seems to name; it goes again."""
    folder = Path(uri.removeprefix("sqlite:///")).parent
    named = (folder / ".tracking", folder, *folder.parents) if "%" in uri else ()
    made = [each for each in named if not each.exists()]
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()


def _prepare(path: Path, home: Path) -> None:
    """Make the store where it is missing; see that this MLflow made it where it is there. Raises StoreFault."""
    from filelock import FileLock

    if path.is_dir():
        raise StoreFault(f"{path.name} is a folder, so MLflow has no store: {_away(path)}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        empty = _empty_store(home)
        if not path.exists() or not path.stat().st_size:
            with FileLock(f"{path}.lock"):
                if not path.exists() or not path.stat().st_size:
                    _put(empty, path)
        found, wanted = _revision(path), _revision(empty)
    except (OSError, sqlite3.Error) as error:
        raise explained(error, _uri_of(path)) from None
    if found is None:
        raise StoreFault(f"{path.name} holds no whole store, as after a kill while MLflow made it: {_away(path)}.")
    if found != wanted:
        copy = f"cp {shlex.quote(str(path))} {shlex.quote(f'{path}.bak')}"
        upgrade = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(_uri_of(path))}"
        raise StoreFault(f"{path.name} is of another version of MLflow than the {metadata.version('mlflow')} here: "
                         f"if that was older, keep a copy and migrate it by `{copy} && {upgrade}`; if it was newer, "
                         "install it again.")


def _empty_store(home: Path) -> Path:
    """A store without runs as this MLflow makes it: new ones are copies of it, others are compared to it."""
    from filelock import FileLock
    from mlflow import MlflowClient

    folder = home / ".tracking"
    path = folder / f"empty-{metadata.version('mlflow')}.db"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "empty.lock"):
            if not path.exists():
                aside = folder / f"{uuid.uuid4().hex[:8]}.part"  # MLflow keeps in mind what it knows of an address
                try:
                    MlflowClient(_uri_of(aside)).search_experiments(max_results=1)
                    os.replace(aside, path)
                finally:
                    aside.unlink(missing_ok=True)
    return path


def _put(empty: Path, path: Path) -> None:
    for ending in ("-journal", "-wal", "-shm"):  # of a file that is gone: SQLite would play them into the new one
        path.with_name(path.name + ending).unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.part")
    try:
        shutil.copyfile(empty, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _revision(path: Path) -> str | None:
    """The revision of the tables that Alembic notes in a database; None where it has noted none."""
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine, inspect

    engine = create_engine(_uri_of(path))
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("runs"):
                return None
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def _away(path: Path) -> str:
    """The end of a sentence: how to get a new store without losing the old file."""
    return f"move it away by `mv {shlex.quote(str(path))} {shlex.quote(str(path))}.old`, and a new one is made"
