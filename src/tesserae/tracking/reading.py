"""What the store holds, as tables and files.

Metrics have the names that stages record: those of newer runs lie in sections of the store, train/nll and val/nll and
report/rfid, those of older runs do not; both are nll, val_nll and rfid here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tesserae.tracking.replay import GROUP_TAG
from tesserae.tracking.store import PICTURES, Store

HIDDEN = ("mlflow.", "tesserae.", "pid")  # tags that say nothing to a reader
ALL = 50_000  # the most that MLflow gives at once


def runs_table(root: str | Path, stage: str | None = None):
    """Every stage's run in the experiment, the newest first, as a DataFrame.

    Columns: run_id, stage, status, start_time, minutes, then params.*, metrics.* (last values) and tags.*;
    numbers are numbers. `stage` keeps only the runs of one stage, for instance "vqgan-image".
    """
    import pandas as pd

    rows = []
    for run in _runs(Store.of_environment(root), f"tags.stage = '{stage}'" if stage else ""):
        info, data = run.info, run.data
        if GROUP_TAG in data.tags:
            continue
        metrics = {plain_name(key): data.metrics[key] for key in _sorted(data.metrics)}
        rows.append(
            {"run_id": info.run_id, "stage": data.tags.get("stage", info.run_name), "status": info.status,
             "start_time": pd.Timestamp(info.start_time, unit="ms"),
             "minutes": (info.end_time - info.start_time) / 60_000 if info.end_time else float("nan")}
            | {f"params.{k}": _value(v) for k, v in sorted(data.params.items())}
            | {f"metrics.{k}": v for k, v in sorted(metrics.items())}
            | {f"tags.{k}": v for k, v in sorted(data.tags.items()) if not k.startswith(HIDDEN)}
        )
    first = ["run_id", "stage", "status", "start_time", "minutes"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=first)


def history(root: str | Path, run_id: str, keys: list[str] | None = None):
    """The curves of a run: a DataFrame with the column `step` and one column a metric, NaN between."""
    import pandas as pd

    client = Store.of_environment(root).client
    series: dict[str, dict[int, float]] = {} if keys is None else {key: {} for key in keys}
    for name in _sorted(client.get_run(run_id).data.metrics):
        key = plain_name(name)
        if keys is None or key in keys:
            points = sorted(client.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
            series.setdefault(key, {}).update({m.step: m.value for m in points})  # the last value of a step
    table = pd.DataFrame({key: pd.Series(values, dtype=float) for key, values in sorted(series.items())})
    table = table if keys is None else table[list(keys)]
    return table.sort_index().rename_axis("step").reset_index()


def images(root: str | Path, run_id: str) -> list[tuple[str, int, Path]]:
    """The pictures of a run that were recorded by step: (key, step, file), in order of key and step."""
    store = Store.of_environment(root)
    folder = store.home / "mlruns" / run_id / "artifacts" / "images"  # also of an older run in a clone that was moved
    if not folder.is_dir():
        if not store.client.list_artifacts(run_id, "images"):
            return []
        folder = Path(store.client.download_artifacts(run_id, "images"))
    found = {}
    for path in folder.glob("*.png"):
        match = re.fullmatch(r"(?P<key>.+?)[+%]step[+%](?P<step>\d+)[+%]timestamp[+%](?P<at>\d+).*\.png", path.name)
        if match:
            key = re.sub("[~#]", "/", match["key"]).removeprefix(PICTURES)
            found[key, int(match["step"]), int(match["at"])] = path
    return [(key, step, found[key, step, at]) for key, step, at in sorted(found)]


def plain_name(key: str) -> str:
    """"val/nll" -> "val_nll", "train/nll" -> "nll"; names of older runs stay."""
    section, _, name = key.partition("/")
    return {"train": name, "report": name, "val": f"val_{name}"}.get(section, key) if name else key


def _sorted(keys: Iterable[str]) -> list[str]:
    """Without the machine's own; of two metrics with one plain name the report's comes last, and counts."""
    return sorted((key for key in keys if not key.startswith("system/")), key=lambda key: key.startswith("report/"))


def _runs(store: Store, query: str) -> list:
    """The experiment's runs, and those of the same experiment before the repository was moved."""
    ids = [store.experiment]  # asked first: the one before it may get its other name
    ids += [each.experiment_id for each in store.client.search_experiments()
            if each.name.startswith(f"{store.name} (from ")]
    return list(store.client.search_runs(ids, query, max_results=ALL, order_by=["attributes.start_time DESC"]))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
