"""A store that is a SQLite file: made whole or not at all, looked at before MLflow opens it, moved with its clone.

MLflow makes the tables of a new store one after the other, for seconds, in the file itself; what a kill leaves then
is a file that no MLflow opens. It also migrates some older stores in place, without a backup. So a new store is made
aside and renamed, and one that does not fit the MLflow here is left alone, with a sentence that says what to do.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from tesserae.errors import TesseraeError

BUSY_SECONDS = 5.0  # wait for another writer
SETTLED_SECONDS = 5.0  # a half-made file that changed since may be in the making
LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


class StoreFault(TesseraeError):
    """The store's file cannot be used as it is: what it is, and the command that helps.

    passes: whether it may pass by itself within seconds.
    """

    def __init__(self, sentence: str, passes: bool = False):
        super().__init__(sentence)
        self.passes = passes


def uri_of(path: Path) -> str:
    """The address by which MLflow opens this file: "%" and "?" are escaped where SQLAlchemy unescapes them."""
    plain = f"sqlite:///{path}"
    if "%" in plain or "?" in plain:
        from sqlalchemy.engine import make_url

        if make_url(plain).database != str(path):
            return "sqlite:///" + str(path).replace("%", "%25").replace("?", "%3F")
    return plain


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


def prepare(path: Path, client_class: type) -> None:
    """Make the store where it is missing; see that it fits this MLflow where it is there.

    For one process at a time. Raises StoreFault; OSError or what MLflow raises where it cannot be made.
    """
    for rest in path.parent.glob(f"{glob.escape(path.name)}.*.part*"):
        rest.unlink(missing_ok=True)  # of a kill
    if path.is_dir():
        raise StoreFault(f"{path.name} is a folder, so MLflow has no store: {_away(path)}.")
    if not path.exists() or not path.stat().st_size:
        _make(path, client_class)
        return
    try:
        with sqlite(path) as database:
            _check(path, database)
    except sqlite3.Error as error:
        raise fault_of_file(path, error) or error from None


@contextmanager
def sqlite(path: Path) -> Iterator[sqlite3.Connection]:
    """The file, for a few statements that are one transaction; it is not made where it is missing."""
    address = f"file:{quote(str(path))}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as database, database:
        yield database


def fault_of_file(path: Path, error: Exception) -> StoreFault | None:
    """The fault that SQLite's words are about; None where there is no better sentence than theirs."""
    text = str(error)
    if "database is locked" in text:
        return StoreFault(f"{path} is locked by another program, such as a database browser or a backup: close that.",
                          passes=True)
    if "not a database" in text:
        return StoreFault(f"{path.name} is no SQLite file, so MLflow cannot use it: {_away(path)}.")
    if "malformed" in text:
        return StoreFault(f"{path.name} is damaged: {_away(path)}.")
    if "readonly" in text or "unable to open" in text:
        return StoreFault(f"{path} may not be written: see to the rights of the file and of its folder.")
    return None


def _make(path: Path, client_class: type) -> None:
    """A new store, aside and renamed, so that a kill leaves no half of one."""
    for ending in ("-journal", "-wal", "-shm"):  # of a file that is gone: SQLite would play them into the new one
        path.with_name(path.name + ending).unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")  # MLflow keeps what it knows of an address
    uri = uri_of(aside)
    try:
        with without_litter(uri):
            client_class(uri).search_experiments(max_results=1)
        try:
            if path.exists() and not path.stat().st_size:
                path.unlink()
            os.link(aside, path)  # unlike a renaming it never takes the place of a store made by another program
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(aside, path)
    finally:
        for rest in path.parent.glob(f"{glob.escape(aside.name)}*"):
            rest.unlink(missing_ok=True)


def _check(path: Path, database: sqlite3.Connection) -> None:
    found, wanted, known = _revision(database), *_revisions()
    if wanted is None or found == wanted:
        return
    end = time.monotonic() + 4 * SETTLED_SECONDS
    while not _holds_runs(database):
        if time.time() - path.stat().st_mtime > SETTLED_SECONDS or time.monotonic() > end:
            remove = f"rm -f {shlex.quote(str(path))} {shlex.quote(str(path))}-*"
            raise StoreFault(f"{path.name} is half-made and holds no run, as after a kill while MLflow made it: "
                             f"remove it by `{remove}`.")
        time.sleep(0.5)  # another program makes it
        if _revision(database) == wanted:
            return
    here = metadata.version("mlflow")
    if found is None or found in known:
        copy = f"cp {shlex.quote(str(path))} {shlex.quote(f'{path}.bak')}"
        upgrade = f"{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(uri_of(path))}"
        raise StoreFault(f"{path.name} is of an older MLflow than the {here} here: keep a copy and migrate it by "
                         f"`{copy} && {upgrade}`.")
    raise StoreFault(f"{path.name} is of a newer MLflow than the {here} here: install that one again, or "
                     f"{_away(path)}.")


def _revision(database: sqlite3.Connection) -> str | None:
    """The revision of the schema that the file has; None where it has none."""
    if "alembic_version" not in _tables(database):
        return None
    row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    return row[0] if row else None


def _holds_runs(database: sqlite3.Connection) -> bool:
    return "runs" in _tables(database) and database.execute("SELECT 1 FROM runs").fetchone() is not None


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for name, in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _revisions() -> tuple[str | None, set[str]]:
    """The revision that this MLflow reads, and all that it can migrate; (None, {}) where it does not say."""
    import mlflow
    from alembic.script import ScriptDirectory

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations"
    if not folder.is_dir():
        return None, set()
    scripts = ScriptDirectory(str(folder))
    return scripts.get_current_head(), {each.revision for each in scripts.walk_revisions()}


def _away(path: Path) -> str:
    """The end of a sentence: how to get a new store without losing the old file."""
    return (f"move it away by `mv {shlex.quote(str(path))} {shlex.quote(str(path))}.old`, and a new one is made")


def take_along(path: Path, home: Path) -> None:
    """Where the clone was moved or copied, let the store's runs have their files here.

    MLflow keeps the folder of each run's files as an absolute address, and has no call to change it. Files that are
    still at the old place and not here stay where they are, and so does everything in a store that is read-only.
    """
    with suppress(sqlite3.OperationalError), sqlite(path) as database:
        row = database.execute("SELECT artifact_location FROM experiments WHERE name = 'tesserae'").fetchone()
        old = Path(unquote(urlsplit(row[0]).path)) if row and row[0].startswith("file:") else None
        if old is None or old.name != "mlruns" or old == home / "mlruns":
            return
        for table, column in LOCATIONS:
            if table in _tables(database):
                found = [each for each, in database.execute(f"SELECT DISTINCT {column} FROM {table}") if each]
                moved = [(new, each) for each in found if (new := _moved(each, old.parent, home, table == "runs"))]
                database.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", moved)


def _moved(address: str, old: Path, new: Path, must_be_there: bool) -> str | None:
    """The address of the same folder below `new`; None where it does not lie below `old`, or stays there."""
    is_uri = address.startswith("file:")
    place = Path(unquote(urlsplit(address).path) if is_uri else address)
    if not place.is_absolute() or not place.is_relative_to(old):
        return None
    target = new / place.relative_to(old)
    if must_be_there and place.exists() and not target.exists():
        return None
    return target.as_uri() if is_uri else str(target)


@contextmanager
def without_litter(uri: str) -> Iterator[None]:
    """Around what opens an address: MLflow makes the folder that an escaped one seems to name; it goes again."""
    seeming = Path(uri.removeprefix("sqlite:///")).parent if re.search("%[0-9A-F]{2}", uri) else None
    made = [each for each in (seeming, *seeming.parents) if not each.exists()] if seeming else []
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):
                each.rmdir()
