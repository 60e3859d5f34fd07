"""Which codes may be sampled, and sampling one: temperature, top-k, top-p, one uniform number a code.

Codes are ranked by probability, and sampling inverts the cumulative distribution along that ranking. So the same
uniform number samples from the same part of the ranking at any temperature, and filters cut its end off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tesserae.errors import TesseraeError


def rank(logits: Tensor, temperature: float = 1.0, top_k: int = 0,
         top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes in order of falling probability, filtered: probabilities (B,k) that sum to 1, codes (B,k) int64.

    logits (B,K). temperature divides them, and 0 leaves the likeliest code alone (argmax); top_k keeps the k
    likeliest (0: all); top_p in (0,1] keeps the fewest whose probabilities (after temperature and top_k) reach top_p.
    The others have probability 0. Raises TesseraeError for values outside these ranges.
    """
    check_filters(temperature, top_k, top_p)
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.ones_like(best, dtype=torch.float32), best
    if 0 < top_k < logits.shape[-1]:
        ranked, codes = logits.float().topk(top_k, dim=-1)
    else:
        ranked, codes = logits.float().sort(dim=-1, descending=True, stable=True)
    # the largest is subtracted first, so that a tiny temperature makes no infinity minus infinity
    probabilities = torch.softmax((ranked - ranked[..., :1]) / temperature, dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        before[..., 0] = 0  # the likeliest code always stays
        probabilities = probabilities.masked_fill(before >= top_p, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities, codes


def pick(probabilities: Tensor, codes: Tensor, uniform: Tensor) -> Tensor:
    """One code for each row of `rank`'s answer: (B,k), (B,k), uniform (B,) in [0,1) -> (B,) int64."""
    cumulative = probabilities.cumsum(-1)
    target = uniform[:, None] * cumulative[:, -1:]
    rank = (cumulative <= target).sum(-1, keepdim=True)  # (B,1)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1  # rounding must not lead past what was kept
    return codes.gather(-1, rank.minimum(last)).squeeze(-1)


def filtered(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """What `pick` samples from, in the codes' own order: logits (B,K) -> probabilities (B,K)."""
    probabilities, codes = rank(logits, temperature, top_k, top_p)
    return torch.zeros_like(logits, dtype=probabilities.dtype).scatter(-1, codes, probabilities)


def check_filters(temperature: float, top_k: int, top_p: float) -> None:
    for name, value, fine, allowed in (
        ("temperature", temperature, 0 <= temperature < float("inf"), "at least 0 (0: the likeliest)"),
        ("top_k", top_k, top_k >= 0, "at least 0 (0: all codes)"),
        ("top_p", top_p, 0 < top_p <= 1, "more than 0 and at most 1 (1: all codes)"),
    ):
        if not fine:
            raise TesseraeError(f"{name} = {value} is not allowed; it must be {allowed}.")
