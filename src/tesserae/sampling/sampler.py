"""Drawing code maps, code after code in the model's order: p(s) = prod_i p(s_i | s_<i, c).

The random number of a draw belongs to (seed, number of the sample, position). So a sample is the same in
whatever batch it is drawn, and the same seed shows what another temperature does to the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.filters import draw, rank
from tesserae.sampling.orderings import as_maps, in_order
from tesserae.sampling.steps import Recorder, Steps, drawing


@torch.no_grad()
def sample(model: LatentTransformer, prefix: Tensor, shape: tuple[int, int], temperature: float = 1.0,
           top_k: int = 0, top_p: float = 1.0, seed: int = 0, first: int = 0,
           given: tuple[Tensor, Tensor] | None = None, cached: bool = True, batch_size: int = 64,
           progress: Callable[[int, int], None] | None = None) -> Tensor:
    """Draw a code map for every row of `prefix`: -> (B,h,w) int64 on its device.

    prefix (B,P) int64; shape (h,w). temperature, top_k, top_p: see `filters.rank`. The samples are numbered
    first, first + 1, ... and each depends on (seed, number) alone, up to the rounding of the network's sums.
    given: (mask (B,h,w) bool, indices (B,h,w) int64): codes under the mask are kept, the others are drawn in
    the model's order, each from those before it. cached=False computes every step from scratch, for comparison.
    At most `batch_size` samples are drawn at once. progress(done, total) counts codes. Raises TesseraeError for what
    does not fit.
    """
    count, total = prefix.shape[0], shape[0] * shape[1]
    _check(model, prefix, shape, given)
    order = model.config.order
    run = _Cached(model) if cached else partial(_from_scratch, model)
    recorder = Recorder(prefix.device)
    parts = []
    with drawing(model, rows=min(count, batch_size) if cached else 0):
        for start in range(0, count, batch_size):
            rows = slice(start, min(start + batch_size, count))
            known = None if given is None else tuple(in_order(part[rows], order) for part in given)  # (b,T) twice
            noise = uniforms(seed, range(first + rows.start, first + rows.stop), total).to(prefix.device)
            choose = _chooser(recorder, noise, temperature, top_k, top_p)
            tell = _teller(progress, start * total, rows.stop - start, count * total)
            parts.append(run(prefix[rows], total, known, choose, tell))
    codes = torch.cat(parts) if parts else prefix.new_empty(0, total)
    return as_maps(codes, order, shape)


def upper_half(indices: Tensor) -> Tensor:
    """The mask of the upper half of code maps, for `given`: (B,h,w) -> (B,h,w) bool."""
    mask = torch.zeros_like(indices, dtype=torch.bool)
    mask[:, :indices.shape[1] // 2] = True
    return mask


def uniforms(seed: int, samples: range, positions: int) -> Tensor:
    """Uniform numbers in [0,1), (len(samples),positions) float32: a counter-based stream for each sample.

    They are made from Philox's raw stream, which NumPy promises to keep, and from its highest 24 bits, so
    that none is rounded up to 1.
    """
    raw = np.stack([np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(positions)
                    for number in samples])
    return torch.from_numpy(((raw >> np.uint64(40)) * 2.0**-24).astype(np.float32))


Choose = Callable[[Tensor, int], Tensor]  # logits (B,K), position -> codes (B,)
Tell = Callable[[int], None]  # codes done of each map
Known = tuple[Tensor, Tensor] | None  # mask (B,T) bool, codes (B,T)


def _chooser(recorder: Recorder, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Choose:
    def chosen(logits: Tensor, uniform: Tensor) -> Tensor:
        return draw(*rank(logits, temperature, top_k, top_p), uniform)

    return lambda logits, position: recorder("choose", chosen, logits, noise[:, position])


def _teller(progress: Callable[[int, int], None] | None, before: int, batch: int, total: int) -> Tell:
    return lambda position: progress(before + position * batch, total) if progress else None


class _Cached:
    """One step of the network a code. What is known in every sample from the start on is read in one pass."""

    def __init__(self, model: LatentTransformer) -> None:
        self.model, self.steps = model, Steps(model)

    def __call__(self, prefix: Tensor, total: int, known: Known, choose: Choose, tell: Tell) -> Tensor:
        codes, mask = _start(prefix, total, known)
        lead = 0 if mask is None else int(mask.all(0).long().cumprod(0).sum())
        if lead == total:
            return codes
        shared = lead == 0 and bool((prefix == prefix[:1]).all())
        logits, cache = self.model.prefill(prefix[:1] if shared else prefix, codes[:, :lead], prefix.shape[0])
        self.steps.start(cache)
        for position in range(lead, total):
            _put(codes, mask, position, choose(logits, position))
            tell(position + 1)
            if position + 1 < total:
                logits = self.steps(codes[:, position])
        return codes


def _from_scratch(model: LatentTransformer, prefix: Tensor, total: int, known: Known, choose: Choose,
                  tell: Tell) -> Tensor:
    """The whole sequence through the network for each code: slow, and what the cache is checked against."""
    codes, mask = _start(prefix, total, known)
    for position in range(total):
        logits = model(prefix, codes[:, :position + 1])[:, -1]  # (B,K)
        _put(codes, mask, position, choose(logits, position))
        tell(position + 1)
    return codes


def _start(prefix: Tensor, total: int, known: Known) -> tuple[Tensor, Tensor | None]:
    """Codes (B,T), known ones in place and 0 elsewhere, and the mask (B,T) of the known ones."""
    if known is None:
        return prefix.new_zeros(prefix.shape[0], total), None
    mask, indices = known
    return torch.where(mask, indices, 0), mask


def _put(codes: Tensor, mask: Tensor | None, position: int, drawn: Tensor) -> None:
    """Write drawn codes (B,) at a position, but where a code is known."""
    column = codes[:, position]
    codes[:, position] = drawn if mask is None else torch.where(mask[:, position], column, drawn)


def _check(model: LatentTransformer, prefix: Tensor, shape: tuple[int, int],
           given: tuple[Tensor, Tensor] | None) -> None:
    c, wanted = model.config, (prefix.shape[0], *shape)
    if min(shape) < 1 or shape[0] * shape[1] > c.max_tokens:
        raise TesseraeError(f"a map of {shape[0]}x{shape[1]} codes was asked for; this transformer draws "
                            f"1 to {c.max_tokens} codes: take a smaller map.")
    if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < c.prefix_vocab:
        raise TesseraeError(f"prefix tokens run from {int(prefix.min())} to {int(prefix.max())}; this "
                            f"transformer knows 0 to {c.prefix_vocab - 1}.")
    check_given(model, given, wanted)


def check_given(model: LatentTransformer, given: tuple[Tensor, Tensor] | None, wanted: tuple[int, ...]) -> None:
    """Raise TesseraeError where a given mask or its indices are not (B,h,w) = `wanted`, or no codes of the model."""
    if given is None:
        return
    mask, indices = given
    if mask.shape != wanted or indices.shape != wanted or mask.dtype != torch.bool:
        raise TesseraeError(f"the given mask and indices have the shapes {tuple(mask.shape)} and "
                            f"{tuple(indices.shape)}; a boolean mask and indices of {wanted} are needed.")
    kept = indices[mask]
    known = model.config.codebook_size
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < known:
        raise TesseraeError(f"given codes run from {int(kept.min())} to {int(kept.max())}; this transformer "
                            f"knows 0 to {known - 1}.")
