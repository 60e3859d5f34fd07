"""MLflow, and the only place that knows it: one run a stage execution, and nothing recorded is lost.

What a stage records is written to a journal in .tracking/outbox at the repository's root, and sent from there by a
process of its own: a store that is down, slow or fails half-way neither stops nor slows the work. What could not be
sent waits for the next stage, or for `python -m tesserae.tracking sync`.

The default store is `mlflow.db` with `mlruns/` beside it at the repository's root, also where DVC runs the
experiment in a temporary copy. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` name others.

    run.py        what a stage calls           journal.py   what it recorded, on disk
    describe.py   name, tags, description      sender.py    the process that sends
    replay.py     from journal to MLflow       model.py     networks as models of MLflow's
    store.py      address, client, faults      reading.py   tables and pictures of past runs
"""

from tesserae.tracking.reading import history, images, runs_table
from tesserae.tracking.run import RUN_VARIABLE, Run, silent_run, start_run
from tesserae.tracking.store import real_root

__all__ = ["RUN_VARIABLE", "Run", "history", "images", "real_root", "runs_table", "silent_run", "start_run"]
