"""Which pictures are held out: by content, near-copies together, each class on both sides.

Near-copies are the same picture re-encoded, resized, slightly cropped, brightened or mirrored. Each prepared
picture is kept small, as its *look*. Two looks are near-copies where one is explained by a window of the other, up to
brightness and contrast and a shift of less than a pixel; the windows are `WINDOWS`, slightly smaller than the
picture. Candidates come from 64-bit hashes, the signs of a look's lowest frequencies (Zauner 2010). They are
sorted under several permutations of their bits, so that near hashes stand side by side in one of them (Charikar
2002): the work grows with the number of pictures, not with that of pairs, however alike they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

SPLIT = ("train", "validation")
SIDE = 24  # pixels a side of a look
FINE = 16  # samples a side at which two looks are compared
SMOOTH = 1.0  # pixels of a look: sigma of the samples
LUMA = np.float32([0.299, 0.587, 0.114])
FREQUENCIES = np.array([(row, sum_ - row) for sum_ in range(1, 11) for row in range(sum_ + 1)][:64]).T
TABLES = 10  # permutations of the bits
BESIDE = 3  # hashes on either side that are looked at in each
FAR = 12  # bits; hashes that differ in more belong to other pictures
TRIED = 8  # candidates of a picture that are compared with it, at most
LIKE = 0.93  # correlation of the lowest frequencies that is worth a closer look
SAME, SAME_FINE = 0.95, 0.8  # explained fraction of the variance, and of that of fine detail
GAINS = 0.4, 2.5  # of contrast
FLAT = 1.0  # levels of 255; pictures with a smaller standard deviation show nothing to know them by
NOISE = 0.25  # levels squared: variance that fine detail has by rounding alone
SURE, SURE_RESIDUE = 0.995, 1.0  # explained fraction and residue in levels of what is certainly the same picture
CHAIN = 32  # pictures that a group of near-copies may have, where it is not for sure
ROWS = 2048  # pictures that are worked on together

Window = tuple[float, float, float, float]  # left, top, right, bottom in [0,1]


def _windows() -> tuple[Window, ...]:
    """The whole, the whole mirrored, cut on all sides, on one side, in one corner."""
    cut, corner = 0.08, 0.06
    sides = [[cut * (side == each) for each in range(4)] for side in range(4)]
    corners = [[corner * (each in (side, (side + 1) % 4)) for each in range(4)] for side in range(4)]
    centres = [[cut / 2] * 4, [cut] * 4]
    return ((0, 0, 1, 1), (1, 0, 0, 1),
            *((left, top, 1 - right, 1 - bottom) for left, top, right, bottom in [*centres, *sides, *corners]))


WINDOWS = _windows()


# ---- which are held out ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Which of N pictures are held out, (N,) bool.

    with_copies: how many have near-copies among them. leaked: held-out ones that have some in training. own_splits:
    whether they came with splits.
    """

    held: np.ndarray
    with_copies: int
    leaked: int
    own_splits: bool


def split_pictures(shas: Sequence[str], labels: Sequence[str | None], given: Sequence[str | None],
                   near: tuple[np.ndarray, np.ndarray], holdout: float, seed: int) -> Split:
    """Hold out pictures by their content, `holdout` of them; see `hold_out`. There are two at least.

    shas: the hash of each picture's content, no two the same. given: the split that the data give, which is kept
    where both occur. near: what `near_copies` finds. seed: salts the hash that decides.
    """
    shas, (pairs, sure) = np.asarray(shas, dtype=str), near
    order = np.argsort(shas)  # by content, not by the names of files
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    one, other = rank[pairs].T
    places = np.array([_place(sha, seed) for sha in shas[order]])
    own = np.array([{"train": 0, "validation": 1}.get(name, -1) for name in given])[order]
    own_splits = {0, 1} <= set(own.tolist())
    if own_splits:
        held = np.where(own < 0, places < holdout, own == 1)
    else:
        names: dict[str | None, int] = {}
        classes = np.array([names.setdefault(label, len(names)) for label in np.asarray(labels, object)[order]])
        classes *= None not in names  # labels that not all have are left out
        held = hold_out(places, classes, groups_of(len(order), np.stack([one, other], 1), sure), holdout)
    leaked = np.unique(np.where(held[one], one, other)[held[one] != held[other]])
    return Split(held[rank], len(np.unique(pairs)), len(leaked), own_splits)


def _place(sha: str, seed: int) -> float:
    """Where in [0,1] a picture stands, by its content and the seed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{sha}".encode(), digest_size=8).digest()) / 2**64


def hold_out(places: np.ndarray, classes: np.ndarray, groups: np.ndarray, holdout: float) -> np.ndarray:
    """Which of N pictures are held out, (N,) bool; N is at least 2.

    places: (N,), where in [0,1) each stands by its own content. classes: (N,) int64, all the same without labels.
    groups: (N,) int64, for near-copies the number of the first of them.

    A picture is held out where its place is below `holdout`, near-copies where the first one's is: adding pictures
    moves none. What is moved all the same, since near-copies and classes make it necessary:

    - a group of near-copies that a new picture comes first in goes where that one belongs;
    - a group trains that is larger than the part of its class that is to be held out;
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
    with pictures in common are a pair, pairs are sorted by group.
    """

    def __init__(self, places: np.ndarray, classes: np.ndarray, groups: np.ndarray, holdout: float) -> None:
        first, self.group_of = np.unique(groups, return_inverse=True)
        _, class_of, self.members = np.unique(classes, return_inverse=True, return_counts=True)
        self.places, self.sizes = places[first], np.bincount(self.group_of)
        pairs, common = np.unique(self.group_of * len(self.members) + class_of, return_counts=True)
        self.pair_group, self.pair_class = np.divmod(pairs, len(self.members))
        self.by_class = np.argsort(self.pair_class, kind="stable")
        self.held = self.places < holdout
        self.held[self.pair_group[common > np.maximum(1, holdout * self.members[self.pair_class])]] = False
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


# ---- near-copies -------------------------------------------------------------------------------------------


def look_of(picture: Image.Image) -> bytes:
    """What a prepared picture, mode RGB, is compared by: (SIDE,SIDE,3) uint8."""
    return picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR).tobytes()


def near_copies(looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near-copies among looks (N,SIDE,SIDE,3) uint8, which may lie in a file.

    pairs: (M,2) int64, the smaller number first, those that are most alike before others; sure: (M,) bool, where no
    more than the encoding differs.
    """
    found = [part for part in _compared(looks) if len(part[0])]
    if not found:
        return np.zeros((0, 2), np.int64), np.zeros(0, bool)
    pairs, distances, sure = (np.concatenate(parts) for parts in zip(*found))
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distances))
    first = np.sort(np.unique(pairs[order], axis=0, return_index=True)[1])
    return pairs[order][first], sure[order][first]


def groups_of(count: int, pairs: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Which group each of `count` pictures is in, (count,) int64: the smallest number in it.

    pairs, in the order in which they are joined, and sure: as `near_copies` gives them. Likeness is not passed on
    for ever: a group holds CHAIN pictures at most, or, where all of its pairs are sure, an eighth of all pictures, so
    that a set of pictures that are all alike, such as those of a fixed camera, falls into many groups.
    """
    parent, size = np.arange(count), np.ones(count, np.int64)
    largest = max(2 * CHAIN, count // 8)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for certain in (True, False):  # copies for sure come first
        for one, other in pairs[sure == certain]:
            one, other = sorted((root(one), root(other)))
            if one != other and size[one] + size[other] <= (largest if certain else CHAIN):
                parent[other] = one
                size[one] += size[other]
    return np.array([root(number) for number in range(count)], np.int64)


# ---- candidates --------------------------------------------------------------------------------------------


def _compared(looks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs, distances and certainty, of some pictures after the other."""
    tables = _Tables(looks)
    for start in range(0, len(looks), ROWS):
        own = np.arange(start, min(start + ROWS, len(looks)))
        grey = _grey(looks[own])
        shown = grey.std((1, 2)) >= FLAT
        copy, source, window = tables.candidates(own[shown], grey[shown])
        for which in np.unique(window):
            one, other = copy[window == which], source[window == which]
            for some in np.array_split(np.arange(len(one)), max(1, len(one) // 256)):
                yield _explained(looks, one[some], other[some], int(which))


class _Tables:
    """The hashes of all looks, sorted under several permutations of their bits."""

    def __init__(self, looks: np.ndarray) -> None:
        generator = np.random.Generator(np.random.Philox(0))
        self.permutations = [generator.permutation(64) for _ in range(TABLES)]
        bits, shown = [], []
        for start in range(0, len(looks), ROWS):
            grey = _grey(looks[start:start + ROWS])
            bits.append(np.packbits(_frequencies(grey, WINDOWS[0]) > 0, axis=1))
            shown.append(grey.std((1, 2)) >= FLAT)
        bits, self.known = np.concatenate(bits), np.flatnonzero(np.concatenate(shown))
        self.hashes = _number(np.unpackbits(bits, axis=1))
        self.sorted: list[tuple[np.ndarray, np.ndarray]] = []
        for permutation in self.permutations:
            hashes = _number(np.unpackbits(bits[self.known], axis=1)[:, permutation])
            order = np.argsort(hashes, kind="stable")
            self.sorted.append((hashes[order], self.known[order]))

    def candidates(self, own: np.ndarray, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """copy, source, window: a window of which of these pictures, `own`, may be which other picture."""
        found = []
        for which, window in enumerate(WINDOWS):
            coefficients = _frequencies(grey, window)
            near = self._beside(coefficients > 0)  # (rows,C)
            far = np.bitwise_count(self.hashes[near] ^ _number(coefficients > 0)[:, None])
            row, column = np.nonzero((far <= FAR) & (near != own[:, None]))
            found.append(np.stack([row, near[row, column], far[row, column], np.full(len(row), which)]))
        row, other, far, which = np.concatenate(found, axis=1).astype(np.int64)
        order = np.lexsort((which, far, other, row))
        row, other, far, which = (part[order] for part in (row, other, far, which))
        best = np.diff(row * len(self.hashes) + other, prepend=-1) != 0  # of each pair its best window
        row, other, far, which = (part[best] for part in (row, other, far, which))
        order = np.lexsort((other, far, row))
        row, other, which = (part[order] for part in (row, other, which))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        kept = rank < TRIED
        return other[kept], own[row[kept]], which[kept]

    def _beside(self, bits: np.ndarray) -> np.ndarray:
        """The pictures whose hashes stand beside these, (rows,64) bool, in any table: (rows,C) int64."""
        found = []
        for permutation, (hashes, pictures) in zip(self.permutations, self.sorted):
            place = np.searchsorted(hashes, _number(bits[:, permutation]))
            beside = place[:, None] + np.arange(-BESIDE, BESIDE)
            found.append(pictures[beside.clip(0, len(pictures) - 1)])
        return np.concatenate(found, axis=1)


def _grey(looks: np.ndarray) -> np.ndarray:
    """(N,SIDE,SIDE) float32."""
    return np.asarray(looks, np.float32) @ LUMA


def _number(bits: np.ndarray) -> np.ndarray:
    """(N,64) bits -> (N,) uint64."""
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)[:, 0]


@cache
def _samples(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """(FINE,SIDE) float32 that samples one axis from low to high, and its derivative along the samples."""
    places = (low + (np.arange(FINE) + 0.5) / FINE * (high - low)) * SIDE - 0.5
    weights = np.exp(-np.square(places[:, None] - np.arange(SIDE)) / (2 * SMOOTH**2))
    weights /= weights.sum(1, keepdims=True)
    return weights.astype(np.float32), np.gradient(weights, axis=0).astype(np.float32)


def _frequencies(grey: np.ndarray, window: Window) -> np.ndarray:
    """The 64 lowest coefficients of the cosine transform of a window, without the mean: (N,64) float32."""
    left, top, right, bottom = window
    rows, columns = FREQUENCIES
    waves = np.cos(np.pi * np.arange(11)[:, None] * (np.arange(FINE) + 0.5) / FINE).astype(np.float32)
    down, across = waves @ _samples(top, bottom)[0], waves @ _samples(left, right)[0]
    return (down @ grey @ across.T)[:, rows, columns]


# ---- comparison --------------------------------------------------------------------------------------------


def _explained(looks: np.ndarray, copies: np.ndarray, sources: np.ndarray,
               which: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those pairs of which the copy is explained by the window of the source: pairs, distances, certainty."""
    copy, source = (np.asarray(looks[part], np.float32) for part in (copies, sources))
    like = _alike(_frequencies(copy @ LUMA, WINDOWS[0]), _frequencies(source @ LUMA, WINDOWS[which])) > LIKE
    copies, sources = copies[like], sources[like]
    explained, fine, gain, residue = _fit(copy[like], source[like], WINDOWS[which])
    same = (explained > SAME) & (fine > SAME_FINE) & (gain > GAINS[0]) & (gain < GAINS[1])
    sure = (which == 0) & (explained > SURE) & (residue < SURE_RESIDUE)
    pairs = np.sort(np.stack([copies, sources], axis=1), axis=1)
    return pairs[same], 1 - explained[same], sure[same]


def _alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of rows, (N,)."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(1) / np.maximum(norms, 1e-6)


def _fit(copy: np.ndarray, source: np.ndarray, window: Window) -> tuple[np.ndarray, ...]:
    """Explain copies (N,SIDE,SIDE,3) by a window of sources, its derivatives, which shift and stretch it, and one.

    Returns the explained fraction of the variance, that of fine detail, the gain, and the root mean square of the
    residue in levels: (N,) each. The fit is that of Lucas and Kanade (1981), to first order, by least squares.
    """
    copy, source = (part.transpose(0, 3, 1, 2) for part in (copy, source))
    left, top, right, bottom = window
    (down, by_row), (across, by_column) = _samples(top, bottom), _samples(left, right)
    whole = _samples(0, 1)[0]
    values, same = whole @ copy @ whole.T, down @ source @ across.T
    along_x, along_y = down @ source @ by_column.T, by_row @ source @ across.T
    middle = np.linspace(-1, 1, FINE, dtype=np.float32)
    stretched = middle * along_x, middle[:, None] * along_y
    terms = np.stack([same, along_x, along_y, *stretched, np.ones_like(same)], axis=1)
    terms = terms.reshape(len(copy), 6, 3 * FINE**2)
    square = terms @ terms.transpose(0, 2, 1) + 0.1 * np.eye(6, dtype=np.float32)  # solvable for flat ones, too
    weights = np.linalg.solve(square, terms @ values.reshape(len(copy), 3 * FINE**2, 1))
    residue = values - (weights.transpose(0, 2, 1) @ terms).reshape(values.shape)
    power = np.square(residue).mean((1, 2, 3))
    explained = 1 - power / (values.var((1, 2, 3)) + 1e-3)
    fine = 1 - (_fine_power(residue) + NOISE) / (_fine_power(values) + NOISE)
    return explained, fine, weights[:, 0, 0], np.sqrt(power)


def _fine_power(values: np.ndarray) -> np.ndarray:
    """Mean square of (N,3,FINE,FINE) less its blurred self, (N,)."""
    apart = np.arange(FINE)[:, None] - np.arange(FINE)
    blur = np.exp(-np.square(apart / 1.5) / 2).astype(np.float32)
    blur /= blur.sum(1, keepdims=True)
    return np.square(values - blur @ values @ blur.T).mean((1, 2, 3))
