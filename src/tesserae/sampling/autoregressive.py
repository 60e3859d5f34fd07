"""Sampling code maps, code after code in the model's order: p(s) = prod_i p(s_i | s_<i, c).

The random number of a code belongs to (seed, number of the sample, position). So a sample is the same in
whatever batch it is made, and the same seed shows what another temperature does to the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.kv_cache import KVCache
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.filters import check_filters, pick, rank
from tesserae.sampling.orderings import from_sequences, to_sequences

Progress = Callable[[int, int], None]  # codes that are done, codes in all
Given = tuple[Tensor, Tensor]  # mask (B,h,w) bool, indices (B,h,w) int64


@dataclass(frozen=True)
class SampleOptions:
    """How codes are sampled.

    temperature, top_k, top_p: see `filters.rank`. seed, first: the samples are numbered first, first + 1, ... and
    each depends on (seed, number) alone, up to the rounding of the network's sums. recorded: on a GPU steps are
    recorded as CUDA graphs. batch_size: how many samples, or
    windows, go through the network at once at most. cached: False processes the whole sequence again for each code,
    for comparison. stride, wavefront: of maps that are larger than the transformer's, see
    `sliding_window.sample_map`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first: int = 0
    batch_size: int = 64
    cached: bool = True
    recorded: bool = True
    stride: int = 1
    wavefront: bool = True

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes (B,) int64 for logits (B,K) and uniform numbers (B,) in [0,1)."""
        return pick(*rank(logits, self.temperature, self.top_k, self.top_p), uniform)

    def check(self) -> None:
        """Raise TesseraeError for a value that is not allowed."""
        check_filters(self.temperature, self.top_k, self.top_p)
        if self.batch_size < 1:
            raise TesseraeError(f"batch_size = {self.batch_size} is not allowed; it must be at least 1.")


DEFAULTS = SampleOptions()


@torch.no_grad()
def sample(model: LatentTransformer, prefix: Tensor, shape: tuple[int, int], options: SampleOptions = DEFAULTS,
           given: Given | None = None, progress: Progress | None = None) -> Tensor:
    """Sample a code map of `shape` (h,w) for every row of `prefix` (B,P) int64: (B,h,w) int64 on its device.

    given: codes under the mask are kept; the others are sampled in the model's order, each from those before it.
    Raises TesseraeError for what does not fit.
    """
    options.check()
    _check(model, prefix, shape, given)
    count, length, order = len(prefix), shape[0] * shape[1], model.config.order
    decode = partial(_decode_cached, steps_of(model, options)) if options.cached else _decode_uncached
    parts = []
    with evaluating(model, steps=options.cached):
        for start in range(0, count, options.batch_size):
            rows = slice(start, min(start + options.batch_size, count))
            sequences = _Sequences.of(rows, length, options, prefix.device)
            if given is not None:
                sequences.keep(*(to_sequences(part[rows], order) for part in given))
            for position in decode(model, prefix[rows], sequences, options):
                if progress:
                    progress(start * length + (rows.stop - start) * (position + 1), count * length)
            parts.append(sequences.codes)
    return from_sequences(torch.cat(parts) if parts else prefix.new_empty(0, length), order, shape)


class Steps:
    """Steps of the network one after the other: `cache = begin(cache)` after a prefill, then `step(codes, cache)`."""

    def __init__(self, model: LatentTransformer) -> None:
        self.step = model.step

    def begin(self, cache: KVCache) -> KVCache:
        """The cache to go on with."""
        return cache


def steps_of(model: LatentTransformer, options: SampleOptions) -> Steps:
    """How the network makes its steps on its device."""
    if model.device.type != "cuda" or not options.recorded:
        return Steps(model)
    from tesserae.accel.cuda_graphs import RecordedSteps

    return RecordedSteps(model)


@contextmanager
def evaluating(model: LatentTransformer, steps: bool = False) -> Iterator[None]:
    """Meanwhile the network is in evaluation mode; afterwards in the mode it was in.

    steps: single steps follow, which on a CPU are in fp32: for a few rows autocast takes longer to turn the weights
    into bf16 than their products take.
    """
    training, fp32 = model.training, steps and model.device.type == "cpu"
    model.eval()
    try:
        with torch.autocast("cpu", enabled=False) if fp32 else nullcontext():
            yield
    finally:
        model.train(training)


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


@dataclass
class _Sequences:
    """Sequences that are being sampled: codes, noise (B,T); known: mask (B,T) of codes that are kept, or None."""

    codes: Tensor
    noise: Tensor
    known: Tensor | None = None

    @classmethod
    def of(cls, rows: slice, length: int, options: SampleOptions, device: torch.device) -> _Sequences:
        numbers = range(options.first + rows.start, options.first + rows.stop)
        noise = uniforms(options.seed, numbers, length).to(device)
        return cls(torch.zeros(noise.shape, dtype=torch.int64, device=device), noise)

    def keep(self, mask: Tensor, codes: Tensor) -> None:
        self.known, self.codes = mask, torch.where(mask, codes, 0)

    def known_from_the_start(self) -> int:
        """How many leading codes are known in every sample."""
        return 0 if self.known is None else int(self.known.all(0).long().cumprod(0).sum())

    def write(self, position: int, sampled: Tensor) -> None:
        if self.known is not None:
            sampled = torch.where(self.known[:, position], self.codes[:, position], sampled)
        self.codes[:, position] = sampled


def _decode_cached(steps: Steps, model: LatentTransformer, prefix: Tensor, sequences: _Sequences,
                   options: SampleOptions) -> Iterator[int]:
    """One step of the network a code; the leading known codes are processed in one pass. Yields each position."""
    length, known = sequences.codes.shape[1], sequences.known_from_the_start()
    if known == length:
        return
    shared = not known and bool((prefix == prefix[:1]).all())
    logits, cache = model.prefill(prefix[:1] if shared else prefix, sequences.codes[:, :known], len(prefix))
    cache = steps.begin(cache)
    for position in range(known, length):
        sequences.write(position, options.pick(logits, sequences.noise[:, position]))
        yield position
        if position + 1 < length:
            logits = steps.step(sequences.codes[:, position], cache)


def _decode_uncached(model: LatentTransformer, prefix: Tensor, sequences: _Sequences,
                     options: SampleOptions) -> Iterator[int]:
    """The whole sequence through the network for each code: slow, and what the cache is checked against."""
    for position in range(sequences.codes.shape[1]):
        logits = model(prefix, sequences.codes[:, :position + 1])[:, -1]  # (B,K)
        sequences.write(position, options.pick(logits, sequences.noise[:, position]))
        yield position


def _check(model: LatentTransformer, prefix: Tensor, shape: tuple[int, int], given: Given | None) -> None:
    c = model.config
    if min(shape) < 1 or shape[0] * shape[1] > c.max_tokens:
        raise TesseraeError(f"a map of {shape[0]}x{shape[1]} codes was requested; this transformer models "
                            f"1 to {c.max_tokens} codes: take a smaller map.")
    if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < c.prefix_vocab:
        raise TesseraeError(f"prefix tokens run from {int(prefix.min())} to {int(prefix.max())}; this "
                            f"transformer knows 0 to {c.prefix_vocab - 1}.")
    check_given(model, given, (len(prefix), *shape))


def check_given(model: LatentTransformer, given: Given | None, shape: tuple[int, ...]) -> None:
    """Raise TesseraeError where a given mask or its indices are not of `shape` (B,h,w), or no codes of the model."""
    if given is None:
        return
    mask, indices = given
    if mask.shape != shape or indices.shape != shape or mask.dtype != torch.bool:
        raise TesseraeError(f"the given mask and indices have the shapes {tuple(mask.shape)} and "
                            f"{tuple(indices.shape)}; a boolean mask and indices of {shape} are needed.")
    kept, size = indices[mask], model.config.codebook_size
    if kept.numel() and not 0 <= int(kept.min()) <= int(kept.max()) < size:
        raise TesseraeError(f"given codes run from {int(kept.min())} to {int(kept.max())}; this transformer "
                            f"knows 0 to {size - 1}.")
