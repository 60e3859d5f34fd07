"""How a codebook is used: how many of its codes, how evenly, where, beside which others, how far apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tesserae.evaluation.distributions import exact

AT_ONCE = 1 << 14  # maps that are looked at together, so that memory does not grow with the set
TWINS = 0.05  # distance to the nearest other code, over the median of these: closer ones are doubles


def usage_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code was chosen: indices of any shape -> (K,) int64."""
    counts = torch.zeros(codebook_size, dtype=torch.int64)
    for part in torch.atleast_1d(indices).split(AT_ONCE):
        counts += torch.bincount(part.flatten().long(), minlength=codebook_size)
    return counts


def usage_statistics(counts: Tensor) -> dict[str, float]:
    """Numbers for how K codes share the positions, from counts (K,).

    usage: share of codes ever chosen; perplexity: exp of the entropy, in [1, K]; perplexity_share: that over
    K; entropy_bits: bits a code; dead: codes never chosen; top_share: share of the commonest. All of them but
    `dead` are 0 where nothing was counted.
    """
    counts = exact(counts)
    total, size = float(counts.sum()), len(counts)
    shares = counts[counts > 0] / max(total, 1.0)
    entropy = float(-(shares * shares.log()).sum()) if len(shares) else 0.0
    return {"usage": len(shares) / size, "perplexity": math.exp(entropy) if total else 0.0,
            "perplexity_share": math.exp(entropy) / size if total else 0.0,
            "entropy_bits": max(0.0, entropy / math.log(2)), "dead": size - len(shares),
            "top_share": float(shares.max()) if len(shares) else 0.0}


def extremes(counts: Tensor, count: int) -> tuple[list[int], list[int]]:
    """The commonest codes, the first first, and the rarest of the others that are used at all, the rarest
    last."""
    order = torch.sort(counts, descending=True, stable=True).indices
    used = order[counts[order] > 0].tolist()
    return used[:count], used[count:][-count:]


def ranking(counts: Tensor):
    """The codes from the commonest to the rarest: a DataFrame rank (from 1), code, count, share."""
    import pandas as pd

    order = torch.sort(counts, descending=True, stable=True).indices
    count = counts[order].numpy()
    return pd.DataFrame({"rank": np.arange(1, len(counts) + 1), "code": order.numpy(), "count": count,
                         "share": count / max(1, int(counts.sum()))})


def occurrence(indices: Tensor, codes: Sequence[int]) -> Tensor:
    """Share of the maps (N,h,w) that have a code at each position: (len(codes),h,w) float32."""
    found = torch.zeros(len(codes), *indices.shape[1:], dtype=torch.int64)
    for part in indices.split(AT_ONCE):
        found += torch.stack([(part == code).sum(0) for code in codes])
    return found.float() / len(indices)


# ---------------------------------------------------------------- what stands beside what


@dataclass
class Neighbours:
    """Pairs of codes side by side in one direction.

    pairs: DataFrame first, second, count, expected (were codes placed at random), pmi in bits; the pairs that
    say most come first. mutual_information: bits that a code tells about its neighbour, less what chance
    alone would show (Miller and Madow's correction of the three entropies). same: share of the neighbours
    that are the same code.
    """

    pairs: object
    mutual_information: float
    same: float


def neighbours(indices: Tensor, codebook_size: int, direction: str, at_once: int = 1 << 22) -> Neighbours:
    """Which codes lie beside which in maps (N,h,w): direction "right" or "below" (the second of a pair).

    pmi(a,b) = log2 p(a,b) / (p(a) p(b)); pairs come by their part p(a,b) pmi(a,b) of the mutual information,
    so that a pair seen once does not lead. Only pairs that occur are held, and `at_once` positions counted at
    a time: any K.
    """
    import pandas as pd

    keys, counts = _count_pairs(*_side_by_side(indices, direction), codebook_size, at_once)
    total = counts.sum()
    if not total:
        return Neighbours(pd.DataFrame(columns=["first", "second", "count", "expected", "pmi"]), 0.0, 0.0)
    a, b = np.divmod(keys, codebook_size)
    of_a, of_b = (np.bincount(each, weights=counts, minlength=codebook_size) for each in (a, b))
    expected = of_a[a] * of_b[b] / total
    pmi = np.log2(counts / expected)
    part = counts / total * pmi
    bias = (len(keys) - (of_a > 0).sum() - (of_b > 0).sum() + 1) / (2 * total * np.log(2))
    table = pd.DataFrame({"first": a, "second": b, "count": counts, "expected": expected, "pmi": pmi})
    order = np.argsort(-part, kind="stable")
    return Neighbours(table.iloc[order].reset_index(drop=True), max(0.0, float(part.sum() - bias)),
                      float(counts[a == b].sum() / total))


def pmi_matrix(found: Neighbours, codes: Sequence[int]) -> np.ndarray:
    """pmi of some codes with each other, (len(codes),len(codes)) bits: rows first; NaN: never side by
    side."""
    places = {code: place for place, code in enumerate(codes)}
    matrix = np.full((len(places), len(places)), np.nan)
    table = found.pairs[found.pairs["first"].isin(places) & found.pairs["second"].isin(places)]
    matrix[table["first"].map(places), table["second"].map(places)] = table["pmi"]
    return matrix


def telling_pairs(found: Neighbours, count: int) -> list[tuple[int, int]]:
    """The pairs of two different codes that say most, of those that meet more often than by chance."""
    table = found.pairs
    table = table[(table["first"] != table["second"]) & (table["pmi"] > 0)].head(count)
    return list(zip(table["first"].tolist(), table["second"].tolist()))


def find_pairs(indices: Tensor, pairs: Sequence[tuple[int, int]], direction: str, count: int) -> Tensor:
    """Where pairs of codes stand side by side in maps (N,h,w), in pictures as different as there are.

    -> (len(pairs),count,3) int64: picture, row, column of the first code; -1 where there are fewer places.
    """
    found = torch.full((len(pairs), count, 3), -1, dtype=torch.int64)
    for number, (a, b) in enumerate(pairs):
        firsts, others = [], []  # of their pictures, and those that come after
        for begin in range(0, len(indices), AT_ONCE):
            first, second = _side_by_side(indices[begin:begin + AT_ONCE], direction)
            places = ((first == a) & (second == b)).nonzero()  # (P,3), picture after picture
            fresh = torch.ones(len(places), dtype=torch.bool)
            fresh[1:] = places[1:, 0] != places[:-1, 0]
            places[:, 0] += begin
            firsts.append(places[fresh])
            others.append(places[~fresh][:count])
            if sum(map(len, firsts)) >= count:
                break
        places = torch.cat([*firsts, *others])[:count]
        found[number, :len(places)] = places
    return found


def _side_by_side(indices: Tensor, direction: str) -> tuple[Tensor, Tensor]:
    """All codes with their neighbours to the "right" or "below"."""
    if direction == "right":
        return indices[:, :, :-1], indices[:, :, 1:]
    return indices[:, :-1], indices[:, 1:]


def _count_pairs(first: Tensor, second: Tensor, size: int, at_once: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pair that occurs as first * K + second, sorted, and how often."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    rows = max(1, at_once // max(1, first[0].numel())) if len(first) else 1
    for a, b in zip(first.split(rows), second.split(rows)):
        new, new_counts = torch.unique(a.long() * size + b.long(), return_counts=True)
        together = np.concatenate([keys, new.numpy()])
        keys, places = np.unique(together, return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, new_counts.numpy()]),
                             minlength=len(keys)).astype(np.int64)
    return keys, counts


# ---------------------------------------------------------------- the vectors


def principal_components(codebook: Tensor, count: int = 2) -> tuple[np.ndarray, float]:
    """Codes (K,n_z) along their axes of greatest spread: (K,count), and the share of the variance in these.

    By SVD; an axis's sign is set so that its largest entry is positive. Axes beyond n_z are 0.
    """
    centred = codebook.detach().cpu().double().numpy()
    centred = centred - centred.mean(0)
    _, spreads, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    points = centred @ axes.T  # (K,<=count)
    share = np.square(spreads[:count]).sum() / max(np.square(spreads).sum(), np.finfo(float).tiny)
    return np.pad(points, ((0, 0), (0, count - points.shape[1]))), float(share)


def code_colours(codebook: Tensor) -> np.ndarray:
    """A colour for each code, (K,3) uint8, in which near codes look alike.

    The ranks along the three main axes are taken as red, green and blue, so that all of the range is used.
    """
    points, _ = principal_components(codebook, 3)
    ranks = points.argsort(0, kind="stable").argsort(0, kind="stable")
    return (ranks * (235 / max(1, len(points) - 1)) + 10).astype(np.uint8)


def nearest_code_distances(codebook: Tensor, rows: int = 1024) -> Tensor:
    """The distance of each code to the nearest other one, (K,n_z) -> (K,) on the CPU; `rows` codes at a time."""
    codebook = exact(codebook.detach())
    found = []
    for start in range(0, len(codebook), rows):
        part = codebook[start:start + rows]
        distances = torch.cdist(part, codebook, compute_mode="donot_use_mm_for_euclid_dist")  # (rows,K)
        distances[torch.arange(len(part)), torch.arange(start, start + len(part))] = float("inf")
        found.append(distances.min(1).values.cpu())
    return torch.cat(found)


def twins(distances: Tensor, counts: Tensor) -> int:
    """Used codes that lie so near to another one that they hardly differ: below TWINS times the median
    distance."""
    used = distances[counts > 0]
    return int((used < TWINS * used.median()).sum()) if len(used) > 1 else 0
