"""Which pictures are held out: by content, near-copies together, each class on both sides."""

from __future__ import annotations

import numpy as np


def hold_out(places: np.ndarray, classes: np.ndarray, groups: np.ndarray, holdout: float) -> np.ndarray:
    """Which of N pictures are held out, (N,) bool; N is at least 2.

    places: (N,), where in [0,1) each stands by its own content. classes: (N,) int64, all the same without labels.
    groups: (N,) int64, for near-copies the number of the first of them.

    A picture is held out where its place is below `holdout`, near-copies where the first one's is: adding pictures
    moves none. What is moved all the same, since near-copies and classes make it necessary:

    - a group of near-copies that a new picture comes first in goes where that one belongs;
    - a group trains that is larger than the share of its class that is to be held out;
    - a class of two groups or more has one of them on either side: a small one moves, the one with the place nearest
      to `holdout` among those as small; a class of one group trains;
    - where nothing is left to be held out, one picture is, though a near-copy of it, or none of its class, trains.
    """
    sides = _Sides(places, classes, groups, holdout)
    for number in range(len(sides.members)):
        sides.complete(number, held=True)
        sides.complete(number, held=False)
    held = sides.held[sides.group_of]
    if not held.any():
        _, own, counts = np.unique(classes, return_inverse=True, return_counts=True)
        held[np.lexsort((places, counts[own] < 2))[0]] = True
    return held


class _Sides:
    """Groups of near-copies, and which are held out.

    group_of: (N,) of each picture; held, places: (G,); members: (C,) pictures of each class; a group and a class
    that share pictures are a pair, pairs are sorted by group.
    """

    def __init__(self, places: np.ndarray, classes: np.ndarray, groups: np.ndarray, holdout: float) -> None:
        first, self.group_of = np.unique(groups, return_inverse=True)
        _, class_of, self.members = np.unique(classes, return_inverse=True, return_counts=True)
        self.places, self.sizes = places[first], np.bincount(self.group_of)
        pairs, shared = np.unique(self.group_of * len(self.members) + class_of, return_counts=True)
        self.pair_group, self.pair_class = np.divmod(pairs, len(self.members))
        self.by_class = np.argsort(self.pair_class, kind="stable")
        self.held = self.places < holdout
        self.held[self.pair_group[shared > np.maximum(1, holdout * self.members[self.pair_class])]] = False
        self.groups = np.bincount(self.pair_class)  # of each class
        self.starts = np.cumsum(self.groups) - self.groups
        self.held_out = np.bincount(self.pair_class[self.held[self.pair_group]], minlength=len(self.members))

    def complete(self, number: int, held: bool) -> None:
        """See that a class has a group held out, or one that trains, unless another class would lose its last."""
        if held and (self.held_out[number] or self.groups[number] < 2):
            return
        if not held and self.held_out[number] < self.groups[number]:
            return
        start = self.starts[number]
        own = self.pair_group[self.by_class[start:start + self.groups[number]]]
        nearest = self.places[own] if held else -self.places[own]
        for group in own[np.lexsort((nearest, self.sizes[own]))]:
            low, high = np.searchsorted(self.pair_group, (group, group + 1))
            there = self.pair_class[low:high]
            training = self.groups[there] - self.held_out[there]
            left = training > 1 if held else (self.held_out[there] > 1) | (self.groups[there] < 2)
            if left.all():
                self.held[group] = held
                self.held_out[there] += 1 if held else -1
                return
