"""The nearest training pictures of a picture, so that copying shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tesserae.models.perceptual import LPIPS

COMPARED_AT = 64  # pixels of the longer side: copies show there, AlexNet can read it, vectors stay short
USUAL = 0.05  # a held-out picture as near to training as this share of them counts as suspiciously near

Embed = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [-1,1] -> vectors (B,D)


@dataclass(frozen=True)
class Neighbours:
    """distances (N,k) ascending, and whose they are: indices (N,k) int64 into the bank."""

    distances: Tensor
    indices: Tensor


def lpips_vectors(lpips: LPIPS) -> Embed:
    """Vectors whose squared distance is LPIPS: sqrt(w_lc / positions_l) x_lcij / |x_lij| of all layers."""

    @torch.no_grad()
    def embed(images: Tensor) -> Tensor:
        parts = []
        for x, head in zip(lpips.backbone(_at_one_size(images)), lpips.heads):  # (B,C,h,w), (C,)
            unit = x.float() / (torch.linalg.vector_norm(x.float(), dim=1, keepdim=True) + 1e-10)
            weight = head.float().clamp_min(0).sqrt()[:, None, None] / (x.shape[2] * x.shape[3]) ** 0.5
            parts.append(rearrange(unit * weight, "b c h w -> b (c h w)"))
        return torch.cat(parts, dim=1)

    return embed


def pixel_vectors(images: Tensor) -> Tensor:
    """Vectors whose squared distance is the mean squared difference of pixels in [-1,1]."""
    flat = rearrange(_at_one_size(images), "b c h w -> b (c h w)").float()
    return flat / flat.shape[1] ** 0.5


@torch.no_grad()
def nearest(queries: Iterable[Tensor], bank: Iterable[Tensor], embed: Embed, k: int = 1) -> Neighbours:
    """The k pictures of `bank` nearest to each query, or to its mirror image: squared distances of `embed`.

    Both are batches of images (B,3,H,W) in [-1,1]. The bank is gone through once and never held as a whole;
    the queries' vectors are. With fewer than k pictures in the bank there are fewer neighbours.
    """
    vectors = torch.cat([torch.stack([embed(part), embed(part.flip(-1))], 1) for part in queries])  # (N,2,D)
    lengths = vectors.square().sum(-1)  # (N,2)
    best, place = torch.empty(len(vectors), 0), torch.empty(len(vectors), 0, dtype=torch.int64)
    start = 0
    for part in bank:
        others = embed(part)  # (M,D)
        products = torch.einsum("nvd,md->nvm", vectors, others)
        found = (lengths[..., None] - 2 * products + others.square().sum(-1)).amin(1).clamp_min(0)  # (N,M)
        numbers = torch.arange(start, start + len(part)).expand(len(vectors), -1)
        best, place = torch.cat([best, found.cpu()], 1), torch.cat([place, numbers], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        place, start = place.gather(1, order), start + len(part)
    return Neighbours(best, place)


def copying(samples: Tensor, held_out: Tensor) -> dict[str, float]:
    """Whether samples lie nearer to training pictures than unseen pictures do; distances (N,) and (M,).

    `near_share`: share of samples nearer to a training picture than all but 5 % of the held-out pictures are,
    so 0.05 is what new pictures would have. `distance` and `distance_held_out`: the medians.
    """
    near = torch.quantile(held_out.float(), USUAL)
    return {"near_share": float((samples < near).float().mean()), "distance": float(samples.median()),
            "distance_held_out": float(held_out.median())}


def code_overlap(maps: Tensor, bank: Tensor, at_once: int = 1 << 26) -> Tensor:
    """The largest share of equal codes that a map has with any of the bank: (N,T), (M,T) -> (N,) in [0,1]."""
    rows = max(1, at_once // bank.numel())
    shares = [(part[:, None] == bank).float().mean(-1).amax(-1) for part in maps.to(bank.dtype).split(rows)]
    return torch.cat(shares)


def _at_one_size(images: Tensor) -> Tensor:
    scale = COMPARED_AT / max(images.shape[-2:])
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
