"""The nearest training pictures of a picture, which show whether it is a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tesserae.models.perceptual import LPIPS

COMPARED_AT = 64  # pixels of the longer side: enough for AlexNet and for copies to show, and vectors stay short
BLOCK = 1 << 26  # elements of the vectors of the bank that are held at once
USUAL = 0.05  # quantile of the held-out pictures' distances below which a sample counts as near

Embed = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [-1,1] -> vectors (B,D)


@dataclass(frozen=True)
class Neighbours:
    """distances (N,k), ascending, and indices (N,k) int64 into the bank."""

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

    Both are batches of images (B,3,H,W) in [-1,1], on the device of `embed`. The bank is iterated once, in blocks of
    BLOCK elements of its vectors, and the queries once for each block, so a bank of more than one block needs queries
    that can be iterated again. With fewer than k pictures in the bank there are fewer neighbours. Raises ValueError
    for an empty bank.
    """
    best, indices, start = None, None, 0
    for block in _blocks(map(embed, bank)):
        found = torch.cat([_to_block(embed, part, block) for part in queries]).cpu()  # (N,M)
        numbers = torch.arange(start, start + len(block)).expand(len(found), -1)
        best = found if best is None else torch.cat([best, found], 1)
        indices = numbers if indices is None else torch.cat([indices, numbers], 1)
        best, order = best.topk(min(k, best.shape[1]), dim=1, largest=False)
        indices, start = indices.gather(1, order), start + len(block)
    if best is None:
        raise ValueError("there are no pictures to find neighbours in")
    return Neighbours(best, indices)


def _to_block(embed: Embed, part: Tensor, block: Tensor) -> Tensor:
    """Squared distances of a batch of queries, as they are or mirrored, to a block of the bank (M,D): (B,M)."""
    lengths = block.square().sum(-1)
    views = (embed(view) for view in (part, part.flip(-1)))
    return torch.stack([vectors.square().sum(-1, keepdim=True) - 2 * vectors @ block.T + lengths for vectors in views]
                       ).amin(0).clamp_min(0)


def _blocks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Batches of vectors, joined to blocks of at most BLOCK elements or of one batch."""
    held: list[Tensor] = []
    for batch in batches:
        if held and sum(part.numel() for part in held) + batch.numel() > BLOCK:
            yield torch.cat(held)
            held = []
        held.append(batch)
    if held:
        yield torch.cat(held)


def code_overlap(maps: Tensor, bank: Tensor, at_once: int = 1 << 26) -> Tensor:
    """The largest fraction of equal codes that a map has with any of the bank: (N,T), (M,T) -> (N,) in [0,1].

    Computed on the maps' device, `at_once` comparisons at a time; the result is on the CPU.
    """
    length = maps.shape[1]
    columns = max(1, min(len(bank), at_once // length))
    rows = max(1, at_once // (length * columns))
    fractions = []
    for part in maps.to(bank.dtype).split(rows):
        best = torch.zeros(len(part), dtype=torch.int64, device=maps.device)
        for others in bank.split(columns):
            best = torch.maximum(best, (part[:, None] == others.to(maps.device)).sum(-1).amax(-1))
        fractions.append(best.cpu() / length)
    return torch.cat(fractions)


def _at_one_size(images: Tensor) -> Tensor:
    scale = COMPARED_AT / max(images.shape[-2:])
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
