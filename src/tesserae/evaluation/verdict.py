"""What the codebook's numbers mean, in words with the thresholds."""

from __future__ import annotations

from tesserae.codebook_params import remedies
from tesserae.evaluation.codebook import DOUBLE

USAGE_HEALTHY, USAGE_COLLAPSED = 0.95, 0.5  # fraction of the codes that are ever chosen
EVEN, UNEVEN = 0.5, 0.25  # perplexity over K
DOMINANT = 0.1  # fraction of all positions that one code may take
ENOUGH = 10  # held-out positions a code, below which unused codes may be chance


def verdict(train: dict[str, float], held_out: dict[str, float], codebook_size: int,
            held_out_positions: int, doubles: int = 0, quantizer: str = "nearest") -> list[str]:
    """What the numbers mean, in sentences with their thresholds.

    train, held_out: `usage_statistics`; held_out_positions: positions they were counted on; doubles:
    `codebook.doubles`; quantizer: as in params.yaml, whose parameters the advice names.
    """
    sentences = [_on_usage(train, codebook_size, quantizer), _on_evenness(train, codebook_size)]
    if train["top_share"] > DOMINANT:
        sentences.append(f"One code takes {train['top_share']:.0%} of all positions (more than {DOMINANT:.0%}): "
                    "often a background or plain sky, which needs no variety.")
    if doubles:
        sentences.append(f"{doubles} used codes lie closer to another code than {DOUBLE:.0%} of what is usual: "
                    "they are doubles.")
    sentences.append(_on_held_out(train, held_out, codebook_size, held_out_positions))
    return sentences


def _on_usage(train: dict[str, float], size: int, quantizer: str) -> str:
    usage, dead = train["usage"], train["dead"]
    words = f"{usage:.1%} of the {size} codes are used on the training pictures, {dead} are dead"
    if usage >= USAGE_HEALTHY:
        return f"{words}: healthy (from {USAGE_HEALTHY:.0%} on)."
    *first, last = remedies(quantizer)
    remedy = f"Try {', '.join(first)} or {last}" if first else f"Try {last}"
    if usage >= USAGE_COLLAPSED:
        return f"{words}: part of the codebook is not used (below {USAGE_HEALTHY:.0%}). {remedy}."
    return f"{words}: the codebook has collapsed (below {USAGE_COLLAPSED:.0%}). {remedy}."


def _on_evenness(train: dict[str, float], size: int) -> str:
    fraction = train["perplexity_share"]
    words = f"The perplexity is {train['perplexity']:.0f}, {fraction:.0%} of the {size} that even use would give"
    if fraction >= EVEN:
        return f"{words}: evenly used (from {EVEN:.0%} on)."
    if fraction >= UNEVEN:
        return f"{words}: somewhat uneven ({UNEVEN:.0%} to {EVEN:.0%}), as where much of a picture is plain."
    return f"{words}: few codes do most of the work (below {UNEVEN:.0%})."


def _on_held_out(train: dict[str, float], held_out: dict[str, float], size: int, positions: int) -> str:
    words = (f"On held-out pictures {held_out['usage']:.1%} are used, with a perplexity of "
             f"{held_out['perplexity']:.0f}")
    if positions < ENOUGH * size:
        return (f"{words}; there are only {positions / size:.1f} positions a code, so one that is unused here "
                "need not be dead.")
    if held_out["perplexity"] < 0.8 * train["perplexity"]:
        return (f"{words}, well below the {train['perplexity']:.0f} in training: the codes fit the training "
                "pictures alone.")
    return f"{words}, much as in training: the codes carry over."
