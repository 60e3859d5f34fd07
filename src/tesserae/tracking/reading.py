"""What the store holds, as tables and files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tesserae.tracking.store import experiment_id, make_client

HIDDEN = ("mlflow.", "tesserae.", "pid")  # tags that say nothing to a reader


def runs_table(root: str | Path, stage: str | None = None):
    """Every run of the store, the newest first, as a DataFrame.

    Columns: run_id, stage, status, start_time, minutes, then params.*, metrics.* (last values) and tags.*;
    numbers are numbers. `stage` keeps only the runs of one stage, for instance "vqgan-image".
    """
    import pandas as pd

    client, experiment = _opened(root)
    runs, token = [], None
    query = f"tags.stage = '{stage}'" if stage else ""
    while True:
        page = client.search_runs([experiment], query, page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    rows = []
    for run in runs:
        info, data = run.info, run.data
        rows.append(
            {"run_id": info.run_id, "stage": data.tags.get("stage", info.run_name), "status": info.status,
             "start_time": pd.Timestamp(info.start_time, unit="ms"),
             "minutes": (info.end_time - info.start_time) / 60_000 if info.end_time else float("nan")}
            | {f"params.{k}": _value(v) for k, v in sorted(data.params.items())}
            | {f"metrics.{k}": v for k, v in sorted(data.metrics.items())}
            | {f"tags.{k}": v for k, v in sorted(data.tags.items()) if not k.startswith(HIDDEN)}
        )
    first = ["run_id", "stage", "status", "start_time", "minutes"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=first)


def history(root: str | Path, run_id: str, keys: list[str] | None = None):
    """The curves of a run: a DataFrame with the column `step` and one column a metric, NaN between."""
    import pandas as pd

    client = _client(root)
    keys = sorted(client.get_run(run_id).data.metrics) if keys is None else list(keys)
    series = {}
    for key in keys:
        points = sorted(client.get_metric_history(run_id, key), key=lambda m: (m.step, m.timestamp))
        series[key] = pd.Series({m.step: m.value for m in points}, dtype=float)  # the last value of a step
    table = pd.DataFrame(series, columns=keys)
    return table.sort_index().rename_axis("step").reset_index()


def images(root: str | Path, run_id: str) -> list[tuple[str, int, Path]]:
    """The pictures of a run that were recorded by step: (key, step, file), in order of key and step."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    client = _client(root)
    where = client.get_run(run_id).info.artifact_uri
    local = Path(local_file_uri_to_path(where)) if where.startswith("file:") else None
    found = []
    for item in client.list_artifacts(run_id, "images"):
        match = re.fullmatch(r"images/(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%]timestamp.*\.png", item.path)
        if match:
            file = local / item.path if local else Path(client.download_artifacts(run_id, item.path))
            found.append((re.sub("[~#]", "/", match["key"]), int(match["step"]), file))
    return sorted(found)


def _client(root: str | Path):
    return make_client(root, os.environ.get("MLFLOW_TRACKING_URI") or None)


def _opened(root: str | Path):
    """The client and the id of the experiment; store and experiment are made where they are missing."""
    client = _client(root)
    return client, experiment_id(client, root, os.environ.get("MLFLOW_TRACKING_URI") or None)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
