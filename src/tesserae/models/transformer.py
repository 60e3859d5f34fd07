"""Stage 2's network: p(s | c) = prod_i p(s_i | s_<i, c), a GPT-2 over code maps (arXiv 2012.09841, sec. 3.2).

The input is [c_1 .. c_P, s_1 .. s_{T-1}]. The condition c is a prefix of tokens from a vocabulary of its own;
without a condition it is one start token. The output at the last prefix token is p(s_1 | c), and so on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tesserae.errors import TesseraeError
from tesserae.models.kv_cache import KVCache
from tesserae.models.saving import SavedModel

INIT_STD = 0.02


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a latent transformer; the defaults are the paper's large one on 16x16 codes.

    codebook_size: K. prefix_vocab: values that a prefix token takes (1: the start token alone; else for
    instance the number of classes). prefix_length: P >= 1. max_tokens: the largest h*w. prefix_attention:
    "causal", or "full" for a prefix that attends to all of itself. For those who make prefixes and sample:
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

    @property
    def block_size(self) -> int:
        """The longest input: the prefix and all codes but the last, which nothing follows."""
        return self.prefix_length + self.max_tokens - 1


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position i attends to positions <= i, and a `full` prefix to all of itself.

    Dropout is not on its weights, which would double its time on a CPU, but on its output.
    """

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.n_head = c.n_head
        self.full = c.prefix_length if c.prefix_attention == "full" else 1  # positions that attend to each other
        self.qkv = nn.Linear(c.n_embd, 3 * c.n_embd)
        self.proj = nn.Linear(c.n_embd, c.n_embd)

    def forward(self, x: Tensor, layer: int = 0, cache: KVCache | None = None) -> Tensor:
        """(B,t,C) -> (B,t,C); with a cache the t positions follow those that are cached."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.n_head)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        mask = cache.mask if cache is not None else None
        causal = mask is None and q.shape[2] == k.shape[2] and self.full == 1
        if mask is None and not causal and q.shape[2] > 1:
            mask = self._mask(q.shape[2], k.shape[2], q.device)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.proj(rearrange(y, "b h t d -> b t (h d)"))

    def _mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """Which keys each of the last `queries` positions attends to, (queries, keys) bool."""
        cached = keys - queries
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(cached)
        mask[:max(0, self.full - cached), :self.full] = True
        return mask


class Block(nn.Module):
    """Pre-LayerNorm: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(c.n_embd), CausalSelfAttention(c)
        self.norm_2 = nn.LayerNorm(c.n_embd)
        self.up, self.down = nn.Linear(c.n_embd, 4 * c.n_embd), nn.Linear(4 * c.n_embd, c.n_embd)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, layer: int = 0, cache: KVCache | None = None) -> Tensor:
        """(B,t,C) -> (B,t,C)."""
        x = x + self.dropout(self.attention(self.norm_1(x), layer, cache))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


class LatentTransformer(SavedModel):
    """`model(prefix (B,P), indices (B,T)) -> logits (B,T,K)`; logits[:, i] are p(s_i | s_<i, prefix)'s."""

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        if config.n_embd % config.n_head:
            raise TesseraeError(f"n_embd = {config.n_embd} must be a multiple of n_head = {config.n_head}.")
        c = config
        self.prefix_embedding = nn.Embedding(c.prefix_vocab, c.n_embd)
        self.token_embedding = nn.Embedding(c.codebook_size, c.n_embd)
        self.positions = nn.Parameter(torch.empty(c.block_size, c.n_embd))
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layer))
        self.norm = nn.LayerNorm(c.n_embd)
        self.head = nn.Linear(c.n_embd, c.codebook_size, bias=False)
        self._init_weights()

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.positions.device

    def forward(self, prefix: Tensor, indices: Tensor) -> Tensor:
        """Logits (B,T,K) of every code of whole or partial maps, given the codes before it and the prefix.

        prefix (B,P) int64 in [0, prefix_vocab), indices (B,T) int64 in [0, K) with 1 <= T <= max_tokens; the last
        index has no effect. Raises TesseraeError where the shapes do not fit the network.
        """
        self._check(prefix, indices.shape[1])
        x = self._transform(self._embed(prefix, indices[:, :-1]))
        return self._logits(x[:, -indices.shape[1]:])

    def prefill(self, prefix: Tensor, indices: Tensor | None = None,
                max_tokens: int | None = None) -> tuple[Tensor, KVCache]:
        """Begin decoding: logits (B,K) of the code that follows `indices`, and the cache for `step`.

        prefix (B,P) int64; indices (B,n) int64, n < max_tokens: the codes that are known, None for none. max_tokens:
        how many codes the cache is to serve, None: the network's.
        """
        indices = prefix.new_empty(len(prefix), 0) if indices is None else indices
        self._check(prefix, indices.shape[1] + 1)
        capacity = self.config.prefix_length + (max_tokens or self.config.max_tokens) - 1
        cache = KVCache(self.config.n_layer, len(prefix), capacity)
        x = self._transform(self._embed(prefix, indices), cache)
        return self._logits(x[:, -1]), cache

    def step(self, indices: Tensor, cache: KVCache) -> Tensor:
        """Append the next codes of every sample, (B,) or (B,t) int64: logits (B,K) of the code that follows them."""
        indices = indices if indices.ndim == 2 else indices[:, None]
        positions = self.positions[cache.next_positions(indices.shape[1])]
        x = self._transform(self.token_embedding(indices) + positions, cache)
        return self._logits(x[:, -1])

    def _embed(self, prefix: Tensor, indices: Tensor) -> Tensor:
        tokens = torch.cat([self.prefix_embedding(prefix), self.token_embedding(indices)], dim=1)  # (B,t,C)
        return self.dropout(tokens + self.positions[:tokens.shape[1]])

    def _transform(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Embedded positions (B,t,C) through all blocks; with a cache they are appended to it."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, cache)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def _logits(self, x: Tensor) -> Tensor:  # (...,C) -> (...,K)
        return self.head(self.norm(x))

    def _check(self, prefix: Tensor, tokens: int) -> None:
        c = self.config
        if prefix.ndim != 2 or prefix.shape[1] != c.prefix_length:
            raise TesseraeError(f"the prefix has the shape {tuple(prefix.shape)}; this transformer was made "
                                f"for (samples, {c.prefix_length}).")
        if not 1 <= tokens <= c.max_tokens:
            raise TesseraeError(f"{tokens} codes were requested; this transformer models 1 to "
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
