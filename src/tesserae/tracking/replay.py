"""A journal replayed into MLflow, in a way that may be cut off anywhere and begun again.

What was sent when a sender died, but not yet noted, is sent a second time. That changes nothing: equal metrics are
one metric, a parameter or tag is written over by the same, a picture or model that is there is passed over.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from tesserae.tracking.journal import FACTS, FILES, Journal
from tesserae.tracking.store import Store

BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits of a request
JOINED = 50  # records of metrics that are sent together
TRIES = 4  # at a SQLite file that another process holds
KEY_TAG = "tesserae.key"  # finds a run again whose making was cut off
GROUP_TAG = "tesserae.group"  # of a parent: the execution of dvc that its children belong to
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def deliver(journal: Journal, store: Store) -> str | None:
    """Send what waits in a journal; remove it when its run is over and everything is sent.

    Returns the run's id, None where another process sends it. Raises what the store raises, with everything that was
    sent noted.
    """
    for _ in range(TRIES - 1):
        try:
            return _deliver(journal, store)
        except Exception as error:
            if "is locked" not in str(error) and getattr(error, "error_code", "") != "TEMPORARILY_UNAVAILABLE":
                raise
            time.sleep(random.uniform(0.1, 1.0))
    return _deliver(journal, store)


def _deliver(journal: Journal, store: Store) -> str | None:
    with journal.sending() as mine:
        if not mine:
            return None
        over = journal.over()  # asked first: what was written is read
        run_id = journal.sent.get("run_id") or _begun(journal, store)
        for end, record in _joined(journal.records(FACTS, journal.sent.get("facts", 0))):
            _try(_send, store, run_id, journal, record)
            journal.note(facts=end)
        if over and not any(journal.records(("end",))):  # its process died
            _send(store, run_id, journal, {"kind": "end", "status": "KILLED", "time": None})
        for end, record in journal.records(FILES, journal.sent.get("files", 0)):
            _try(_send_files, store, run_id, journal, record)
            journal.note(files=end)
        if over:
            journal.remove()
        return run_id


def _begun(journal: Journal, store: Store) -> str:
    """The id of the run in the store, which is made where there is none, and of its parent."""
    header = journal.header
    began, group = header.get("began"), header.get("group")
    tags, parent = {KEY_TAG: journal.key}, None
    if group:
        with FileLock(store.home / ".tracking" / "parents.lock"):
            parent = _found_or_made(store, group["name"], began, {GROUP_TAG: group["id"]})
        store.client.update_run(parent, status="RUNNING")
        tags["mlflow.parentRunId"] = parent
    run_id = _found_or_made(store, header.get("name", journal.key), began, tags)
    journal.note(run_id=run_id, parent=parent)
    return run_id


def _found_or_made(store: Store, name: str, began: int | None, tags: dict[str, str]) -> str:
    """The id of the run that has the first of the tags; a sender may have died before it could note it."""
    key, value = next(iter(tags.items()))
    for run in store.client.search_runs([store.experiment], f"tags.`{key}` = '{value}'", max_results=1):
        return run.info.run_id
    return store.client.create_run(store.experiment, began, tags, name).info.run_id


def _joined(records: Iterable[tuple[int, dict]]) -> Iterator[tuple[int, dict]]:
    """The same records, with metrics that follow each other in one."""
    for kind, group in groupby(records, lambda each: each[1]["kind"]):
        while some := list(islice(group, JOINED if kind == "metrics" else 1)):
            end, record = some[-1]
            if kind == "metrics":
                record = record | {"rows": [row for _, each in some for row in each["rows"]]}
            yield end, record


def _try(send: Callable, store: Store, run_id: str, journal: Journal, record: dict[str, Any]) -> None:
    """Send a record; what the store refuses is put aside and holds nothing up."""
    try:
        send(store, run_id, journal, record)
    except Exception as error:
        if not isinstance(error, (KeyError, TypeError)) and getattr(error, "error_code", "") not in REFUSALS:
            raise
        journal.refuse(record, " ".join(str(error).split())[:300])


def _send(store: Store, run_id: str, journal: Journal, record: dict[str, Any]) -> None:
    """Send a record without files."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    client = store.client
    match record["kind"]:
        case "metrics" | "params" | "tags" as kind:
            entity = {"metrics": Metric, "params": Param, "tags": RunTag}[kind]
            rows = [entity(*row) for row in record["rows"]]
            for start in range(0, len(rows), BATCH[kind]):
                client.log_batch(run_id, **{kind: rows[start:start + BATCH[kind]]})
        case "input":
            source = json.dumps({"uri": record["source"]})
            dataset = Dataset(record["name"], record["digest"], "local", source)
            client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])
        case "end":
            for each in filter(None, (run_id, journal.sent.get("parent"))):  # a parent ends as its last child did
                client.set_terminated(each, record["status"], record["time"])


def _send_files(store: Store, run_id: str, journal: Journal, record: dict[str, Any]) -> None:
    """Send the files of a record."""
    folder = journal.folder / record["at"]
    match record["kind"]:
        case "image":
            _send_image(store, run_id, folder / "image.png", record)
        case "model":
            from tesserae.tracking.model import log_model

            log_model(store.client, store.experiment, run_id, folder, record["main"])
        case _:
            for notebook in folder.glob("*.ipynb"):
                with suppress(Exception):  # half a notebook, as after a full disk, goes without its page
                    notebook.with_suffix(".html").write_text(_as_html(notebook), encoding="utf-8")
            store.client.log_artifacts(run_id, str(folder), record["to"])


def _send_image(store: Store, run_id: str, path: Path, record: dict[str, Any]) -> None:
    from PIL import Image

    start = f"images/{record['key'].replace('/', '~')}+step+{record['step']}+timestamp+{record['time']}+"
    there = (each.path for each in store.client.list_artifacts(run_id, "images"))
    if any(each.startswith(start) and each.endswith(".webp") for each in there):
        return  # sent by a sender that died before it could note so; the thumbnail is written last
    with Image.open(path) as image:
        store.client.log_image(run_id, image, key=record["key"], step=record["step"], timestamp=record["time"],
                               synchronous=True)


def _as_html(notebook: Path) -> str:
    from nbconvert import HTMLExporter

    return HTMLExporter(embed_images=True).from_filename(str(notebook))[0]
