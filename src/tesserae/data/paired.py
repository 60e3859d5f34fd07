"""Code maps with the maps of their conditions, cut into windows together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tesserae.data.batches import batch_indices
from tesserae.data.codes import VIEWS, CodeMaps, CodesError
from tesserae.data.conditions import (
    MAX_POSITIONS,
    Codes,
    Condition,
    Conditioning,
    Coordinates,
    Label,
    Start,
    windows_of,
)
from tesserae.data.pictures import spread
from tesserae.params import TransformerParams

EVALUATED = 2  # stream of random numbers for the windows of evaluations


@dataclass(frozen=True)
class Chosen:
    """B windows: which picture, which view of it (0: as it is, 1: mirrored), where. (B,) int64 each."""

    pictures: Tensor
    views: Tensor
    tops: Tensor
    lefts: Tensor


class PairedMaps:
    """One split: the codes s that are modelled, the codes r they are conditioned on, and the classes.

    maps: CodeMaps of s; others: CodeMaps of each r by name, of the same pictures in the same order; window: codes
    a side of what the transformer sees, 0 for whole maps. Raises CodesError where they do not go together.
    """

    def __init__(self, maps: CodeMaps, others: Mapping[str, CodeMaps] | None = None, window: int = 0) -> None:
        self.maps, self.others = maps, dict(others or {})
        self.window = (window, window) if window else maps.shape
        if max(self.window) > min(maps.shape) and window:
            raise CodesError(f"A window of {window} codes does not fit maps of {maps.shape[0]}x{maps.shape[1]}: "
                             "take a smaller one.")
        for name, other in self.others.items():
            if len(other) != len(maps):
                raise CodesError(f"codes/{name} holds {len(other)} pictures, the codes to model {len(maps)}: "
                                 "run dvc repro, both must come from the same prepared set.")
            if any(mine % own for mine, own in zip(other.shape, maps.shape)):
                raise CodesError(f"codes/{name} has maps of {other.shape}, which windows of {maps.shape} do not "
                                 "divide: give its VQGAN a downsampling that divides the other's.")

    @classmethod
    def load(cls, codes: str | Path, split: str, block: TransformerParams) -> PairedMaps:
        """What a block of params.yaml models, of "train" or "validation", from the folder of all code maps."""
        codes = Path(codes)
        others = {name: CodeMaps.load(codes / name, split) for name in block.codes_read}
        return cls(CodeMaps.load(codes / block.vqgan, split), others, block.window)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def positions(self) -> tuple[int, int]:
        """How many positions a window has: rows, columns."""
        return tuple(side - own + 1 for side, own in zip(self.maps.shape, self.window))

    def conditions(self, names: list[str]) -> list[Condition]:
        """The conditions of these names, for these maps."""
        return [self._condition(name) for name in names] or [Start()]

    def _condition(self, name: str) -> Condition:
        if name == "class":
            return Label(max(1, len(self.maps.class_names)))
        if name == "coordinates":
            return Coordinates(2 * min(MAX_POSITIONS, max(self.positions)))
        other = self.others[name]
        scales = (own // mine for own, mine in zip(other.shape, self.maps.shape))
        return Codes(name, other.codebook_size, tuple(side * scale for side, scale in zip(self.window, scales)))

    def batch(self, step: int, batch_size: int, seed: int, flip: bool, process: int = 0,
              processes: int = 1) -> Chosen:
        """The windows of one step: a pure function of its arguments.

        With `flip` each is of the mirrored picture with probability one half, where mirrored views are stored.
        """
        pictures = torch.from_numpy(batch_indices(len(self), batch_size, step, seed, process, processes))
        raw = np.random.Philox(np.random.SeedSequence((seed, step, 0))).random_raw(3 * batch_size * processes)
        own = slice(process * batch_size, (process + 1) * batch_size)  # of the global batch
        first, *raw_positions = (raw >> np.uint64(32)).astype(np.int64).reshape(3, -1)[:, own]
        mirrored = flip and self.maps.indices.shape[1] == VIEWS
        views = torch.from_numpy(first >> 31) if mirrored else torch.zeros(batch_size, dtype=torch.int64)
        return Chosen(pictures, views, *(torch.from_numpy(number * count >> 32)
                                         for number, count in zip(raw_positions, self.positions)))

    def some(self, count: int) -> Chosen:
        """A window of each of `count` pictures evenly spread over the set, as they are: always the same ones."""
        pictures = torch.tensor(spread(count, len(self)))
        fixed = self.batch(0, len(pictures), seed=EVALUATED, flip=False)
        return Chosen(pictures, torch.zeros_like(pictures), fixed.tops, fixed.lefts)

    def in_turn(self, count: int, by_class: bool) -> Tensor:
        """`count` pictures, (count,) int64: of one class after the other, or evenly spread over the set.

        Of more classes than `count` one picture each of some, evenly chosen.
        """
        if not by_class:
            return torch.tensor(spread(count, len(self)))
        labels = self.maps.labels
        together = labels.argsort(stable=True)  # class after class
        counts = torch.bincount(labels)
        rank = torch.empty_like(labels)  # of a picture in its class
        rank[together] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[together]]
        order = (rank * len(self.maps.class_names) + labels).argsort()
        classes = int((counts > 0).sum())
        return order[spread(count, classes)] if count < classes else order[torch.arange(count) % len(order)]

    def whole(self, pictures: Tensor, views: Tensor | None = None) -> Chosen:
        """The windows at the top left of these pictures; whole maps where there is no window."""
        zeros = torch.zeros_like(pictures)
        return Chosen(pictures, zeros if views is None else views, zeros, zeros)

    def codes(self, chosen: Chosen) -> Tensor:
        """s of these windows, (B,h,w) int64."""
        return windows_of(self.maps.indices[chosen.pictures, chosen.views].long(), chosen.tops, chosen.lefts,
                          self.window)

    def conditioning(self, chosen: Chosen, by: Tensor | None = None) -> Conditioning:
        """The conditions of these windows; `by` (B,): of these other pictures instead, for comparison."""
        known = chosen.pictures if by is None else by
        labels = None if self.maps.labels is None else self.maps.labels[known]
        maps = {name: other.indices[known, chosen.views.clamp_max(other.indices.shape[1] - 1)].long()
                for name, other in self.others.items()}
        return Conditioning(chosen.tops, chosen.lefts, self.maps.shape, self.window, labels, maps)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change with any code, label or class name."""
        parts = [self.maps.fingerprint, *(f"{name} {other.fingerprint}" for name, other in self.others.items())]
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()
