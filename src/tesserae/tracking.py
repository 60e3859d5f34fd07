"""MLflow, and the only file that knows it: one run a stage execution, whatever happens to the server.

The default store is `mlflow.db` with `mlruns/` beside it at the repository's root, also where DVC runs the
experiment in a temporary copy. `MLFLOW_TRACKING_URI` names another one.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import random
import re
import subprocess
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

EXPERIMENT = "tesserae"
RUN_VARIABLE = "TESSERAE_RUN_ID"  # set by pipeline.py: the notebook's kernel joins that run
FLUSH_SECONDS = 2.0  # metrics are gathered this long
PATIENCE_SECONDS = 30.0  # pause after a failure
LONGEST_SECONDS = 600.0  # wait at the end, while the store answers: a model may be large
KEEP = 50_000  # metrics kept while the server is away
BATCH = 500  # metrics a request; MLflow takes 1000 at most
TRIES = 4  # at a SQLite file that another process holds


def real_root(root: str | Path) -> Path:
    """The repository itself, where `root` may be DVC's temporary copy of it under .dvc/tmp/exps."""
    root = Path(root).resolve()
    for parent in root.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parent.parent.name == ".dvc":
            return parent.parents[2]
    return root


def tracking_uri(root: str | Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the SQLite file at the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{real_root(root) / 'mlflow.db'}"


def _client(root: str | Path):
    """An MlflowClient that keeps quiet, gives up soon and tells nobody else."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _store_lock(root):
        return MlflowClient(tracking_uri(root))


def _store_lock(root: str | Path):
    """MLflow's own making of a SQLite store does not bear two processes at once."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return nullcontext()
    from filelock import FileLock

    return FileLock(real_root(root) / "mlflow.db.lock")


def _open(root: str | Path):
    """The client and the id of the experiment; store and experiment are made where they are missing."""
    from mlflow.exceptions import MlflowException

    client = _client(root)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        files = None if os.environ.get("MLFLOW_TRACKING_URI") else (real_root(root) / "mlruns").as_uri()
        try:
            return client, client.create_experiment(EXPERIMENT, files)
        except MlflowException:  # another process was quicker
            found = client.get_experiment_by_name(EXPERIMENT)
    return client, found.experiment_id


# ---------------------------------------------------------------- a run


class Run:
    """One MLflow run. Its methods return at once and never raise: a thread does the sending.

    While the store is away metrics wait, pictures and files are dropped, and one warning says so.
    `id` is None where the run could not even be started; then nothing is recorded.
    """

    def __init__(self, client, run_id: str | None):
        self._client = client
        self.id = run_id
        self._metrics: deque = deque(maxlen=KEEP)
        self._jobs: deque[Callable[[], Any]] = deque()
        self._wake = threading.Condition()
        self._busy = False
        self._hurry = False
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._away_until = 0.0
        self._warned = False

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers, nested mappings with dots between; what is not a number is left out."""
        now = int(time.time() * 1000)
        for key, value in flatten(values).items():
            if isinstance(value, (int, float)) or hasattr(value, "item"):
                try:
                    self._metrics.append((_name(key), float(value), now, int(step or 0)))
                except (TypeError, ValueError):
                    continue
        self._start_thread()

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters, nested mappings with dots between. A value once recorded stays."""
        from_values = {_name(k): _text(v) for k, v in flatten(values).items()}

        def send():
            from mlflow.entities import Param

            have = self._client.get_run(self.id).data.params
            new = [Param(k, v) for k, v in from_values.items() if k not in have]
            for start in range(0, len(new), 100):  # MLflow's limit a request
                self._client.log_batch(self.id, params=new[start : start + 100])

        self._put(send)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record tags, over those of the same name."""
        texts = {_name(k): _text(v, 5000) for k, v in values.items()}

        def send():
            from mlflow.entities import RunTag

            self._client.log_batch(self.id, tags=[RunTag(k, v) for k, v in texts.items()])

        self._put(send)

    def figure(self, figure, name: str) -> None:
        """Record a matplotlib figure or a PIL image as `figures/<name>`, for instance "usage.png"."""
        try:
            picture = _as_pil(figure)
        except Exception as error:
            self._warn(error)
            return
        self._put(lambda: self._client.log_image(self.id, picture, artifact_file=f"figures/{name}"))

    def image(self, image, key: str, step: int) -> None:
        """Record one picture of a series: (H,W,3) uint8 array or PIL image. MLflow shows it by step."""
        try:
            picture = _as_pil(image)
        except Exception as error:
            self._warn(error)
            return
        self._put(lambda: self._client.log_image(self.id, picture, key=key, step=int(step)))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file or a whole folder, under `folder` of the run."""
        path = Path(path).resolve()

        def send():
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(self.id, str(path), folder)

        self._put(send)

    def finish(self, status: str = "FINISHED") -> None:
        """Send what waits and end the run: "FINISHED", "FAILED" or "KILLED"."""
        self._put(lambda: self._client.set_terminated(self.id, status))
        self.flush()

    def flush(self, seconds: float = LONGEST_SECONDS) -> None:
        """Wait until everything is sent, or the store has failed, or the time is up."""
        end = time.monotonic() + seconds
        with self._wake:
            self._hurry = True
            self._wake.notify_all()
            while (self._jobs or self._metrics or self._busy) and self._alive():
                now = time.monotonic()
                if now >= end or now < self._away_until:
                    break
                self._wake.wait(0.2)
            self._hurry = False

    # the thread

    def _put(self, job: Callable[[], Any]) -> None:
        if self.id is not None:
            with self._wake:
                self._jobs.append(job)
                self._wake.notify_all()
            self._start_thread()

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and self._pid == os.getpid()

    def _start_thread(self) -> None:
        if self.id is None:
            self._metrics.clear()
        elif not self._alive():  # also after a fork
            self._pid = os.getpid()
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()
            atexit.register(self.flush, 5.0)

    def _work(self) -> None:
        while True:
            with self._wake:
                if not self._jobs and not self._hurry:
                    self._wake.wait(FLUSH_SECONDS)
                job = self._jobs.popleft() if self._jobs else None
                self._busy = True
            try:
                if time.monotonic() >= self._away_until:
                    self._patiently(self._send_metrics)
                    if job is not None:
                        self._patiently(job)
            except Exception as error:
                if not _our_fault(error):
                    self._away_until = time.monotonic() + PATIENCE_SECONDS
                self._warn(error)
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                if self._hurry and not self._jobs and not self._metrics:
                    self._wake.wait(0.05)

    @staticmethod
    def _patiently(job: Callable[[], Any]) -> None:
        """Do a job, again where another writer held the SQLite file too long."""
        for attempt in range(TRIES):
            try:
                job()
                return
            except Exception as error:
                if attempt + 1 == TRIES or getattr(error, "error_code", "") != "TEMPORARILY_UNAVAILABLE":
                    raise
                time.sleep(random.uniform(0.1, 1.0))

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        while self._metrics:
            batch = [self._metrics.popleft() for _ in range(min(BATCH, len(self._metrics)))]
            try:
                self._client.log_batch(self.id, metrics=[Metric(*row) for row in batch])
            except Exception as error:
                if not _our_fault(error):
                    self._metrics.extendleft(reversed(batch))  # they wait for the store's return
                raise

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            what = _short(error)
            warnings.warn(f"MLflow fails, the work goes on without it: {what}", stacklevel=2)


def start_run(
    root: str | Path, stage_name: str, params: Mapping | None = None, tags: Mapping | None = None
) -> Run:
    """Start the run of a stage's execution, or join the one that TESSERAE_RUN_ID names.

    params: nested mappings, recorded under dotted keys. tags: joined to those of `provenance`.
    Never raises because of the store: the run's `id` is then None.
    """
    params = params or {}
    joined = os.environ.get(RUN_VARIABLE)
    if joined == "":  # the pipeline could not start one, and has said so
        return silent_run()
    try:
        client, experiment = _open(root)
        if not joined and not os.environ.get("MLFLOW_TRACKING_URI"):
            _end_dead_runs(client, experiment)
        run_id = joined or client.create_run(experiment, run_name=stage_name).info.run_id
    except Exception as error:
        run = Run(None, None)
        run._warn(error)
        return run
    run = Run(client, run_id)
    run.params(params)
    pid = {} if joined else {"pid": os.getpid()}
    run.tags({**provenance(root, stage_name, params), **pid, **(tags or {})})
    return run


def _end_dead_runs(client, experiment: str) -> None:
    """Runs whose process is gone without a word, as after a power cut, do not stay "running" for ever."""
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
        pid = run.data.tags.get("pid", "")
        if pid.isdigit() and not _lives(int(pid)):
            client.set_terminated(run.info.run_id, "KILLED")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def silent_run() -> Run:
    """A run that records nothing, for all processes but the first."""
    return Run(None, None)


def provenance(root: str | Path, stage_name: str, params: Mapping) -> dict[str, str]:
    """Tags that tie a run to its code, its data, its parameters and its DVC stage and experiment."""
    root = Path(root)
    changed = _git(root, "status", "--porcelain", "--", "src", "notebooks", "dvc.yaml")
    tags = {
        "stage": stage_name,
        "params.hash": params_hash(params),
        "git.commit": os.environ.get("DVC_EXP_BASELINE_REV") or _git(root, "rev-parse", "HEAD"),
        "git.dirty": "true" if changed else "false",
        "dvc.stage": os.environ.get("DVC_STAGE", ""),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME", ""),
        "data.hash": _data_hash(root),
    }
    return {key: value for key, value in tags.items() if value}


def params_hash(params: Mapping) -> str:
    """Twelve hexadecimal digits that stand for the parameters, whatever their order."""
    text = json.dumps(flatten(params), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------- reading


def runs_table(root: str | Path, stage: str | None = None):
    """Every run of the store, the newest first, as a DataFrame.

    Columns: run_id, stage, status, start_time, minutes, then params.*, metrics.* (last values) and tags.*;
    numbers are numbers. `stage` keeps only the runs of one stage, for instance "vqgan-image".
    """
    import pandas as pd

    client, experiment = _open(root)
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
            | {f"tags.{k}": v for k, v in sorted(data.tags.items()) if not k.startswith(("mlflow.", "pid"))}
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
            found.append((match["key"].replace("#", "/"), int(match["step"]), file))
    return sorted(found)


# ---------------------------------------------------------------- small things


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _name(key: str) -> str:
    return re.sub(r"[^\w\-./ ]", "_", str(key))[:250]


def _text(value: Any, limit: int = 6000) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:limit]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _our_fault(error: Exception) -> bool:
    """True where the store answered and refused, so that trying again is of no use."""
    codes = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") in codes


def _as_pil(image):
    """Matplotlib figure, array or PIL image -> PIL image that nobody else holds."""
    import io

    from PIL import Image

    if isinstance(image, Image.Image):
        return image.copy()
    if hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", bbox_inches="tight")
        return Image.open(buffer)
    import numpy as np

    return Image.fromarray(np.array(image))


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _data_hash(root: Path) -> str:
    try:
        match = re.search(r"\bmd5: *(\w+)", (root / "data.dvc").read_text(encoding="utf-8"))
    except OSError:
        return ""
    return match[1] if match else ""
