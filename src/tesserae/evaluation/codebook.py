"""How a codebook is used: how many codes, how evenly, where, in which pairs, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tesserae.evaluation.distributions import exact

MAPS_AT_ONCE = 1 << 14  # maps that are counted together, so that memory does not grow with the set
DOUBLE = 0.05  # a code is a double where its distance to the nearest other one, over the median distance, is less


def usage_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code was chosen: indices of any shape -> (K,) int64."""
    counts = torch.zeros(codebook_size, dtype=torch.int64)
    for part in torch.atleast_1d(indices).split(MAPS_AT_ONCE):
        counts += torch.bincount(part.flatten().long(), minlength=codebook_size)
    return counts


def usage_statistics(counts: Tensor) -> dict[str, float]:
    """Numbers for how evenly K codes are used, from counts (K,).

    usage: fraction of codes ever chosen; perplexity: exp of the entropy, in [1, K]; perplexity_share: that over K;
    entropy_bits: bits a code; dead: codes never chosen; top_share: fraction of the positions that the commonest has.
    All of them but `dead` are 0 where nothing was counted.
    """
    counts = exact(counts)
    total, size = float(counts.sum()), len(counts)
    fractions = counts[counts > 0] / max(total, 1.0)
    entropy = float(-(fractions * fractions.log()).sum()) if len(fractions) else 0.0
    return {"usage": len(fractions) / size, "perplexity": math.exp(entropy) if total else 0.0,
            "perplexity_share": math.exp(entropy) / size if total else 0.0,
            "entropy_bits": max(0.0, entropy / math.log(2)), "dead": size - len(fractions),
            "top_share": float(fractions.max()) if len(fractions) else 0.0}


def common_and_rare(counts: Tensor, count: int) -> tuple[list[int], list[int]]:
    """The commonest codes, by falling count, and the rarest of the other used codes, the rarest last."""
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
    """Fraction of the maps (N,h,w) that have a code at each position: (len(codes),h,w) float32."""
    found = torch.zeros(len(codes), *indices.shape[1:], dtype=torch.int64)
    for part in indices.split(MAPS_AT_ONCE):
        found += torch.stack([(part == code).sum(0) for code in codes])
    return found.float() / len(indices)


# ---- codes side by side -------------------------------------------------------------------------------------


@dataclass
class CodePairs:
    """Pairs of codes side by side in one direction.

    pairs: DataFrame first, second, count, expected (were codes placed at random), pmi in bits; the most
    informative pairs come first. mutual_information: bits that a code tells about its neighbour, with Miller and
    Madow's correction of the three entropies for the size of the sample. same: fraction of the neighbours that are
    the same code.
    """

    pairs: object
    mutual_information: float
    same: float


def code_pairs(indices: Tensor, codebook_size: int, direction: str, at_once: int = 1 << 22) -> CodePairs:
    """Which codes are side by side in maps (N,h,w): direction "right" or "below" (the second of a pair).

    pmi(a,b) = log2 p(a,b) / (p(a) p(b)); pairs come by their part p(a,b) pmi(a,b) of the mutual information,
    so that a pair that occurs once does not lead. Memory holds the pairs that occur, and `at_once` positions are
    counted at a time, so K may be large.
    """
    import pandas as pd

    keys, counts = _count_pairs(*_side_by_side(indices, direction), codebook_size, at_once)
    total = counts.sum()
    if not total:
        return CodePairs(pd.DataFrame(columns=["first", "second", "count", "expected", "pmi"]), 0.0, 0.0)
    a, b = np.divmod(keys, codebook_size)
    of_a, of_b = (np.bincount(each, weights=counts, minlength=codebook_size) for each in (a, b))
    expected = of_a[a] * of_b[b] / total
    pmi = np.log2(counts / expected)
    part = counts / total * pmi
    bias = (len(keys) - (of_a > 0).sum() - (of_b > 0).sum() + 1) / (2 * total * np.log(2))
    table = pd.DataFrame({"first": a, "second": b, "count": counts, "expected": expected, "pmi": pmi})
    order = np.argsort(-part, kind="stable")
    return CodePairs(table.iloc[order].reset_index(drop=True), max(0.0, float(part.sum() - bias)),
                      float(counts[a == b].sum() / total))


def pmi_matrix(found: CodePairs, codes: Sequence[int]) -> np.ndarray:
    """pmi of some codes with each other, (len(codes),len(codes)) bits: rows first; NaN: never side by
    side."""
    positions = {code: number for number, code in enumerate(codes)}
    matrix = np.full((len(positions), len(positions)), np.nan)
    table = found.pairs[found.pairs["first"].isin(positions) & found.pairs["second"].isin(positions)]
    matrix[table["first"].map(positions), table["second"].map(positions)] = table["pmi"]
    return matrix


def informative_pairs(found: CodePairs, count: int) -> list[tuple[int, int]]:
    """The most informative pairs of two different codes, of those that meet more often than by chance."""
    table = found.pairs
    table = table[(table["first"] != table["second"]) & (table["pmi"] > 0)].head(count)
    return list(zip(table["first"].tolist(), table["second"].tolist()))


def find_pairs(indices: Tensor, pairs: Sequence[tuple[int, int]], direction: str, count: int) -> Tensor:
    """Where pairs of codes are side by side in maps (N,h,w), in as many different pictures as possible.

    -> (len(pairs),count,3) int64: picture, row, column of the first code; -1 where there are fewer positions.
    """
    found = torch.full((len(pairs), count, 3), -1, dtype=torch.int64)
    for number, (a, b) in enumerate(pairs):
        firsts, others = [], []  # of their pictures, and those that come after
        for begin in range(0, len(indices), MAPS_AT_ONCE):
            first, second = _side_by_side(indices[begin:begin + MAPS_AT_ONCE], direction)
            positions = ((first == a) & (second == b)).nonzero()  # (P,3), picture after picture
            fresh = torch.ones(len(positions), dtype=torch.bool)
            fresh[1:] = positions[1:, 0] != positions[:-1, 0]
            positions[:, 0] += begin
            firsts.append(positions[fresh])
            others.append(positions[~fresh][:count])
            if sum(map(len, firsts)) >= count:
                break
        positions = torch.cat([*firsts, *others])[:count]
        found[number, :len(positions)] = positions
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
        keys, positions = np.unique(together, return_inverse=True)
        counts = np.bincount(positions, weights=np.concatenate([counts, new_counts.numpy()]),
                             minlength=len(keys)).astype(np.int64)
    return keys, counts


# ---- the vectors -------------------------------------------------------------------------------------------


def principal_components(codebook: Tensor, count: int = 2) -> tuple[np.ndarray, float]:
    """Principal components of codes (K,n_z): (K,count), and the fraction of the variance in these.

    By SVD; an axis's sign is set so that its largest entry is positive. Axes beyond n_z are 0.
    """
    centred = codebook.detach().cpu().double().numpy()
    centred = centred - centred.mean(0)
    _, singular_values, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    points = centred @ axes.T  # (K,<=count)
    variances = np.square(singular_values)
    explained = variances[:count].sum() / max(variances.sum(), np.finfo(float).tiny)
    return np.pad(points, ((0, 0), (0, count - points.shape[1]))), float(explained)


def code_colours(codebook: Tensor) -> np.ndarray:
    """A colour for each code, (K,3) uint8, similar for similar codes.

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


def doubles(distances: Tensor, counts: Tensor) -> int:
    """How many used codes hardly differ from another one: nearer than DOUBLE times the median distance."""
    used = distances[counts > 0]
    return int((used < DOUBLE * used.median()).sum()) if len(used) > 1 else 0
