"""From the outbox to the store, in a way that may be cut off anywhere and begun again.

Whatever was sent when the sender died, but not yet marked, is sent a second time. That harms nothing: equal metrics
are one metric, a parameter that is there is left, a tag is written over, a file has the name it had. A run is looked
for by its key before it is made again.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tesserae.tracking.outbox import FACTS, FILES, Box, amount
from tesserae.tracking.sqlite import StoreFault
from tesserae.tracking.store import default_uri, experiment_id, fault_of, make_client, passes_soon, refuses

BATCH = 500  # metrics a request; MLflow takes 1000 at most
TRIES = 4  # at a SQLite file that another process holds
KEY_TAG = "tesserae.key"  # finds a run again whose making was cut off


class Unusable(Exception):
    """The store's address is none that MLflow knows."""


class Store:
    """The store at one address; uri None: the default one. The client is made when it is first needed."""

    def __init__(self, root: Path, uri: str | None):
        self.root, self.uri = root, None if uri == default_uri(root) else uri
        self._client = None
        self._experiment: str | None = None

    @property
    def client(self):
        """MLflow's. Raises Unusable."""
        if self._client is None:
            try:
                if self.uri and fault_of(self.uri):
                    raise ValueError(fault_of(self.uri))
                self._client = make_client(self.root, self.uri)
            except StoreFault:
                raise
            except Exception as error:
                raise (Unusable(str(error)) if self.uri else error) from error
        return self._client

    @property
    def experiment(self) -> str:
        """The experiment's id."""
        if self._experiment is None:
            self._experiment = experiment_id(self.client, self.root, self.uri)
        return self._experiment


def deliver(box: Box, store: Store, done: Counter, slow: Callable[[bool], Any] = lambda _: None) -> bool:
    """Send what waits in `box`; remove it when its run is over and everything is sent.

    False where another process sends it. Adds to `done` how much of each kind was sent. Raises what the store raises,
    with everything that was sent marked so. `slow(True)` is called before files are sent, which may take long.
    """
    with box.sending() as mine:
        if not mine:
            return False
        lived = box.lives()  # asked before reading: what it wrote last is then seen
        run_id = _patiently(lambda: _run_id(box, store))
        for name, end, record in _joined(box.records(FACTS)):
            _try(box, record, partial(_send, store.client, run_id, record), done)
            box.mark(name, end)
        slow(True)
        try:
            for name, end, record in box.records(FILES):
                _try(box, record, partial(_send_files, box, store.client, run_id, record), done)
                box.mark(name, end)
                box.forget(record)
        finally:  # a store that takes no files may still be told how the run ended
            slow(False)
            _end(box, store.client, run_id, lived, done)
        if not lived and box.empty():
            box.remove()
        return True


def _run_id(box: Box, store: Store) -> str:
    """The run in the store, made where there is none."""
    if box.run_id:
        return box.run_id
    header = box.header
    if box.sent.get("creating"):  # somebody may have died between the making and the note of it
        found = store.client.search_runs([store.experiment], f"tags.`{KEY_TAG}` = '{box.key}'")
        if found:
            box.note(run_id=found[0].info.run_id)
            return box.run_id
    experiment = store.experiment
    box.note(creating=True)
    run = store.client.create_run(experiment, header.get("began"), {KEY_TAG: box.key}, header["name"])
    box.note(run_id=run.info.run_id)
    return box.run_id


def _joined(records: Iterable[tuple[str, int, dict]]) -> Iterator[tuple[str, int, dict]]:
    """The same records, with metrics that follow each other in one."""
    held: tuple[str, int, dict] | None = None
    for name, end, record in records:
        if held and held[0] == name and held[2]["kind"] == record["kind"] == "metrics" \
                and len(held[2]["rows"]) + len(record["rows"]) <= BATCH:
            held = name, end, record | {"rows": held[2]["rows"] + record["rows"]}
            continue
        if held:
            yield held
        held = name, end, record
    if held:
        yield held


def _end(box: Box, client, run_id: str, lived: bool, done: Counter) -> None:
    """Tell the run's status: as its process said, or "KILLED" where that died without a word."""
    if box.header.get("ends") is False or box.sent.get("ended"):
        return
    end = box.ending or (None if lived else {"status": "KILLED", "at": int(time.time() * 1000)})
    if end:
        _try(box, end | {"kind": "end"}, lambda: client.set_terminated(run_id, end["status"], end["at"]), done)
        box.note(ended=True)


def _try(box: Box, record: dict[str, Any], job: Callable[[], int | None], done: Counter) -> None:
    """Do it, and count what it says that it sent; what the store refuses is put aside and holds nothing up."""
    try:
        sent = _patiently(job)
    except Exception as error:
        if not refuses(error):
            raise
        box.refuse(record, " ".join(str(error).split())[:300])
        done["refused"] += 1
    else:
        done[record["kind"]] += amount(record) if sent is None else sent


def _patiently(job: Callable[[], Any]) -> Any:
    """Do it, again where another writer held the SQLite file too long."""
    for attempt in range(TRIES):
        try:
            return job()
        except Exception as error:
            if attempt + 1 == TRIES or not passes_soon(error):
                raise
            time.sleep(random.uniform(0.1, 1.0))
    return None


def _send(client, run_id: str, record: dict[str, Any]) -> int | None:
    """Send a record without files; how much of it was sent, None for all."""
    from mlflow.entities import Metric, Param, RunTag

    if record["kind"] == "metrics":
        client.log_batch(run_id, metrics=[Metric(*row) for row in record["rows"]])
    elif record["kind"] == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in record["values"].items()])
    elif record["kind"] == "params":
        have = client.get_run(run_id).data.params  # a value once recorded stays
        new = [Param(key, value) for key, value in record["values"].items() if key not in have]
        for start in range(0, len(new), 100):  # MLflow's limit a request
            client.log_batch(run_id, params=new[start:start + 100])
        return len(new)
    return None


def _send_files(box: Box, client, run_id: str, record: dict[str, Any]) -> int:
    """Send the files of a record; how many records that were."""
    folder = box.folder / record["at"]
    if not folder.is_dir():
        return 0  # sent before, but its sender died before it could say so
    client.log_artifacts(run_id, str(folder), record["to"])
    if record.get("series"):
        client.set_tag(run_id, "mlflow.loggedImages", True)  # MLflow's pages look for pictures by step then
    return 1
