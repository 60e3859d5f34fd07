"""The experiments beside each other: a handful of numbers of each stage, and the parameters that differ.

    python -m tesserae.pipeline.table

`dvc exp show` has a column for every number, parameter and dependency, about 400 of them.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tesserae.errors import TesseraeError, command
from tesserae.files import find_root
from tesserae.params import Params

# What people compare, by stage: reconstructions, the codebook, the likelihood, samples and how they obey conditions.
METRICS = ("val_lpips", "val_miou", "rfid", r"frechet_\w+_reconstructions", "val_usage", "usage", "perplexity",
           "val_bits", "val_gain_bits", "fid", r"frechet_vgg16", "class_share", "segmenter_share", "seam_ratio")
_METRIC = re.compile(rf"(?:reports/([^/]+)/metrics\.json:)?({'|'.join(METRICS)})")
_PARAM = re.compile(rf"(?:params\.yaml:)?((?:{'|'.join(Params.model_fields)})(?:\..+)?)")
WIDTH = 24  # letters of a value


def compared(rows: list[dict[str, str]]) -> list[list[str]]:
    """Return lines of cells: a head with the experiments' names, the numbers, then the parameters that differ.

    rows: those of `dvc exp show --csv`, one an experiment.
    """
    columns = list(rows[0]) if rows else []
    head = ["", *(row["Experiment"] or row["rev"] or "workspace" for row in rows)]
    numbers, params = [], []
    for column in columns:
        cells = [row[column] for row in rows]
        if (metric := _METRIC.fullmatch(column)) and any(cells):
            numbers.append([" ".join(filter(None, metric.groups())), *map(_short, cells)])
        elif (param := _PARAM.fullmatch(column)) and len(set(cells)) > 1:
            params.append([param[1], *map(_short, cells)])
    return [head, *sorted(numbers), *sorted(params)]


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell if len(cell) <= WIDTH else f"{cell[:WIDTH - 3]}..."


def _aligned(lines: Iterable[list[str]]) -> list[str]:
    lines = list(lines)
    widths = [max(map(len, cells)) for cells in zip(*lines)]
    return ["  ".join(f"{cell:<{width}}" if number == 0 else f"{cell:>{width}}"
                      for number, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines]


def _experiments(root: Path) -> list[dict[str, str]]:
    words = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--hide-failed", "--hide-queued"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise TesseraeError(done.stderr.strip() or "dvc exp show failed.")
    return list(csv.DictReader(io.StringIO(done.stdout)))


def main() -> None:
    """The command."""
    with command():
        print(*_aligned(compared(_experiments(find_root()))), sep="\n")
        print("\ndvc exp show has every number; make ui has every run, with its curves and pictures.")


if __name__ == "__main__":
    main()
