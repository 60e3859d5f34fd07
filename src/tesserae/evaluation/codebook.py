"""How a codebook is used: how many of its codes, how evenly, where, next to which, and what they stand
for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.pictures import Pictures
from tesserae.models.vqgan import VQGAN

_FAR = 1e6  # added to the distance of positions that have another code, so that they come last
TWINS = 0.05  # distance to the nearest other code, over the median of these: closer ones are doubles


@torch.no_grad()
def encode_set(model: VQGAN, pictures: Pictures, batch_size: int, mirrored: bool = True,
               progress: Callable[[int, int], None] | None = None) -> Tensor:
    """All pictures as code maps: (N,V,h,w) int32; V = 2, as they are and mirrored, or V = 1.

    Pictures are read batch by batch. progress(done, total) counts pictures.
    """
    device, f = next(model.parameters()).device, model.config.downsampling
    views = 2 if mirrored else 1
    found = torch.empty(len(pictures), views, pictures.size // f, pictures.size // f, dtype=torch.int32)
    for start in range(0, len(pictures), batch_size):
        chosen = range(start, min(start + batch_size, len(pictures)))
        images = to_unit(pictures.batch(chosen).to(device))  # (B,3,H,W)
        for view in range(views):
            found[chosen.start:chosen.stop, view] = model.encode(images.flip(-1) if view else images).cpu()
        if progress:
            progress(chosen.stop, len(pictures))
    return found


def usage_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each code was chosen: indices of any shape -> (K,) int64."""
    return torch.bincount(indices.flatten().long(), minlength=codebook_size)


def usage_statistics(counts: Tensor) -> dict[str, float]:
    """Numbers for how K codes share the positions, from counts (K,).

    usage: share of codes ever chosen; perplexity: exp of the entropy, in [1, K]; perplexity_share: that over
    K; entropy_bits: bits a code; dead: codes never chosen; top_share: share of the commonest. All of them but
    `dead` are 0 where nothing was counted.
    """
    counts = counts.double()
    total, size = float(counts.sum()), len(counts)
    shares = counts[counts > 0] / max(total, 1.0)
    entropy = float(-(shares * shares.log()).sum()) if len(shares) else 0.0
    return {"usage": len(shares) / size, "perplexity": math.exp(entropy) if total else 0.0,
            "perplexity_share": math.exp(entropy) / size if total else 0.0,
            "entropy_bits": max(0.0, entropy / math.log(2)), "dead": size - len(shares),
            "top_share": float(shares.max()) if len(shares) else 0.0}


def ranking(counts: Tensor):
    """The codes from the commonest to the rarest: a DataFrame rank (from 1), code, count, share."""
    import pandas as pd

    order = torch.sort(counts, descending=True, stable=True).indices
    count = counts[order].numpy()
    return pd.DataFrame({"rank": np.arange(1, len(counts) + 1), "code": order.numpy(), "count": count,
                         "share": count / max(1, int(counts.sum()))})


def occurrence(indices: Tensor, codes: Sequence[int]) -> Tensor:
    """Share of the maps (N,h,w) that have a code at each position: (len(codes),h,w) float32."""
    return torch.stack([(indices == code).float().mean(0) for code in codes])


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

    if direction == "right":
        first, second = indices[:, :, :-1], indices[:, :, 1:]
    else:
        first, second = indices[:, :-1], indices[:, 1:]
    keys, counts = _count_pairs(first, second, codebook_size, at_once)
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


# ---------------------------------------------------------------- what a code stands for


@dataclass
class Patches:
    """The positions that a code fits best, at most one a picture: (codes, count) each.

    picture, row, column: where; chosen: whether the position is really given that code. Positions that are
    come first, then the nearest others; within both by the distance ||z_hat - z_k||.
    """

    picture: Tensor
    row: Tensor
    column: Tensor
    distance: Tensor
    chosen: Tensor


@torch.no_grad()
def nearest_patches(model: VQGAN, pictures: Pictures, indices: Tensor, codes: Sequence[int], count: int,
                    batch_size: int) -> Patches:
    """Where real pictures look most like a code, for each of `codes`.

    indices: the maps (N,h,w) of the same pictures. Memory holds one batch and the best so far.
    """
    device, width = next(model.parameters()).device, indices.shape[-1]
    wanted = torch.as_tensor(list(codes), device=device)
    vectors = model.codebook[wanted].float()  # (C,n_z)
    best: dict[str, Tensor] = {}
    for start in range(0, len(pictures), batch_size):
        chosen = range(start, min(start + batch_size, len(pictures)))
        z_hat = rearrange(model.latents(to_unit(pictures.batch(chosen).to(device))), "b c h w -> b (h w) c")
        distances = torch.cdist(vectors, z_hat.float())  # (B,C,hw)
        maps = rearrange(indices[chosen.start:chosen.stop].to(device), "b h w -> b 1 (h w)")
        others = maps != wanted[:, None]  # (B,C,hw)
        order, place = (distances.double() + others * _FAR).min(-1)  # (B,C)
        distance = distances.gather(-1, place[..., None])[..., 0]
        picture = torch.tensor(chosen, device=device)[:, None].expand_as(place)
        part = {"order": order.T, "place": place.T, "distance": distance.T, "picture": picture.T}  # (C,B)
        best = {name: torch.cat([best[name], value], 1) if best else value for name, value in part.items()}
        keep = best["order"].sort(dim=1, stable=True).indices[:, :count]
        best = {name: value.gather(1, keep) for name, value in best.items()}
    best = {name: value.cpu() for name, value in best.items()}
    return Patches(best["picture"], best["place"] // width, best["place"] % width, best["distance"],
                   best["order"] < _FAR)


def crop_patches(images: Tensor, rows: Tensor, columns: Tensor, factor: int, around: int = 1) -> Tensor:
    """Cut the patch of one code and `around` codes on each side from each picture.

    images (B,C,H,W), rows and columns (B,) of codes, factor f -> (B,C,s,s), s = (2 around + 1) f. What lies
    outside a picture repeats its edge, so the code's own patch is always in the middle.
    """
    reach = around * factor
    padded = torch.nn.functional.pad(images.float(), (reach,) * 4, mode="replicate").to(images.dtype)
    side = factor + 2 * reach
    return torch.stack([picture[:, row * factor:row * factor + side, column * factor:column * factor + side]
                        for picture, row, column in zip(padded, rows.tolist(), columns.tolist())])


@torch.no_grad()
def decode_patches(model: VQGAN, maps: Tensor, edge: int = 1, batch_size: int = 64) -> Tensor:
    """Small made-up maps (B,s,s) decoded, without the `edge` codes next to their borders, which look
    different.

    -> (B,3,t,t) in [-1,1], t = (s - 2 edge) f.
    """
    device, cut = next(model.parameters()).device, edge * model.config.downsampling
    decoded = torch.cat([model.decode(part.to(device)).cpu() for part in maps.split(batch_size)])
    return decoded[:, :, cut:decoded.shape[2] - cut, cut:decoded.shape[3] - cut]


def uniform_maps(codes: Sequence[int], side: int = 5) -> Tensor:
    """Each code alone: (len(codes),side,side) filled with it."""
    return torch.as_tensor(list(codes))[:, None, None].repeat(1, side, side)


def pair_maps(pairs: Sequence[tuple[int, int]], direction: str, side: int = 6) -> Tensor:
    """Each pair as a map (len(pairs),side,side): one half the first code, the other half the second."""
    maps = torch.stack([uniform_maps(pair, side) for pair in pairs], 1)  # (2,B,side,side)
    second = torch.arange(side) >= side // 2
    return torch.where(second if direction == "right" else second[:, None], maps[1], maps[0])


# ---------------------------------------------------------------- the vectors


def principal_components(codebook: Tensor, count: int = 2) -> tuple[np.ndarray, float]:
    """Codes (K,n_z) along their axes of greatest spread: (K,count), and the share of the variance in these.

    By SVD; an axis's sign is set so that its largest entry is positive. Axes beyond n_z are 0.
    """
    centred = codebook.detach().double().cpu().numpy()
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
    """The distance of each code to the nearest other one, (K,n_z) -> (K,); `rows` codes at a time."""
    codebook = codebook.detach().double().cpu()
    found = []
    for start in range(0, len(codebook), rows):
        part = codebook[start:start + rows]
        distances = torch.cdist(part, codebook, compute_mode="donot_use_mm_for_euclid_dist")  # (rows,K)
        distances[torch.arange(len(part)), torch.arange(start, start + len(part))] = float("inf")
        found.append(distances.min(1).values)
    return torch.cat(found)


def twins(distances: Tensor, counts: Tensor) -> int:
    """Used codes that lie so near to another one that they hardly differ: below TWINS times the median
    distance."""
    used = distances[counts > 0]
    return int((used < TWINS * used.median()).sum()) if len(used) > 1 else 0
