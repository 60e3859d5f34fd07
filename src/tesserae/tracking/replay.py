"""A journal replayed into MLflow, in a way that may be cut off anywhere and begun again.

What was sent when a sender died, but not yet noted, is sent a second time. That changes nothing: equal metrics are
one metric, a parameter that is there stays, a tag is written over, a picture or model that is there is passed over.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from tesserae.tracking.journal import FACTS, FILES, Journal, amount, counted
from tesserae.tracking.store import StoreFault, default_uri, experiment_id, fault_of_address, make_client

BATCH = 500  # metrics a request; MLflow takes 1000 at most
TRIES = 4  # at a SQLite file that another process holds
KEY_TAG = "tesserae.key"  # finds a run again whose making was cut off
GROUP_TAG = "tesserae.group"  # of a parent: the execution of dvc that its children belong to
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
WORST = ("FAILED", "KILLED", "FINISHED")  # a parent's status is the first one that a child has


class Unusable(Exception):
    """The store's address is none that MLflow knows."""


class Store:
    """The store at one address, and one experiment of it; uri None: the default store. Opened when first needed."""

    def __init__(self, home: Path, uri: str | None = None, experiment: str | None = None):
        self.home, self.name = home, experiment
        self.uri = None if uri == default_uri(home) else uri
        self.ids: dict[str, str] = {}  # of the runs that it was sent, by the journals' keys
        self.pictures: dict[str, list[str]] = {}  # names of those that a run has, by its id
        self._client = None
        self._experiment: str | None = None

    @property
    def address(self) -> str:
        """As MLflow takes it."""
        return self.uri or default_uri(self.home)

    @property
    def client(self):
        """MLflow's. Raises StoreFault, Unusable."""
        if self._client is None:
            try:
                if fault_of_address(self.address):
                    raise ValueError(fault_of_address(self.address))
                self._client = make_client(self.home, self.uri)
            except StoreFault:
                raise
            except Exception as error:
                raise (Unusable(str(error)) if self.uri else error) from error
        return self._client

    @property
    def experiment(self) -> str:
        """The experiment's id."""
        if self._experiment is None:
            self._experiment = experiment_id(self.client, self.home, self.uri, self.name)
        return self._experiment


def deliver(journal: Journal, store: Store, done: Counter | None = None) -> bool:
    """Send what waits in a journal; remove it when its run is over and everything is sent.

    False where another process sends it. Adds to `done` how much of each kind was sent. Raises what the store raises,
    with everything that was sent noted.
    """
    for attempt in range(TRIES):
        try:
            return _deliver(journal, store, Counter() if done is None else done)
        except Exception as error:
            if attempt + 1 == TRIES or not _passes_soon(error):
                raise
            time.sleep(random.uniform(0.1, 1.0))
    return False


def _deliver(journal: Journal, store: Store, done: Counter) -> bool:
    with journal.sending() as mine:
        if not mine:
            return False
        over, size, header = journal.over(), journal.size(), journal.header  # asked first: what was written is read
        parent = _parent_id(header.get("group"), header, store)
        run_id = store.ids[journal.key] = _run_id(journal, header, parent, store)
        for end, record in _joined(journal.records(FACTS, journal.sent.get("facts", 0))):
            _try(_send, store, run_id, journal, record, done)
            journal.note(facts=end)
            if record["kind"] == "end":
                _tell_parent(parent, store)
        if over and not _ended(journal):
            store.client.set_terminated(run_id, "KILLED")
            _tell_parent(parent, store)
        for end, record in journal.records(FILES, journal.sent.get("files", 0)):
            _try(_send_files, store, run_id, journal, record, done)
            journal.note(files=end)
        if over:
            journal.remove()
        else:
            journal.note(seen=size)
        return True


def _ended(journal: Journal) -> bool:
    return any(True for _ in journal.records(("end",)))


def _run_id(journal: Journal, header: dict, parent: str | None, store: Store) -> str:
    """The run in the store, made where there is none."""
    known = journal.sent
    if known.get("run_id"):
        return known["run_id"]
    run_id = None
    if known.get("creating"):  # a sender may have died between the making and the note of it
        run_id = _found(store, f"tags.`{KEY_TAG}` = '{journal.key}'")
    if run_id is None:
        journal.note(creating=True)
        tags = {KEY_TAG: journal.key} | ({"mlflow.parentRunId": parent} if parent else {})
        run = store.client.create_run(store.experiment, header.get("began"), tags, header.get("name", journal.key))
        run_id = run.info.run_id
    journal.note(run_id=run_id)
    _tell_parent(parent, store)
    return run_id


def _parent_id(group: dict | None, header: dict, store: Store) -> str | None:
    """The run that stands for an execution of dvc, which its first stage makes; None for a stage run by itself."""
    if not group:
        return None
    with FileLock(store.home / ".tracking" / "parents.lock"):
        found = _found(store, f"tags.`{GROUP_TAG}` = '{group['id']}'")
        if found:
            return found
        tags = {GROUP_TAG: group["id"], **group.get("tags", {})}
        return store.client.create_run(store.experiment, header.get("began"), tags, group["name"]).info.run_id


def _tell_parent(parent: str | None, store: Store) -> None:
    """A parent runs while a child does, and ends as its worst child did."""
    if not parent:
        return
    children = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{parent}'")
    states = {run.info.status for run in children}
    if "RUNNING" in states:
        store.client.update_run(parent, status="RUNNING")
    elif states:
        last = max(run.info.end_time or 0 for run in children)
        store.client.set_terminated(parent, next((each for each in WORST if each in states), "FAILED"), last or None)


def _found(store: Store, query: str) -> str | None:
    runs = store.client.search_runs([store.experiment], query, max_results=1)
    return runs[0].info.run_id if runs else None


def _joined(records: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
    """The same records, with metrics that follow each other in one."""
    held: tuple[int, dict] | None = None
    for end, record in records:
        if held and held[1]["kind"] == record["kind"] == "metrics" \
                and len(held[1]["rows"]) + len(record["rows"]) <= BATCH:
            held = end, record | {"rows": held[1]["rows"] + record["rows"]}
            continue
        if held:
            yield held
        held = end, record
    if held:
        yield held


def _try(send: Callable, store: Store, run_id: str, journal: Journal, record: dict[str, Any], done: Counter) -> None:
    """Send a record, and count what was sent; what the store refuses is put aside and holds nothing up."""
    try:
        sent = send(store, run_id, journal, record)
    except Exception as error:
        if not isinstance(error, (KeyError, TypeError)) and getattr(error, "error_code", "") not in REFUSALS:
            raise
        journal.refuse(record, " ".join(str(error).split())[:300])
        done["refused"] += 1
    else:
        done[counted(record)] += amount(record) if sent is None else sent


def _passes_soon(error: Exception) -> bool:
    """Whether another writer held the SQLite file too long."""
    return "is locked" in str(error) or getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"


def _send(store: Store, run_id: str, journal: Journal, record: dict[str, Any]) -> int | None:
    """Send a record without files; how much of it was sent, None for all."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    client = store.client
    match record["kind"]:
        case "metrics":
            for start in range(0, len(record["rows"]), BATCH):
                client.log_batch(run_id, metrics=[Metric(*row) for row in record["rows"][start:start + BATCH]])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])
        case "params":
            have = client.get_run(run_id).data.params  # a value once recorded stays
            new = [Param(key, value) for key, value in record["values"].items() if key not in have]
            for start in range(0, len(new), 100):  # MLflow's limit a request
                client.log_batch(run_id, params=new[start:start + 100])
            return len(new)
        case "input":
            source = f'{{"uri": "{record["source"]}"}}'
            dataset = Dataset(record["name"], record["digest"], "local", source)
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])
        case "end":
            client.set_terminated(run_id, record["status"], record["at"])
    return None


def _send_files(store: Store, run_id: str, journal: Journal, record: dict[str, Any]) -> int:
    """Send the files of a record; how many records that were."""
    folder = journal.folder / record["at"]
    match record["kind"]:
        case "image":
            _send_image(store, run_id, folder / "image.png", record)
        case "model":
            from tesserae.tracking.model import log_model

            try:
                log_model(store.client, store.experiment, run_id, folder, record["main"])
            except (ValueError, KeyError, TypeError):  # files that are no model of this version
                store.client.log_artifacts(run_id, str(folder / record["main"]), "model")
        case _:
            for notebook in folder.glob("*.ipynb"):
                notebook.with_suffix(".html").write_text(_as_html(notebook), encoding="utf-8")
            store.client.log_artifacts(run_id, str(folder), record["to"])
    return 1


def _send_image(store: Store, run_id: str, path: Path, record: dict[str, Any]) -> None:
    from PIL import Image

    if run_id not in store.pictures:
        store.pictures[run_id] = [each.path for each in store.client.list_artifacts(run_id, "images")]
    start = f"images/{record['key'].replace('/', '~')}+step+{record['step']}+timestamp+{record['at_ms']}+"
    if any(each.startswith(start) and each.endswith(".webp") for each in store.pictures[run_id]):
        return  # sent by a sender that died before it could note so; the thumbnail is written last
    with Image.open(path) as image:
        store.client.log_image(run_id, image, key=record["key"], step=record["step"], timestamp=record["at_ms"],
                               synchronous=True)


def _as_html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    return HTMLExporter(embed_images=True).from_filename(str(notebook))[0]
