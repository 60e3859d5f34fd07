"""Vector quantizers: the paper's nearest neighbour, and others from `vector-quantize-pytorch` beside it.

Each maps z_hat (B,n_z,h,w) to a `Quantized`, turns indices back into vectors by `lookup`, and shows its
`codebook` (K,n_z).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tesserae.errors import TesseraeError


@dataclass
class Quantized:
    """z_q with the straight-through gradient (B,n_z,h,w), indices (B,h,w) int64, and the two terms of L_VQ."""

    z_q: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


def nearest(vectors: Tensor, codebook: Tensor, memory: int = 1 << 25) -> Tensor:
    """argmin_k ||v_n - z_k|| for vectors (N,d) and codebook (K,d) -> (N) int64.

    |v|^2 is the same for every k, so the search is a matrix product. Rows are taken in chunks whose distances
    hold at most `memory` numbers: any K fits.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        half_norms = codebook.square().sum(1) / 2
        rows = max(1, memory // codebook.shape[0])
        found = [torch.addmm(half_norms, part, codebook.t(), alpha=-1).argmin(1) for part in vectors.split(rows)]
    return torch.cat(found)


class NearestQuantizer(nn.Module):
    """z_q = argmin_k ||z_hat_ij - z_k|| with a codebook learned by its own loss (the paper's equation 2).

    Codes start as encoder outputs (`init="data"`) and, where they go unused for `revive_after` steps, move to
    encoder outputs of the moment: see `start` and `revive`, which training calls.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        uniform = torch.empty(codebook_size, codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.codebook = nn.Parameter(uniform)
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.int64))  # steps since last use

    def forward(self, z_hat: Tensor) -> Quantized:
        height, width = z_hat.shape[2:]
        z_hat = z_hat.to(torch.promote_types(z_hat.dtype, torch.float32))
        vectors = rearrange(z_hat, "b c h w -> (b h w) c")
        found = nearest(vectors.detach(), self.codebook.detach())
        indices = rearrange(found, "(b h w) -> b h w", h=height, w=width)
        z_q = self.lookup(indices)
        codebook_loss = F.mse_loss(z_q, z_hat.detach())
        commitment_loss = F.mse_loss(z_hat, z_q.detach())
        return Quantized(z_hat + (z_q - z_hat).detach(), indices, codebook_loss, commitment_loss)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> (B,n_z,h,w)."""
        return rearrange(F.embedding(indices, self.codebook), "b h w c -> b c h w")

    @torch.no_grad()
    def start(self, z_hat: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Data-dependent initialisation: the centres of a short k-means over z_hat (B,n_z,h,w)."""
        vectors = rearrange(z_hat.float(), "b c h w -> (b h w) c")
        centres = _draw(vectors, len(self.codebook), generator)
        for _ in range(rounds):
            nearest_centre = nearest(vectors, centres)
            counts = torch.bincount(nearest_centre, minlength=len(centres))
            sums = torch.zeros_like(centres).index_add_(0, nearest_centre, vectors)
            means = sums / counts.clamp_min(1)[:, None]
            centres = torch.where(counts[:, None] > 0, means, _draw(vectors, len(centres), generator))
        self.codebook.copy_(centres)

    @torch.no_grad()
    def revive(self, z_hat: Tensor, used: Tensor, after: int, generator: torch.Generator) -> Tensor:
        """Count steps without use; move the codes idle for `after` steps to vectors of z_hat (B,n_z,h,w).

        `used` (K) bool: codes chosen in this step, by any process. Returns the moved codes (K) bool.
        """
        self.idle.add_(1).masked_fill_(used, 0)
        dead = self.idle >= after
        vectors = rearrange(z_hat.float(), "b c h w -> (b h w) c")
        # always drawn, so that no value has to be known here and the generator's use is the same each step
        fresh = _draw(vectors, len(self.codebook), generator)
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.codebook))
        self.idle.masked_fill_(dead, 0)
        return dead


def _draw(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows of `vectors`, without repeats where there are enough."""
    order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
    return vectors[order.repeat(-(-count // len(order)))[:count]]


class GumbelQuantizer(nn.Module):
    """A codebook chosen from by logits, not by distance: the reference's Gumbel models are made of it.

    One-hot choices, by argmax when evaluated and by Gumbel noise of temperature 1 in training, with the
    gradient of the soft ones. The commitment term is the divergence of the choices from uniform ones.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(codebook_dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, codebook_dim))

    def forward(self, z_hat: Tensor) -> Quantized:
        with torch.autocast(z_hat.device.type, enabled=False):
            logits = self.projection(z_hat.float())  # (B,K,h,w)
            soft = F.softmax(logits, dim=1)
            if self.training:
                chosen = F.gumbel_softmax(logits, dim=1, hard=True)
            else:
                chosen = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1) + soft - soft.detach()
            z_q = torch.einsum("bkhw,kc->bchw", chosen, self.codebook)
        divergence = (soft * torch.log(soft * logits.shape[1] + 1e-10)).sum(1).mean()
        return Quantized(z_q, chosen.argmax(1), z_hat.new_zeros(()), divergence)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> (B,n_z,h,w)."""
        return rearrange(F.embedding(indices, self.codebook), "b h w c -> b c h w")


class LibraryQuantizer(nn.Module):
    """A quantizer of `vector-quantize-pytorch` behind the interface of `NearestQuantizer`.

    ema: codebook by moving averages; simvq: one linear map moves all codes; fsq, lfq: no learned codebook.
    """

    def __init__(self, kind: str, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        import vector_quantize_pytorch as vq

        self.kind = kind
        if kind == "ema":
            self.inner = vq.VectorQuantize(dim=codebook_dim, codebook_size=codebook_size, accept_image_fmap=True,
                                           kmeans_init=True, threshold_ema_dead_code=2, decay=0.9,
                                           commitment_weight=1.0)
        elif kind == "simvq":
            self.inner = vq.SimVQ(dim=codebook_dim, codebook_size=codebook_size, channel_first=True)
        elif kind == "fsq":
            self.inner = vq.FSQ(levels=fsq_levels(codebook_size), dim=codebook_dim)
        elif kind == "lfq":
            self.inner = vq.LFQ(codebook_size=codebook_size, dim=codebook_dim)
        else:
            raise TesseraeError(f"quantizer = {kind!r} is not known: use nearest, ema, simvq, fsq or lfq.")
        self.register_buffer("every", torch.arange(codebook_size), persistent=False)

    def forward(self, z_hat: Tensor) -> Quantized:
        with torch.autocast(z_hat.device.type, enabled=False):
            z_hat = z_hat.float()
            out = self.inner(z_hat)
        z_q, indices = out[0], out[1]
        extra = out[2].sum() if len(out) > 2 else z_hat.new_zeros(())  # each library loss is a commitment term
        return Quantized(z_q, indices.long(), z_hat.new_zeros(()), extra)

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> (B,n_z,h,w)."""
        if self.kind in ("fsq", "lfq"):
            return self.inner.indices_to_codes(indices)
        return rearrange(F.embedding(indices, self.codebook), "b h w c -> b c h w")

    @property
    def codebook(self) -> Tensor:
        """(K,n_z)."""
        if self.kind in ("ema", "simvq"):
            return self.inner.codebook
        return rearrange(self.lookup(rearrange(self.every, "k -> k 1 1")), "k c 1 1 -> k c")


# Levels whose product is K, as Mentzer et al. (arXiv 2309.15505, table 1) or close to them.
_FSQ = {8: [2, 2, 2], 16: [4, 4], 32: [8, 4], 64: [8, 8], 128: [8, 4, 4], 256: [8, 8, 4], 512: [8, 8, 8],
        1024: [8, 8, 4, 4], 2048: [8, 8, 8, 4], 4096: [8, 8, 8, 8], 8192: [8, 8, 8, 4, 4],
        16384: [8, 8, 8, 8, 4], 32768: [8, 8, 8, 8, 8], 65536: [8, 8, 8, 8, 4, 4]}


def fsq_levels(codebook_size: int) -> list[int]:
    """Levels a dimension for a codebook of K entries. Raises TesseraeError where there are none."""
    if codebook_size not in _FSQ:
        raise TesseraeError(f"codebook_size = {codebook_size} does not go with quantizer fsq: "
                            f"use one of {', '.join(map(str, _FSQ))}.")
    return _FSQ[codebook_size]


def make_quantizer(kind: str, codebook_size: int, codebook_dim: int) -> nn.Module:
    """The quantizer of that name. Raises TesseraeError where the name or the size does not go with it."""
    if kind == "nearest":
        return NearestQuantizer(codebook_size, codebook_dim)
    if kind == "gumbel":
        return GumbelQuantizer(codebook_size, codebook_dim)
    if kind == "lfq" and codebook_size & (codebook_size - 1):
        raise TesseraeError(f"codebook_size = {codebook_size} does not go with quantizer lfq: use a power of two.")
    return LibraryQuantizer(kind, codebook_size, codebook_dim)
