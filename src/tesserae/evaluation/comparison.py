"""Runs side by side: the parameters in which they differ, and their results.

Tables are as `tracking.runs_table` gives them: columns are params.*, metrics.* and tags.*, and run_id,
stage, status, start_time and minutes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tesserae.codebook_params import entries
from tesserae.errors import TesseraeError

_LABEL = 40  # letters of a run's label
_SYMBOLS = {"codebook_size": "K", "downsampling": "f", "codebook_dim": "n_z"}  # the paper's, in labels
_BOUNDS = ("_low", "_high")  # of an interval: in the table next to their number, never an axis
_NOT_COMPARED = ("lr", "seconds", "best_step", "steps")  # metrics that are no result


def add_derived(table: pd.DataFrame) -> pd.DataFrame:
    """Add columns that follow from a VQGAN's parameters, for each params.vqgan.<name>.

    downsampling: f = patch * 2^(levels - 1); bits_per_pixel: log2(K) / f^2, the rate in rate and distortion, of the K
    that FSQ has, the product of its levels.
    """
    table = table.copy()
    for column in [c for c in table if c.startswith("params.vqgan.") and c.endswith(".channel_mult")]:
        vqgan = column.removesuffix(".channel_mult")
        levels = table[column].map(lambda mult: len(mult) if isinstance(mult, list) else math.nan)
        factor = _numbers(table, f"{vqgan}.patch") * 2.0 ** (levels - 1)
        table[f"{vqgan}.downsampling"] = factor
        table[f"{vqgan}.bits_per_pixel"] = np.log2(_entries(table, vqgan)) / factor**2
    return table


def differing(table: pd.DataFrame) -> list[str]:
    """The params.* columns in which the runs differ; one that a run lacks counts as a difference."""
    return [c for c in table if c.startswith("params.") and table[c].map(_text).nunique() > 1]


def varied(table: pd.DataFrame) -> list[str]:
    """The columns of `differing` that have two numbers or more: axes for a scatter."""
    return [c for c in differing(table) if _numbers(table, c).nunique() > 1]


def labels(table: pd.DataFrame) -> dict[str, str]:
    """A short name for each run, {run_id: label}: its values that differ from the others', else its start time."""
    names = [c for c in differing(table) if not c.endswith(".bits_per_pixel")]
    if any(c.endswith(".downsampling") for c in names):
        names = [c for c in names if not c.endswith((".channel_mult", ".patch"))]  # f says it
    names.sort(key=lambda name: (name == "params.seed", name.rsplit(".", 1)[-1] not in _SYMBOLS))
    found: dict[str, str] = {}
    for _, run in table.iterrows():
        parts = [f"{_symbol(name)} {_text(run[name])}" for name in names]
        label = ", ".join(parts) or f"{run['start_time']:%d %b %H:%M}"
        label = label if len(label) <= _LABEL else label[:_LABEL - 1] + "…"
        if label in found.values():
            label = f"{label} ({run['run_id'][:6]})"
        found[run["run_id"]] = label
    return found


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """One row a run: start, status, duration, commit, and the parameters that differ."""
    shown = pd.DataFrame({"started": table["start_time"].dt.strftime("%Y-%m-%d %H:%M") if len(table) else [],
                          "status": table["status"].str.lower(), "minutes": table["minutes"].round(1)})
    if "tags.git.commit" in table:
        shown["commit"] = table["tags.git.commit"].str[:8]
    for name in differing(table):
        shown[name.removeprefix("params.")] = table[name].map(_text)
    shown.index = pd.Index([labels(table)[run] for run in table["run_id"]], name="run")
    return shown


def results(table: pd.DataFrame) -> pd.DataFrame:
    """One row a metric, one column a run: last values, held-out metrics first."""
    names = [c.removeprefix("metrics.") for c in table if c.startswith("metrics.") and table[c].notna().any()]
    names = sorted((n for n in names if _is_result(n)), key=lambda n: (not n.startswith("val_"), n))
    values = {label: [run[f"metrics.{name}"] for name in names]
              for (_, run), label in zip(table.iterrows(), labels(table).values())}
    return pd.DataFrame(values, index=pd.Index(names, name="metric"))


def curve_names(histories: Mapping[str, pd.DataFrame], most: int = 9) -> list[str]:
    """Metrics that some run has recorded at two or more steps, held-out ones first."""
    names = dict.fromkeys(name for history in histories.values() for name in history
                          if name != "step" and history[name].notna().sum() > 1
                          and _is_result(name) and not name.endswith(_BOUNDS))
    return sorted(names, key=lambda name: not name.startswith("val_"))[:most]


def axes(table: pd.DataFrame, wanted: Sequence[str] = ()) -> tuple[str | None, str | None, str | None]:
    """The axes of a scatter: (parameter, metric, parameter that groups), None where there is none.

    wanted: names that come first, without params. and metrics., for instance ("codebook_size", "val_lpips").
    """
    def rank(name: str) -> int:
        short = name.removeprefix("metrics.").rsplit(".", 1)[-1]
        return wanted.index(short) if short in wanted else len(wanted)

    numbers = sorted((n for n in varied(table) if n != "params.seed"), key=rank)
    metrics = [c for c in table if c.startswith("metrics.") and _is_result(c.removeprefix("metrics."))
               and not c.endswith(_BOUNDS) and table[c].notna().any()]
    metrics.sort(key=lambda name: (rank(name), not name.startswith("metrics.val_")))
    first = numbers[0] if numbers else None
    group = next((n for n in numbers[1:] if not n.endswith((".bits_per_pixel", ".channel_mult"))), None)
    return first, metrics[0] if metrics else None, group


def missing(table: pd.DataFrame, stage: str) -> str:
    """A sentence on what there is to compare, and how to get more."""
    more = ("change a value in params.yaml and run dvc repro again, or queue several: "
            "dvc exp run --queue -S 'vqgan.image.codebook_size=64,256,1024', then dvc queue start")
    if table.empty:
        return f"No run of {stage} has been recorded yet: run dvc repro first."
    if len(table) == 1:
        return f"There is one run of {stage}, with nothing to compare it to: {more}."
    if not differing(table):
        return f"There are {len(table)} runs of {stage}, all with the same parameters: {more}."
    names = ", ".join(name.removeprefix("params.") for name in differing(table))
    return f"There are {len(table)} runs of {stage}; they differ in {names}."


def _symbol(column: str) -> str:
    name = column.rsplit(".", 1)[-1]
    return _SYMBOLS.get(name, name)


def _is_result(name: str) -> bool:
    return name not in _NOT_COMPARED and not name.endswith("_per_second")


def _numbers(table: pd.DataFrame, column: str) -> pd.Series:
    if column not in table:
        return pd.Series(math.nan, table.index)
    return pd.to_numeric(table[column].map(lambda v: math.nan if isinstance(v, (bool, list, str)) else v),
                         errors="coerce").astype(float)


def _entries(table: pd.DataFrame, vqgan: str) -> pd.Series:
    """How many codes each run's codebook has; K itself where FSQ has no levels for it."""
    sizes = _numbers(table, f"{vqgan}.codebook_size")
    if f"{vqgan}.quantizer" not in table:
        return sizes

    def found(quantizer: Any, size: float) -> float:
        try:
            return float(entries(quantizer, int(size)))
        except (TesseraeError, ValueError):  # no number, or a run of an older version
            return size

    return pd.Series([found(*pair) for pair in zip(table[f"{vqgan}.quantizer"], sizes)], table.index, dtype=float)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
