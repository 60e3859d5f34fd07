"""Histories as CSV."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from tesserae.errors import writing


def write_table(path: Path, rows: list[dict]) -> None:
    """Rows as CSV with the union of their columns, written aside and renamed. Raises DiskFullError."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({k: f"{v:.7g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
        os.replace(part, path)
