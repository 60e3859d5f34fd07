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
from contextlib import closing
from functools import cached_property
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from tesserae.errors import TesseraeError, is_full

EXPERIMENT = "tesserae"
PICTURES = "pictures/"  # the section of pictures by step
SCHEME = "tesserae"  # of addresses of files that move with the repository: see artifacts.py

KIND = {"mlflow.experimentKind": "custom_model_development"}  # as MLflow's pages mark an experiment that trains
IMPATIENT = {  # what fails waits in the outbox
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
}
FAULTS = (  # words of SQLite's, and what they mean
    ("database is locked", "{path} is locked by another program, such as a database browser: close that."),
    ("not a database", "{name} is no SQLite file, so MLflow cannot use it: {away}."),
    ("malformed", "{name} is damaged: {away}."),
    ("readonly|unable to open", "{path} may not be written: see to the rights of the file and of its folder."),
)


class StoreFault(TesseraeError):
    """The store cannot be used as it is: what it is, and the command that helps."""


def real_root(root: str | Path) -> Path:
    """The repository itself, where `root` may be DVC's temporary copy of it under .dvc/tmp/exps."""
    root = Path(root).resolve()
    for parent in root.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parents[2]
    return root


class Store:
    """The store at one address, and one experiment of it; opened when first needed.

    uri: an address as MLflow takes it; None: the SQLite file at the repository's root.
    """

    def __init__(self, root: str | Path, uri: str | None = None, experiment: str | None = None):
        self.home = real_root(root)
        self.uri = uri or f"sqlite:///{self.home / 'mlflow.db'}"
        self.name = experiment or EXPERIMENT

    @classmethod
    def of_environment(cls, root: str | Path) -> Store:
        """The one that MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME name, where they are set."""
        return cls(root, os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("MLFLOW_EXPERIMENT_NAME"))

    @cached_property
    def client(self):
        """MLflow's client. Raises StoreFault where a SQLite file cannot be used, and what MLflow raises."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if path := path_of(self.uri):
            _prepare(path, self.home)
        return MlflowClient(self.uri)

    @cached_property
    def experiment(self) -> str:
        """The experiment's id; it is made where it is missing.

        An experiment of an older version has an absolute address for its files, which MLflow cannot change; where the
        repository was moved since, that experiment gets another name, and a new one follows it.
        """
        from mlflow.exceptions import MlflowException

        own = path_of(self.uri) == self.home / "mlflow.db"
        found = self.client.get_experiment_by_name(self.name)
        if found and own and found.artifact_location.startswith("file:"):
            place = Path(unquote(urlsplit(found.artifact_location).path))
            if place.name == "mlruns" and place != self.home / "mlruns":
                self.client.rename_experiment(found.experiment_id, f"{self.name} (from {place.parent})")
                found = None
        if found is None:
            try:
                return self.client.create_experiment(self.name, f"{SCHEME}:/mlruns" if own else None, KIND)
            except MlflowException:  # another process was quicker
                found = self.client.get_experiment_by_name(self.name)
                if found is None:
                    raise
        return found.experiment_id

    def shown(self) -> str:
        """The address for a sentence, without the password in it."""
        path = path_of(self.uri)
        return f"at {path.name}" if path else re.sub(r"(?<=://)[^@/]*@", "", self.uri)


def explained(error: Exception, uri: str) -> Exception:
    """The StoreFault that says best what the error means for a SQLite file; where there is none, the error."""
    path = path_of(uri)
    for words, sentence in FAULTS if path else ():
        if re.search(words, str(error)):
            return StoreFault(sentence.format(path=path, name=path.name, away=_away(path)))
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
    return Path(name).absolute() if name and name != ":memory:" else None


def _prepare(path: Path, home: Path) -> None:
    """Make the store where it is missing; see that this MLflow made it where it is there. Raises StoreFault."""
    if path.is_dir():
        raise StoreFault(f"{path.name} is a folder, so MLflow has no store: {_away(path)}.")
    try:
        empty = _empty_store(home)
        if not path.exists() or not path.stat().st_size:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists() or not path.stat().st_size:
                    _put(empty, path)
        found, wanted = _revision(path), _revision(empty)
    except (OSError, sqlite3.Error) as error:
        raise explained(error, f"sqlite:///{path}") from None
    if found is None:
        raise StoreFault(f"{path.name} holds no whole store, as after a kill while MLflow made it: {_away(path)}.")
    if found != wanted:
        copy = f"cp {shlex.quote(str(path))} {shlex.quote(f'{path}.bak')}"
        upgrade = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(f'sqlite:///{path}')}"
        raise StoreFault(f"{path.name} is of another version of MLflow than the {metadata.version('mlflow')} here: "
                         f"if that was older, keep a copy and migrate it by `{copy} && {upgrade}`; if it was newer, "
                         "install it again.")


def _empty_store(home: Path) -> Path:
    """A store without runs as this MLflow makes it: new ones are copies of it, others are compared to it."""
    from mlflow import MlflowClient

    path = home / ".tracking" / f"empty-{metadata.version('mlflow')}.db"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name("empty.lock")):
            if not path.exists():
                aside = path.with_name(f"{uuid.uuid4().hex[:8]}.part")  # MLflow makes no address a second time
                try:
                    MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
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
    """The revision of the tables, which is noted in the database; None where a store was made by half."""
    with closing(sqlite3.connect(path)) as database:
        tables = {name for name, in database.execute("SELECT name FROM sqlite_master")}
        if not {"runs", "alembic_version"} <= tables:
            return None
        noted = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return noted[0] if noted else None


def _away(path: Path) -> str:
    """The end of a sentence: how to get a new store without losing the old file."""
    return f"move it away by `mv {shlex.quote(str(path))} {shlex.quote(str(path))}.old`, and a new one is made"
