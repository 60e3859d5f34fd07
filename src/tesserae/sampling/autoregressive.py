"""Sampling code maps, code after code in the model's order: p(s) = prod_i p(s_i | s_<i, c).

The random number of a code belongs to (seed, number of the sample, position). So a sample is the same in
whatever batch it is made, and the same seed shows what another temperature does to the same picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import evaluating
from tesserae.sampling.filters import check_filters, pick, rank
from tesserae.sampling.orderings import from_sequences, to_sequences

Progress = Callable[[int, int], None]  # codes that are done, codes in all
Given = tuple[Tensor, Tensor]  # mask (B,h,w) bool, indices (B,h,w) int64


@dataclass(frozen=True)
class SampleOptions:
    """How codes are sampled.

    temperature, top_k, top_p: see `filters.rank`. seed, first: the samples are numbered first, first + 1, ... and
    each depends on (seed, number) alone. batch_size: the largest number of samples, or windows, in a batch. cached:
    False processes the whole sequence again for each code, for comparison. recorded: on a GPU steps are recorded as
    CUDA graphs. stride: of maps that are larger than the transformer's, see `sliding_window.sample_map`.
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
    count, length, order, limit = len(prefix), shape[0] * shape[1], model.config.order, model.config.max_tokens
    if min(shape) < 1 or length > limit:
        raise TesseraeError(f"a map of {shape[0]}x{shape[1]} codes was requested; this transformer models "
                            f"1 to {limit} codes: take a smaller map.")
    check_range("prefix tokens", prefix, model.config.prefix_vocab)
    check_given(model, given, (count, *shape))
    codes = torch.zeros(count, length, dtype=torch.int64, device=prefix.device)
    known = torch.zeros_like(codes, dtype=torch.bool)
    if given is not None:
        known, indices = (to_sequences(part, order) for part in given)
        codes = torch.where(known, indices, 0)
    network = decoder(model, options) if options.cached else model
    with decoding(model, steps=options.cached):
        for start in range(0, count, options.batch_size):
            rows = slice(start, min(start + options.batch_size, count))
            numbers = range(options.first + rows.start, options.first + rows.stop)
            noise = uniforms(options.seed, numbers, length).to(prefix.device)
            for position in decode(network, prefix[rows], codes[rows], known[rows], noise, options):
                if progress:
                    progress(start * length + (rows.stop - start) * (position + 1), count * length)
    return from_sequences(codes, order, shape)


def decoder(model: LatentTransformer, options: SampleOptions) -> LatentTransformer:
    """What has the network's `prefill` and `step`: itself, or on a GPU its steps as CUDA graphs."""
    if model.device.type != "cuda" or not options.recorded:
        return model
    from tesserae.accel.cuda_graphs import RecordedSteps

    return RecordedSteps(model)


@contextmanager
def decoding(model: LatentTransformer, steps: bool = False) -> Iterator[None]:
    """Meanwhile the network is in evaluation mode; afterwards in the mode it was in.

    steps: single steps follow, which on a CPU are in fp32: for a few rows autocast takes longer to turn the weights
    into bf16 than their products take.
    """
    fp32 = steps and model.device.type == "cpu"
    with evaluating(model), torch.autocast("cpu", enabled=False) if fp32 else nullcontext():
        yield


def upper_half(indices: Tensor) -> Tensor:
    """The mask of the upper half of code maps, for `given`: (B,h,w) -> (B,h,w) bool."""
    mask = torch.zeros_like(indices, dtype=torch.bool)
    mask[:, :indices.shape[1] // 2] = True
    return mask


def uniforms(seed: int, samples: range, positions: int) -> Tensor:
    """Uniform numbers in [0,1), (len(samples),positions) float32: a counter-based stream for each sample.

    They are the highest 24 bits of Philox's raw stream, which NumPy promises to keep: none is rounded up to 1.
    """
    raw = np.stack([np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(positions)
                    for number in samples])
    return torch.from_numpy(((raw >> np.uint64(40)) * 2.0**-24).astype(np.float32))


def decode(model: LatentTransformer, prefix: Tensor, codes: Tensor, known: Tensor, noise: Tensor,
           options: SampleOptions) -> Iterator[int]:
    """Sample in place those of the codes (B,T) that are not known, (B,T) bool, and yield each position that is done.

    noise: uniform numbers (B,T). The leading codes that are known in every sample are processed in one pass, and each
    of the others in one step. Without the cache the whole sequence goes through the network for each: slow, and what
    the cache is compared with.
    """
    free = (~known).any(0).tolist()  # positions at which a sample lacks its code
    start, cache = free.index(True) if any(free) else len(free), None
    for position in range(start, len(free)):
        if not options.cached:
            logits = model(prefix, codes[:, :position + 1])[:, -1]  # (B,K)
        elif cache is None:
            logits, cache = model.prefill(prefix, codes[:, :start], max_tokens=len(free))
        else:
            logits = model.step(codes[:, position - 1], cache)
        if free[position]:
            sampled = options.pick(logits, noise[:, position])
            codes[:, position] = torch.where(known[:, position], codes[:, position], sampled)
        yield position


def check_range(name: str, tokens: Tensor, size: int) -> None:
    """Raise TesseraeError where `tokens` are not all in [0, size); the message names them `name`."""
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise TesseraeError(f"{name} run from {int(tokens.min())} to {int(tokens.max())}; this transformer knows "
                            f"0 to {size - 1}.")


def check_given(model: LatentTransformer, given: Given | None, shape: tuple[int, ...]) -> None:
    """Raise TesseraeError where a given mask or its indices are not of `shape` (B,h,w), or no codes of the model."""
    if given is None:
        return
    mask, indices = given
    if mask.shape != shape or indices.shape != shape or mask.dtype != torch.bool:
        raise TesseraeError(f"the given mask and indices have the shapes {tuple(mask.shape)} and "
                            f"{tuple(indices.shape)}; a boolean mask and indices of {shape} are needed.")
    check_range("given codes", indices[mask], model.config.codebook_size)
