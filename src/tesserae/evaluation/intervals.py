"""Numbers with their protocol and interval: bootstrap (Efron and Tibshirani, 1993), and Wilson's for fractions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 200
SEED = 0
Z = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
WORDS = f"95 %: 1.96 standard deviations over {{}} resamples of {{}}, seed {SEED}"


def resampled_counts(count: int, resamples: int = RESAMPLES) -> Tensor:
    """How often each of `count` pictures is in each bootstrap resample: (resamples,count) float64, seeded."""
    found = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=resamples)
    return torch.from_numpy(found.astype(np.float64))


def resampled_means(values: Tensor) -> Tensor:
    """The means (RESAMPLES,) of bootstrap resamples of values (N,)."""
    return resampled_counts(len(values)) @ values.detach().cpu().double() / len(values)


def resampled_medians(values: Tensor) -> Tensor:
    """The medians (RESAMPLES,) of bootstrap resamples of values (N,)."""
    chosen = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    return values.detach().cpu().double()[torch.from_numpy(chosen)].median(1).values


def interval(value: float, resampled: Tensor, low: float = -math.inf,
             high: float = math.inf) -> tuple[float, float]:
    """(low, high) of 95 %: `value` +- Z standard deviations of its values over the resamples, within its range.

    Quantiles of the resamples would not do: a Fréchet distance of resamples, in which pictures occur twice, lies
    above that of the pictures themselves, for it falls as pictures become more.
    """
    reach = Z * float(resampled.std()) if len(resampled) > 1 else math.nan
    return max(low, value - reach), min(high, value + reach)


def wilson_interval(fraction: float, count: int) -> tuple[float, float]:
    """(low, high) of 95 % of a fraction of `count` pictures, by Wilson's score (1927).

    Bootstrap resamples of equal values are all equal, so they would give an interval of no width.
    """
    z2 = Z**2 / count
    centre = (fraction + z2 / 2) / (1 + z2)
    reach = math.sqrt(z2 * fraction * (1 - fraction) + z2**2 / 4) / (1 + z2)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _alike(resampled: Tensor) -> bool:
    """Whether resamples differ by rounding alone: an interval of no width would be misleading."""
    return len(resampled) > 1 and float(resampled.std()) <= 1e-9 * max(1e-9, float(resampled.abs().max()))


class Measures:
    """Numbers of a stage for `Stage.metrics`.

    values: {name: number}, with <name>_low and <name>_high beside those that have an interval. protocol: a record for
    each number, {"of": name, ...}: with which features, on which pictures, and how. notes: a sentence for each number
    that could not be measured, with the reason.
    """

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.protocol: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def add(self, name: str, value: float, protocol: Mapping[str, Any], resampled: Tensor | None = None,
            bounds: tuple[float, float] = (-math.inf, math.inf)) -> None:
        """Add one number; resampled: its values over bootstrap resamples; bounds: its smallest and largest value."""
        self.values[name] = value
        record = {"of": name, **protocol}
        if resampled is not None and _alike(resampled):
            record["interval"] = "none, for all resamples are alike: too few pictures, or all the same"
        elif resampled is not None:
            self.values[f"{name}_low"], self.values[f"{name}_high"] = interval(value, resampled, *bounds)
            record["interval"] = WORDS.format(len(resampled), protocol.get("resampled", "the pictures"))
        record.pop("resampled", None)
        self.protocol.append(record)

    def add_means(self, each: Mapping[str, Tensor], protocol: Mapping[str, Any], prefix: str = "",
                  bounds: tuple[float, float] = (-math.inf, math.inf)) -> None:
        """The mean of values (N,) of single pictures, for each name. One picture alone has no interval.

        Pictures whose value is NaN have none, and are left out, unless that is so of all.
        """
        for name, values in each.items():
            values = values if values.isnan().all() else values[~values.isnan()]
            resampled = resampled_means(values) if len(values) > 1 else None
            self.add(prefix + name, float(values.double().mean()), {"n": len(values), **protocol}, resampled, bounds)

    def add_fractions(self, each: Mapping[str, Tensor], protocol: Mapping[str, Any]) -> None:
        """The fraction of pictures of which something holds, for each name: 0 or 1 of each picture (N,)."""
        for name, held in each.items():
            fraction, of = float(held.double().mean()), protocol.get("resampled", "the pictures")
            words = f"95 %: Wilson's score interval of a fraction of {of}"
            self.add(name, fraction, {"n": len(held), **protocol, "interval": words})
            self.values[f"{name}_low"], self.values[f"{name}_high"] = wilson_interval(fraction, len(held))

    def table(self):
        """A DataFrame with a row for each number: its value and, where it has an interval, low and high."""
        import pandas as pd

        names = [record["of"] for record in self.protocol]
        columns = {"value": "", "low": "_low", "high": "_high"}
        return pd.DataFrame({column: [self.values.get(name + ending, math.nan) for name in names]
                             for column, ending in columns.items()}, index=names, dtype=float)

    def join(self, other: Measures) -> None:
        """Add the numbers, records and notes of another one."""
        self.values |= other.values
        self.protocol += other.protocol
        self.notes += [note for note in other.notes if note not in self.notes]
