"""Vector quantizers: nearest neighbour, as the paper, moving averages, Gumbel, and `vector-quantize-pytorch`'s.

Each maps z_hat (B,n_z,h,w) to a `Quantized`, turns indices back into vectors by `lookup`, and shows its
`codebook` (K,n_z). A forward pass changes nothing: what follows the codes is done by `start`, `update`, `revive`
and `temperature`, which training calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tesserae.codebook_params import entries, fsq_levels
from tesserae.earlier_models import upgrade_ema_state
from tesserae.errors import TesseraeError

DECAY = 0.99  # of the moving averages (VQ-VAE, arXiv 1711.00937, appendix A.1)
LFQ_SHARPNESS = 100.0  # the library's inverse temperature of LFQ's choices
SMOOTHING = 1e-5  # Laplace smoothing of the codes' counts


@dataclass
class Quantized:
    """z_q with a gradient for z_hat (B,n_z,h,w), indices (B,h,w) int64, and the quantizer's losses, scalars.

    The two terms of L_VQ are 0 where a quantizer has none. entropy_loss: LFQ's, of each vector minus of the batch;
    kl_loss: Gumbel's, from the uniform prior; both in nats, None for the others.
    """

    z_q: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor | None = None
    kl_loss: Tensor | None = None


def nearest(vectors: Tensor, codebook: Tensor, memory: int = 1 << 25) -> Tensor:
    """argmin_k ||v_n - z_k|| for vectors (N,d) and codebook (K,d) -> (N) int64.

    |v|^2 is the same for every k, so the search is a matrix product. Rows are taken in chunks whose distances
    hold at most `memory` elements: any K fits.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, codebook = vectors.float(), codebook.float()
        half_norms = codebook.square().sum(1) / 2
        rows = max(1, memory // codebook.shape[0])
        found = [torch.addmm(half_norms, part, codebook.t(), alpha=-1).argmin(1) for part in vectors.split(rows)]
    return torch.cat(found)


def with_gradient(z_hat: Tensor, z_q: Tensor, gradient: str) -> Tensor:
    """z_q, with a gradient for z_hat: (B,n_z,h,w) twice -> (B,n_z,h,w).

    straight_through: the gradient of z_q is copied to z_hat. rotation: it is turned and scaled as z_hat is turned
    and scaled onto z_q (Fifty et al., arXiv 2410.06424, section 4.2).
    """
    if gradient == "straight_through":
        return z_hat + (z_q - z_hat).detach()
    with torch.no_grad():
        norm_e, norm_q = (part.norm(dim=1, keepdim=True).clamp_min(1e-6) for part in (z_hat, z_q))
        e, q = z_hat / norm_e, z_q / norm_q
        between = F.normalize(e + q, dim=1)
        scale = norm_q / norm_e
    along = [(z_hat * axis).sum(1, keepdim=True) for axis in (between, e)]
    turned = scale * (z_hat - 2 * along[0] * between + 2 * along[1] * q)
    return turned + (z_q - turned).detach()  # the value is z_q to the bit


def quantize_to_nearest(z_hat: Tensor, codebook: Tensor, gradient: str) -> Quantized:
    """The nearest codes of z_hat (B,n_z,h,w) in a codebook (K,n_z), with both terms of L_VQ."""
    z_hat = z_hat.to(torch.promote_types(z_hat.dtype, torch.float32))
    found = nearest(rearrange(z_hat.detach(), "b c h w -> (b h w) c"), codebook.detach())
    indices = found.view(z_hat.shape[0], *z_hat.shape[2:])
    z_q = embed(indices, codebook).to(z_hat.dtype)
    return Quantized(with_gradient(z_hat, z_q, gradient), indices, F.mse_loss(z_q, z_hat.detach()),
                     F.mse_loss(z_hat, z_q.detach()))


def embed(indices: Tensor, codebook: Tensor) -> Tensor:
    """The codes of indices: (B,h,w) int64, (K,n_z) -> (B,n_z,h,w)."""
    return rearrange(F.embedding(indices, codebook), "b h w c -> b c h w")


class Quantizer(nn.Module):
    """What has a codebook (K,n_z)."""

    codebook: Tensor

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> (B,n_z,h,w)."""
        return embed(indices, self.codebook)


class _Table(Quantizer):
    """What quantizers share that choose the nearest entry of a table of vectors."""

    def __init__(self, codebook_size: int, gradient: str) -> None:
        super().__init__()
        self.gradient = gradient
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.int64))  # steps since last use

    @torch.no_grad()
    def start(self, z_hat: Tensor, generator: torch.Generator, rounds: int = 10) -> None:
        """Data-dependent initialisation: the centres of a short k-means over z_hat (B,n_z,h,w)."""
        vectors = rearrange(z_hat.float(), "b c h w -> (b h w) c")
        centres = _initial(vectors, len(self.codebook), generator)
        for _ in range(rounds):
            nearest_centre = nearest(vectors, centres)
            counts = torch.bincount(nearest_centre, minlength=len(centres))
            sums = torch.zeros_like(centres).index_add_(0, nearest_centre, vectors)
            means = sums / counts.clamp_min(1)[:, None]
            fresh = _initial(vectors, len(centres), generator)
            centres = torch.where(counts[:, None] > 0, means, fresh)
        self.set_codes(torch.ones_like(self.idle, dtype=torch.bool), centres, vectors_a_code=1.0)

    @torch.no_grad()
    def revive(self, z_hat: Tensor, used: Tensor, after: int, generator: torch.Generator) -> Tensor:
        """Count steps without use; move codes idle for `after` steps to vectors of z_hat (B,n_z,h,w).

        `used` (K) bool: codes chosen in this step, by any process. No two codes move to equal vectors: where more are
        idle than z_hat has distinct ones, the rest stay idle and move in later steps. Returns the moved codes (K)
        bool.
        """
        self.idle.add_(1).masked_fill_(used, 0)
        dead = (self.idle >= after).nonzero().flatten()
        moved = torch.zeros_like(used)
        if len(dead) == 0:
            return moved
        vectors = rearrange(z_hat.float(), "b c h w -> (b h w) c")
        distinct = vectors.unique(dim=0)
        order = torch.randperm(len(distinct), generator=generator)
        count = min(len(dead), len(distinct))
        moved[dead[:count]] = True
        self.set_codes(moved, distinct[order[:count].to(distinct.device)], vectors_a_code=len(vectors) / len(used))
        self.idle.masked_fill_(moved, 0)
        return moved

    def set_codes(self, chosen: Tensor, vectors: Tensor, vectors_a_code: float) -> None:
        """Put the `chosen` codes (K) bool at `vectors` (chosen.sum(),n_z), in the order of their indices.

        vectors_a_code: how many vectors of a step fall to a code on average.
        """
        self.codebook.data[chosen] = vectors.to(self.codebook.dtype)


class NearestQuantizer(_Table):
    """z_q = argmin_k ||z_hat_ij - z_k|| with a codebook learned by its own loss (the paper's equation 2).

    gradient: see `with_gradient`. Codes start as encoder outputs by `start` and, where they go unused, move to
    encoder outputs of the moment by `revive`.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, gradient: str = "straight_through") -> None:
        super().__init__(codebook_size, gradient)
        self.codebook = nn.Parameter(_uniform(codebook_size, codebook_dim))

    def forward(self, z_hat: Tensor) -> Quantized:
        return quantize_to_nearest(z_hat, self.codebook, self.gradient)


class EMAQuantizer(_Table):
    """Nearest codes that are moving averages of the vectors which chose them (arXiv 1711.00937, appendix A.1).

    There is no codebook loss: `update` moves the codes. They start and are revived as `NearestQuantizer`'s are.
    counts (K), sums (K,n_z): moving averages of how many vectors chose each code in a step, and of their sum.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, gradient: str = "straight_through") -> None:
        super().__init__(codebook_size, gradient)
        codes = _uniform(codebook_size, codebook_dim)
        self.register_buffer("codebook", codes)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.register_load_state_dict_pre_hook(upgrade_ema_state)

    def forward(self, z_hat: Tensor) -> Quantized:
        found = quantize_to_nearest(z_hat, self.codebook, self.gradient)
        return replace(found, codebook_loss=torch.zeros_like(found.codebook_loss))

    @torch.no_grad()
    def statistics(self, z_hat: Tensor, indices: Tensor) -> Tensor:
        """Of each code in a step: how many vectors chose it, and their sum; (K,1+n_z), to be summed over processes.

        z_hat (B,n_z,h,w), indices (B,h,w).
        """
        vectors = F.pad(rearrange(z_hat.float(), "b c h w -> (b h w) c"), (1, 0), value=1.0)
        return vectors.new_zeros(len(self.counts), vectors.shape[1]).index_add_(0, indices.flatten(), vectors)

    @torch.no_grad()
    def update(self, statistics: Tensor) -> None:
        """Update the moving averages by a step's `statistics` of all processes, and the codes with them."""
        self.counts.lerp_(statistics[:, 0].to(self.counts.dtype), 1 - DECAY)
        self.sums.lerp_(statistics[:, 1:].to(self.sums.dtype), 1 - DECAY)
        total = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (total + len(self.counts) * SMOOTHING) * total
        self.codebook.copy_(self.sums / smooth[:, None])

    def set_codes(self, chosen: Tensor, vectors: Tensor, vectors_a_code: float) -> None:
        """As `NearestQuantizer`'s; a code that was set counts as one of average use, so that it moves on."""
        super().set_codes(chosen, vectors, vectors_a_code)
        self.counts[chosen] = vectors_a_code
        self.sums[chosen] = (vectors * vectors_a_code).to(self.sums.dtype)


def _uniform(codebook_size: int, codebook_dim: int) -> Tensor:
    return torch.empty(codebook_size, codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size)


def _initial(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different rows: distinct `vectors` (N,d) at random, and where there are too few, some beside them."""
    distinct = vectors.unique(dim=0)
    order = torch.randperm(len(distinct), generator=generator)
    rows = distinct[order.repeat(-(-count // len(order)))[:count].to(vectors.device)]
    beyond = max(0, count - len(distinct))
    if beyond:
        spread = vectors.std(0, correction=0).mean().clamp_min(1e-3)
        noise = torch.randn(beyond, vectors.shape[1], generator=generator).to(vectors.device)
        rows[-beyond:] += 0.1 * spread * noise
    return rows


class GumbelQuantizer(Quantizer):
    """A codebook chosen from by logits, not by distance (Jang et al., arXiv 1611.01144), as the authors' f=8 model.

    One-hot choices: by argmax when evaluated, and in training by Gumbel noise of `temperature`, with the gradient
    of the soft choices. kl_loss is the divergence of the choices from uniform ones.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(codebook_dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, codebook_dim))
        self.temperature = 1.0

    def forward(self, z_hat: Tensor) -> Quantized:
        with torch.autocast(z_hat.device.type, enabled=False):
            z_hat = z_hat.to(torch.promote_types(z_hat.dtype, torch.float32))
            weight, bias = (part.to(z_hat.dtype) for part in (self.projection.weight, self.projection.bias))
            logits = F.conv2d(z_hat, weight, bias)  # (B,K,h,w)
            soft = F.softmax(logits, dim=1)
            if self.training:
                chosen = F.gumbel_softmax(logits, tau=self.temperature, dim=1, hard=True)
            else:
                hard = F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).to(soft.dtype)
                chosen = hard + soft - soft.detach()
            z_q = torch.einsum("bkhw,kc->bchw", chosen, self.codebook.to(z_hat.dtype))
            divergence = (soft * (F.log_softmax(logits, dim=1) + math.log(logits.shape[1]))).sum(1).mean()
        none = z_hat.new_zeros(())
        return Quantized(z_q, chosen.argmax(1), none, none, kl_loss=divergence)


class LibraryQuantizer(Quantizer):
    """A quantizer of `vector-quantize-pytorch` behind the interface of `NearestQuantizer`.

    simvq: one linear map moves all codes; fsq, lfq: no learned codebook. Their losses come out unweighted. mean: what
    averages a tensor over the processes that learn together, gradients passing; training with several sets it.
    """

    def __init__(self, kind: str, codebook_size: int, codebook_dim: int, gradient: str = "straight_through",
                 levels: Sequence[int] = ()) -> None:
        super().__init__()
        import vector_quantize_pytorch as vq

        self.kind, self.gradient = kind, gradient
        if kind == "simvq":
            self.inner = vq.SimVQ(dim=codebook_dim, codebook_size=codebook_size, channel_first=True)
        elif kind == "fsq":
            self.inner = vq.FSQ(levels=list(levels or fsq_levels(codebook_size)), dim=codebook_dim)
        elif kind == "lfq":
            self.inner = vq.LFQ(codebook_size=codebook_size, dim=codebook_dim, entropy_loss_weight=1.0,
                                commitment_loss_weight=1.0)
        else:
            raise TesseraeError(f"quantizer = {kind!r} is not known: use nearest, ema, simvq, fsq, lfq or gumbel.")
        self.register_buffer("every", torch.arange(codebook_size), persistent=False)
        self.mean: Callable[[Tensor], Tensor] | None = None

    def forward(self, z_hat: Tensor) -> Quantized:
        with torch.autocast(z_hat.device.type, enabled=False):
            weights = [part.dtype for part in self.inner.parameters()]
            z_hat = z_hat.to(weights[0] if weights else torch.promote_types(z_hat.dtype, torch.float32))
            none = z_hat.new_zeros(())
            if self.kind == "simvq":  # the library's own forward adds up the two terms, and has no chunks
                return quantize_to_nearest(z_hat, self.codebook, self.gradient)
            if self.kind == "fsq":
                z_q, indices = self.inner(z_hat)
                return Quantized(z_q, indices.long(), none, none)
            (z_q, indices, _), parts = self.inner(z_hat, return_loss_breakdown=True)
            batch = self._batch_entropy(z_hat) if self.mean and self.training else parts.batch_entropy
            return Quantized(z_q, indices.long(), none, parts.commitment, parts.per_sample_entropy - batch)

    def _batch_entropy(self, z_hat: Tensor) -> Tensor:
        """The entropy of LFQ's mean choice over the batch of all processes, as the library has it for one.

        Of several, it divides each one's own choices by their number without having added them up.
        """
        vectors = self.inner.project_in(rearrange(z_hat, "b c h w -> (b h w) c"))
        choices = (2 * LFQ_SHARPNESS * vectors @ self.inner.codebook.t()).softmax(-1)  # (N,K)
        mean = self.mean(choices.mean(0))
        return -(mean * mean.clamp_min(1e-5).log()).sum()

    def lookup(self, indices: Tensor) -> Tensor:
        """(B,h,w) int64 -> (B,n_z,h,w)."""
        if self.kind == "lfq":
            return self.inner.indices_to_codes(indices)
        if self.kind == "fsq":  # its own `indices_to_codes` is for float32 alone
            codes = self.inner.project_out(self.inner.implicit_codebook[indices])
            return rearrange(codes, "b h w c -> b c h w")
        return super().lookup(indices)

    @property
    def codebook(self) -> Tensor:
        if self.kind == "simvq":
            return self.inner.codebook
        return rearrange(self.lookup(rearrange(self.every, "k -> k 1 1")), "k c 1 1 -> k c")


def make_quantizer(kind: str, codebook_size: int, codebook_dim: int, gradient: str = "straight_through",
                   levels: Sequence[int] = ()) -> nn.Module:
    """The quantizer of that name with `codebook_size` entries.

    gradient: straight_through, or rotation for nearest, ema and simvq. levels: of FSQ, where they are not those of
    its K. Raises TesseraeError where the name, the size or the gradient does not go with it.
    """
    size = math.prod(levels) if levels else entries(kind, codebook_size)
    if gradient not in ("straight_through", "rotation") or (
            gradient == "rotation" and kind not in ("nearest", "ema", "simvq")):
        raise TesseraeError(f"gradient = {gradient!r} does not go with quantizer {kind}: use straight_through.")
    if kind == "nearest":
        return NearestQuantizer(size, codebook_dim, gradient)
    if kind == "ema":
        return EMAQuantizer(size, codebook_dim, gradient)
    if kind == "gumbel":
        return GumbelQuantizer(size, codebook_dim)
    return LibraryQuantizer(kind, size, codebook_dim, gradient, levels)


def codebook_parameters(quantizer: nn.Module) -> list[nn.Parameter]:
    """The parameters that are codes themselves: these alone learn at the codebook's rate, projections do not."""
    return [quantizer.codebook] if isinstance(quantizer, NearestQuantizer | GumbelQuantizer) else []
