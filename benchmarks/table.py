"""The table of the speed suite: one line for each row of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.turns import Found

HEAD = ("case", "ours with", "ours", "theirs", "ratio", "ours, MB", "theirs, MB", "MFU ours", "MFU theirs")


@dataclass(frozen=True)
class Row:
    """One comparison: ours in a mode, beside the reference or alone."""

    case: str
    unit: str
    mode: str
    ours: Found
    theirs: Found | None

    @property
    def ratio(self) -> float | None:
        """How many times ours is as fast, by time for a unit."""
        return rate(self.ours) / rate(self.theirs) if self.theirs else None


    def __str__(self) -> str:
        words = f"{self.case}, {self.ours.note}: {_time(self, self.ours)}"
        operations = self.ours.flops / self.ours.amount * rate(self.ours)
        words += f", {_memory(self.ours)} MB, {operations / 1e9:.4g} GFLOP/s"
        if self.theirs is None:
            return words
        return f"{words}; theirs {_time(self, self.theirs)}, {_memory(self.theirs)} MB: ratio {self.ratio:.2f}"


def rate(found: Found) -> float:
    """Units a second, by the median."""
    return found.amount / median(found.seconds)


def mfu(row: Row, found: Found, peak: dict[str, float]) -> float:
    """Operations that our run needs for a unit x units a second / the matrix-product peak of the precision.

    The same operations are counted for both sides: what the reference computes beyond them is no use.
    """
    needed = row.ours.flops / row.ours.amount
    return needed * rate(found) / peak["bf16" if found.bf16 else "fp32"]


def table(rows: Sequence[Row], peak: dict[str, float]) -> str:
    """Markdown."""
    lines = [HEAD, *(_cells(row, peak) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
                     for line in [lines[0], ["-" * width for width in widths], *lines[1:]])


def _cells(row: Row, peak: dict[str, float]) -> list[str]:
    theirs = row.theirs
    return [row.case, row.ours.note, _time(row, row.ours), _time(row, theirs) if theirs else "-",
            f"{row.ratio:.2f}" if theirs else "-", _memory(row.ours), _memory(theirs) if theirs else "-",
            f"{mfu(row, row.ours, peak):.1%}", f"{mfu(row, theirs, peak):.1%}" if theirs else "-"]


def _time(row: Row, found: Found) -> str:
    return f"{rate(found):.4g} codes/s" if row.unit == "code" else f"{1 / rate(found):.4g} s/{row.unit}"


def _memory(found: Found) -> str:
    return f"{found.peak_bytes / 1e6:,.0f} ({found.library_bytes / 1e6:,.0f})"


def as_record(row: Row, peak: dict[str, float]) -> dict[str, Any]:
    """Every number of a row, for JSON."""
    sides = {"ours": row.ours, **({"theirs": row.theirs} if row.theirs else {})}
    return {"case": row.case, "mode": row.mode, "unit": row.unit, "ratio": row.ratio,
            **{name: {**asdict(found), "units_per_second": rate(found), "mfu": mfu(row, found, peak)}
               for name, found in sides.items()}}
