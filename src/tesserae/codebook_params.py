"""What each quantizer has a use for: the keys of params.yaml, the values of its authors, the sizes it can have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tesserae.errors import TesseraeError

AUTO = "auto"

# A quantizer's row: the keys that it has a use for, each with the value that `auto` stands for.
_DISTANCE = {"gradient": "straight_through", "codebook_init": "data", "revive_after": 50, "commitment_weight": 0.25}
USED: dict[str, dict[str, object]] = {
    "nearest": {**_DISTANCE, "codebook_weight": 1.0, "codebook_lr": 5e-3},  # VQ-VAE, arXiv 1711.00937
    "ema": _DISTANCE,  # its appendix A.1
    "simvq": {"gradient": "straight_through", "codebook_weight": 1.0, "commitment_weight": 0.25},  # arXiv 2411.02038
    "fsq": {},  # arXiv 2309.15505
    "lfq": {"commitment_weight": 0.25, "entropy_weight": 0.1},  # MAGVIT-v2, arXiv 2310.05737
    "gumbel": {"codebook_lr": 5e-3, "kl_weight": 5e-4, "temperature_start": 0.9, "temperature_end": 0.1},
}
# What a key has to be where it has no effect.
NEUTRAL: dict[str, object] = {
    "gradient": "straight_through", "codebook_init": "none", "revive_after": 0, "codebook_weight": 0.0,
    "commitment_weight": 0.0, "entropy_weight": 0.0, "kl_weight": 0.0, "temperature_start": 0.0,
    "temperature_end": 0.0, "codebook_lr": 0.0,
}
_POSITIVE = ("codebook_lr", "temperature_start", "temperature_end")

# Levels a dimension for the usual K: table 1 of Mentzer et al. (arXiv 2309.15505), whose products are near K.
FSQ_LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5),
              65536: (8, 8, 8, 5, 5, 5)}
_BY_PRODUCT = {math.prod(levels): levels for levels in FSQ_LEVELS.values()}
# The paper advises five levels or more a dimension; its table has up to eight. Few K need other ranges.
_RANGES = ((5, 8), (5, 16), (3, 16))


def resolved(values: Mapping[str, object]) -> dict[str, object]:
    """A VQGAN's block with `auto` replaced: by the value of the quantizer's authors, or by the neutral one.

    A block whose quantizer is unknown comes back as it is.
    """
    quantizer = values.get("quantizer")
    if not isinstance(quantizer, str) or quantizer not in USED:
        return dict(values)
    known = NEUTRAL | USED[quantizer]
    return {key: known[key] if isinstance(key, str) and key in known and isinstance(value, str) and value == AUTO
            else value for key, value in values.items()}


def unused(quantizer: str, values: Mapping[str, object]) -> str:
    """What is wrong with a resolved block: keys that its quantizer has no use for, or needs; "" for nothing."""
    used = USED[quantizer]
    extra = [f"{key}: {values[key]}" for key, neutral in NEUTRAL.items()
             if key not in used and values[key] != neutral]
    if extra:
        return (f"quantizer = {quantizer!r} has no use for {', '.join(extra)}; set "
                f"{'each of them' if len(extra) > 1 else 'it'} to auto")
    if values["codebook_init"] == "none" and "codebook_init" in used:
        return f"codebook_init = 'none' leaves quantizer = {quantizer!r} without codes; take data or uniform"
    missing = [key for key in _POSITIVE if key in used and not values[key]]
    if missing:
        return f"{missing[0]} must be more than 0 for quantizer = {quantizer!r}; auto takes {used[missing[0]]}"
    return ""


def remedies(quantizer: str) -> list[str]:
    """The keys that may keep more codes of this quantizer in use, best first; codebook_size goes with all."""
    also = {"revive_after": "a shorter revive_after", "codebook_init": "codebook_init: data",
            "entropy_weight": "a larger entropy_weight", "kl_weight": "a larger kl_weight"}
    return [words for key, words in also.items() if key in USED.get(quantizer, {})] + ["a smaller codebook_size"]


def downsampling(patch: int, channel_mult: Sequence[int]) -> int:
    """f: pixels a side that one code stands for; `patch` pixels are folded first, then each level halves the size."""
    return patch * 2 ** (len(channel_mult) - 1)


def entries(quantizer: str, codebook_size: int) -> int:
    """How many codes there are: K, but for FSQ the product of its levels.

    Raises TesseraeError where the quantizer cannot have that K.
    """
    if quantizer == "fsq":
        return math.prod(fsq_levels(codebook_size))
    if quantizer == "lfq" and codebook_size & (codebook_size - 1):
        raise TesseraeError(f"codebook_size = {codebook_size} does not go with quantizer lfq, which needs a power of "
                            f"two: use {2 ** round(math.log2(codebook_size))}.")
    return codebook_size


def fsq_levels(codebook_size: int) -> tuple[int, ...]:
    """Levels a dimension of an FSQ codebook of about K entries; their product is the number of entries.

    A K of the paper's table, or the product of its levels, has the paper's levels. Any other K is the product of as
    few and as even levels as it has, of 5 to 8 where K allows. Raises TesseraeError for a K that is no such product.
    """
    known = FSQ_LEVELS | _BY_PRODUCT
    if codebook_size in known:
        return known[codebook_size]
    for smallest, largest in _RANGES:
        found = _factors(codebook_size, smallest, largest)
        if found:
            return found
    smallest, largest = _RANGES[-1]
    sides = (range(codebook_size - 1, smallest - 1, -1), range(codebook_size + 1, 2 * max(codebook_size, smallest)))
    near = [next((size for size in side if _factors(size, smallest, largest)), None) for side in sides]
    raise TesseraeError(f"codebook_size = {codebook_size} does not go with quantizer fsq, which needs a product of "
                        f"levels of {smallest} to {largest}: use {' or '.join(str(size) for size in near if size)}.")


def _factors(number: int, smallest: int, largest: int) -> tuple[int, ...] | None:
    """The fewest factors in [smallest, largest], of these the most even, falling; None where there are none."""
    found = [(first, *rest) for first in range(min(largest, number), smallest - 1, -1) if number % first == 0
             for rest in [() if first == number else _factors(number // first, smallest, first)] if rest is not None]
    return min(found, key=lambda levels: (len(levels), levels[0] - levels[-1]), default=None)
