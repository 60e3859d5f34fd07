"""Stage 2's network: p(s | c) = prod_i p(s_i | s_<i, c), a GPT-2 over code maps (arXiv 2012.09841, sec. 3.2).

The input is [c_1 .. c_P, s_1 .. s_{T-1}]. The condition c is a prefix of tokens from a vocabulary of its own;
without a condition it is one start token. The output at the last prefix token is p(s_1 | c), and so on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tesserae.errors import TesseraeError
from tesserae.models.cache import Cache, Caches, Mixed
from tesserae.models.packing import PackedLinear
from tesserae.models.saving import load_weights, read_config, save_model

INIT_STD = 0.02
Step = Callable[[Tensor, int, Cache | Caches | Mixed], Tensor]  # (B,C), number of the layer, cache -> (B,C)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a latent transformer; the defaults are the paper's large one on 16x16 codes.

    codebook_size: K. prefix_vocab: values that a prefix token takes (1: the start token alone; else for
    instance the number of classes). prefix_length: P >= 1. max_tokens: the largest h*w. prefix_attention:
    "causal", or "full" for a prefix that attends to all of itself. Kept for those who make prefixes and draw:
    conditions, as `data.conditions.record` gives them; window: (h,w) of a map, () where unknown; order, in which
    the codes come. version: of the meaning of all these, for models on disk.
    """

    codebook_size: int = 1024
    prefix_vocab: int = 1
    prefix_length: int = 1
    max_tokens: int = 256
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    dropout: float = 0.0
    prefix_attention: str = "causal"
    conditions: tuple[dict, ...] = ()
    window: tuple[int, ...] = ()
    order: str = "row"
    version: int = 2

    @classmethod
    def upgraded(cls, values: Mapping) -> dict:
        """What an older version saved, as this one means it: three orders had other rules then."""
        values = dict(values)
        if "version" not in values and values.get("order") in ("subsample", "spiral_in", "spiral_out"):
            values["order"] = f"old_{values['order']}"
        return values

    @property
    def block_size(self) -> int:
        """Positions the network sees: the prefix and all codes but the last, which nothing follows."""
        return self.prefix_length + self.max_tokens - 1


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position i looks at positions <= i, and a `full` prefix at all of itself.

    Dropout is not on its weights, which would double its time on a CPU, but on what it adds to the stream.
    """

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.heads = c.n_head
        self.full = c.prefix_length if c.prefix_attention == "full" else 1  # positions that see each other
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.proj = nn.Linear(c.n_embd, c.n_embd)

    def forward(self, x: Tensor, layer: int, cache: Cache | Caches | None, last: int) -> Tensor:
        """(B,t,C) -> (B,last,C)."""
        q, k, v = self._heads_of(x, last)
        y = self._look(q, k, v, None) if cache is None else cache.attended(layer, q, k, v, self._look)
        return self.proj(rearrange(y, "b h t d -> b t (h d)"))

    def stepping(self) -> Step:
        """`forward` of one position; rows of x beyond the cache's samples are copies of the last of these."""
        qkv, proj, heads, look = _plain(self.qkv), _plain(self.proj), self.heads, self._look
        if isinstance(self.qkv, PackedLinear):
            narrow, qkv = qkv, lambda x: narrow(x).to(x.dtype)  # keys stay in the stream's precision

        def step(x: Tensor, layer: int, cache: Cache | Caches | Mixed) -> Tensor:
            rows, more = qkv(x).view(x.shape[0], 3, heads, 1, -1), x.shape[0] - cache.batch
            q, k, v = (rows[:-more] if more else rows).unbind(1)  # (B,heads,1,d) each
            y = cache.attended(layer, q, k, v, look).flatten(1)
            return proj(torch.cat([y, y[-1:].expand(more, -1)]) if more else y)

        return step

    def _look(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """Attention of the last positions to all that they may look at; see `Look`."""
        last = q.shape[2]
        if seen is not None:
            mask, whole = seen[:, :, -last:], False
        else:
            whole = last == k.shape[2] and self.full == 1
            mask = None if whole or last == 1 else self._mask(last, k.shape[2], q.device)
        with _kernel_for(q):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=whole)

    def _heads_of(self, x: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the last positions, keys and values of all: (B,heads,last,d), (B,heads,t,d) twice."""
        if last == x.shape[1] or isinstance(self.qkv, PackedLinear):  # which is there as a whole alone
            q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
            return q[:, :, -last:], k, v
        width = x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        queries, others = ((weight[rows], bias[rows]) for rows in (slice(width), slice(width, None)))
        q = rearrange(F.linear(x[:, -last:], *queries), "b t (h d) -> b h t d", h=self.heads)
        return q, *rearrange(F.linear(x, *others), "b t (two h d) -> two b h t d", two=2, h=self.heads)

    def _mask(self, last: int, seen: int, device: torch.device) -> Tensor:
        """Which of the positions `seen` each of the last ones looks at, (last,seen) bool."""
        before = seen - last
        mask = torch.ones(last, seen, dtype=torch.bool, device=device).tril(before)
        mask[:max(0, self.full - before), :self.full] = True
        return mask


def _kernel_for(q: Tensor) -> contextlib.AbstractContextManager:
    """The plain attention for training on a CPU, where the fused one's way back takes thrice the time."""
    plain = q.requires_grad and q.device.type == "cpu"
    return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()


class Block(nn.Module):
    """Pre-LayerNorm: x + attention(norm(x)), then x + MLP(norm(x)); of the last positions only, where it says so."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(c.n_embd), CausalSelfAttention(c)
        self.norm_2 = nn.LayerNorm(c.n_embd)
        self.up, self.down = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, layer: int = 0, cache: Cache | Caches | None = None, last: int = 0) -> Tensor:
        """(B,t,C) -> (B,last,C)."""
        last = last or x.shape[1]
        x = x[:, -last:] + self.dropout(self.attention(self.norm_1(x), layer, cache, last))
        return x + self.dropout(self.down(self._gelu_up(self.norm_2(x))))

    def stepping(self) -> Step:
        """`forward` of one position in drawing, with the weights looked up now: see `LatentTransformer.steady`."""
        attend, norm_1, norm_2 = self.attention.stepping(), _plain(self.norm_1), _plain(self.norm_2)
        up, down = _plain(self.up), _plain(self.down)
        gelu_up = self.up.product("gelu", "none") if isinstance(self.up, PackedLinear) else lambda x: F.gelu(up(x))

        def step(x: Tensor, layer: int, cache: Cache | Caches | Mixed) -> Tensor:
            x = x + attend(norm_1(x), layer, cache)
            return x + down(gelu_up(norm_2(x)))

        return step

    def _gelu_up(self, x: Tensor) -> Tensor:  # (...,C) -> (...,4C)
        return self.up.gelu(x) if isinstance(self.up, PackedLinear) else F.gelu(self.up(x))


def _plain(layer: nn.Linear | PackedLinear | nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """What the layer does, as a plain operation on the weights that it has now, with results in its own precision."""
    if isinstance(layer, PackedLinear):
        return layer.product()
    weights = {"weight": layer.weight, "bias": layer.bias}
    if isinstance(layer, nn.LayerNorm):
        return partial(torch.layer_norm, normalized_shape=layer.normalized_shape, eps=layer.eps, **weights)
    return partial(F.linear, **weights)


class LatentTransformer(nn.Module):
    """`model(prefix (B,P), indices (B,T)) -> logits (B,T,K)`; logits[:, i] are p(s_i | s_<i, prefix)'s.

    origin: JSON values that say what it was trained on, kept with the model. fingerprint: 32 hex digits for the
    weights and the config that `from_pretrained` read, "" for a network made in memory.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.n_embd % config.n_head:
            raise TesseraeError(f"n_embd = {config.n_embd} must be a multiple of n_head = {config.n_head}.")
        self.config = c = config
        self.origin: dict[str, Any] = {}
        self.fingerprint = ""
        self.prefix_embedding = nn.Embedding(c.prefix_vocab, c.n_embd)
        self.token_embedding = nn.Embedding(c.codebook_size, c.n_embd)
        self.positions = nn.Parameter(torch.empty(c.block_size, c.n_embd))
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd)
        self.head = nn.Linear(c.n_embd, c.codebook_size, bias=False)
        self._steady: tuple[list[Step], Callable[[Tensor], Tensor]] | None = None
        self._init_weights()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.positions.device

    @contextlib.contextmanager
    def steady(self) -> Iterator[None]:
        """Meanwhile weights stay what and where they are, so that steps look them up once.

        To ask modules for them at each step takes as long as the sums of a small network do.
        """
        before, self._steady = self._steady, self._stepping()
        try:
            yield
        finally:
            self._steady = before

    def forward(self, prefix: Tensor, indices: Tensor, last: int = 0) -> Tensor:
        """Logits of every code of whole or partial maps; of each map's last code nothing is looked at.

        prefix (B,P) int64 in [0, prefix_vocab), indices (B,T) int64 in [0, K) with 1 <= T <= max_tokens.
        last: of so many codes at the end alone, (B,last,K); 0: of all. Raises TesseraeError where the shapes do not
        fit the network.
        """
        self._check(prefix, indices.shape[1])
        return self._logits(self._embed(prefix, indices[:, :-1]), last or indices.shape[1])

    def at(self, prefix: Tensor, indices: Tensor, places: Tensor) -> Tensor:
        """Logits of one code of each map, as `forward` gives them: (B,P), (B,T), places (B,) int64 -> (B,K).

        So maps that are known to different lengths go through the network together: codes from a map's place on
        are not looked at.
        """
        self._check(prefix, indices.shape[1])
        x = self._through(self._embed(prefix, indices[:, :-1]))
        rows = torch.arange(len(x), device=x.device)
        return self.head(self.norm(x[rows, places + self.config.prefix_length - 1]))

    def prefill(self, prefix: Tensor, indices: Tensor | None = None, batch: int | None = None,
                room: int | None = None, last: int = 1) -> tuple[Tensor, Cache]:
        """Start decoding: logits (B,K) of the first code after `indices`, and the cache for `step`.

        prefix (B,P) int64; indices (B,n) int64: codes known beforehand, n < max_tokens. A prefix of one row
        is computed once for `batch` samples that share it. room: for how many codes there is, if not for max_tokens.
        last: of so many positions the last layer's sums are made, one of which is enough.
        """
        known = 0 if indices is None else indices.shape[1]
        self._check(prefix, known + 1)
        if known:
            prefix = prefix.expand(indices.shape[0], -1)
        capacity = self.config.prefix_length + (room or self.config.max_tokens) - 1  # nothing follows the last code
        cache = Cache(self.config.n_layer, batch or prefix.shape[0], capacity)
        x = self._embed(prefix, indices if known else prefix.new_empty(prefix.shape[0], 0))
        logits = self._logits(x, last, cache)[:, -1]
        cache.length = x.shape[1]
        return logits.expand(cache.batch, -1), cache

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """The next codes of every sample, (B,) or (B,t) int64 -> logits (B,K) of the one after them.

        Fills the cache. Where t = 1 there may be more rows than samples, copies of the last.
        """
        codes = codes if codes.ndim == 2 else codes[:, None]
        logits = self._step(codes, self.positions[cache.length:cache.length + codes.shape[1]], cache)
        cache.length += codes.shape[1]
        return logits

    def step_each(self, codes: Tensor, caches: Sequence[Cache], last: int = 1) -> Tensor:
        """`step` for samples of several caches, which are filled: codes (B,t) int64 -> logits (B,K).

        There may be more rows than samples, copies of the last. last: see `prefill`.
        """
        known = [cache.length for cache in caches for _ in range(cache.batch)]
        known += known[-1:] * (len(codes) - len(known))
        places = torch.tensor(known, device=codes.device)[:, None] + torch.arange(codes.shape[1], device=codes.device)
        logits = self._step(codes, self.positions[places], Caches(caches), last)
        for cache in caches:
            cache.length += codes.shape[1]
        return logits

    def step_at(self, codes: Tensor, places: Tensor, cache: Cache, reach: int = 0) -> Tensor:
        """`step` for positions places (B,t) on the device, which follow each other in a row: codes (B,t) -> (B,K).

        The same operations wherever the places lie, so that a GPU can record them once; `cache.length` stays.
        Of what the cache holds behind the places nothing is looked at; reach: see `Cache.at`.
        """
        cache.at(places, reach)
        return self._step(codes, self.positions[places], cache)

    def step_beside(self, codes: Tensor, places: Tensor, cache: Cache, reach: int,
                    fresh: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[tuple[Tensor, Cache]]]:
        """`step_at` of one code each, and `prefill` beside it, in the same products.

        fresh: prefixes (n,P) and codes known beforehand (n,m); for each the logits (n,K) of the next code and the
        cache, with no room for more, are returned after the step's logits (B,K).
        """
        cache.at(places, reach)
        sequences = [self._embed(*given) for given in fresh]  # (n,t,C)
        others = [Cache(len(self.blocks), *part.shape[:2]) for part in sequences]
        x = self.token_embedding(codes[:, 0]) + self.positions[places[:, 0]]
        x, mixed = torch.cat([x, *(part.flatten(0, 1) for part in sequences)]), Mixed(cache, others)
        steps, out = self._steady or self._stepping()
        for layer, step in enumerate(steps):
            x = step(x, layer, mixed)
        own, *rest = x.split(mixed.sizes)
        ends = [part.view_as(each)[:, -1] for part, each in zip(rest, sequences)]
        logits, *found = out(torch.cat([own, *ends])).split([len(own), *map(len, ends)])
        for other in others:
            other.length = other.capacity
        return logits, list(zip(found, others))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json into `folder`."""
        save_model(self, self.config, folder, self.origin)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> LatentTransformer:
        """Read what `save_pretrained` wrote. Raises TesseraeError where it is missing or damaged."""
        model = cls(read_config(TransformerConfig, cls.__name__, folder))
        model.fingerprint, model.origin = load_weights(model, folder)
        return model.eval()

    def _embed(self, prefix: Tensor, indices: Tensor) -> Tensor:
        tokens = torch.cat([self.prefix_embedding(prefix), self.token_embedding(indices)], dim=1)  # (B,t,C)
        return self.dropout(tokens + self.positions[:tokens.shape[1]])

    def _step(self, codes: Tensor, positions: Tensor, cache: Cache | Caches, last: int = 1) -> Tensor:
        """Codes (B,t) with what stands for their places, (t,C) or (B,t,C) -> (B,K)."""
        x = self.token_embedding(codes) + positions
        if codes.shape[1] > 1 or self.training:
            return self._logits(x, last, cache)[:, -1]
        x, (steps, out) = x[:, 0], self._steady or self._stepping()
        for layer, step in enumerate(steps):
            x = step(x, layer, cache)
        return out(x)

    def _stepping(self) -> tuple[list[Step], Callable[[Tensor], Tensor]]:
        """What each block does to one position, and what makes logits of it in the end: (B,C) -> (B,K)."""
        norm, head = _plain(self.norm), _plain(self.head)
        return [block.stepping() for block in self.blocks], lambda x: head(norm(x))

    def _logits(self, x: Tensor, last: int, cache: Cache | Caches | None = None) -> Tensor:
        """Embedded positions (B,t,C) -> (B,last,K)."""
        return self.head(self.norm(self._through(x, last, cache)))

    def _through(self, x: Tensor, last: int = 0, cache: Cache | Caches | None = None) -> Tensor:
        """The blocks, (B,t,C) -> (B,last,C), 0: all; the last layer computes no more than these."""
        final = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache, last if layer == final else 0)
        return x

    def _check(self, prefix: Tensor, tokens: int) -> None:
        c = self.config
        if prefix.ndim != 2 or prefix.shape[1] != c.prefix_length:
            raise TesseraeError(f"the prefix has the shape {tuple(prefix.shape)}; this transformer was made "
                                f"for (samples, {c.prefix_length}).")
        if not 1 <= tokens <= c.max_tokens:
            raise TesseraeError(f"{tokens} codes were asked for; this transformer models 1 to "
                                f"{c.max_tokens}: take a smaller map, or train on larger ones.")

    def _init_weights(self) -> None:
        """N(0, 0.02); projections into the residual stream smaller by sqrt(2 layers), as in GPT-2."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions, std=INIT_STD)
        for block in self.blocks:
            for projection in (block.attention.proj, block.down):
                nn.init.normal_(projection.weight, std=INIT_STD / math.sqrt(2 * self.config.n_layer))
