"""What goes wrong in a training, noticed from its history: so that it is said while it can still be mended.

An exploding loss ends the training. A collapse of the codebook or of the discriminator does not: it is said in the
log when it begins, and in the report. All of it follows from the rows of history.csv, so that a run which was killed
and goes on says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tesserae.codebook_params import USED, remedies
from tesserae.errors import TesseraeError
from tesserae.params import VQGANParams

EXPLODED = 10.0  # times the loss of the first row: no spike, but a network that has lost all it knew
DEAD_USAGE, DEAD_PERPLEXITY = 0.1, 0.05  # as shares of K: below these a codebook has collapsed
WON = 0.02  # loss of a discriminator that makes no mistake any more
BLIND = 0.95  # of the loss of one that says 0 of everything: at this or more it has learned nothing that counts
GUESSED = 0.6  # share of logits of the right sign below which it guesses; half of them are right by chance
IN_A_ROW = 3  # so many rows must agree

Row = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """Something that has gone on for IN_A_ROW rows by `step`."""

    step: int
    sentence: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.sentence}"


def check_exploded(step: int, terms: Row, history: Sequence[Row], losses: Sequence[str]) -> None:
    """Raise TesseraeError where one of `losses` is EXPLODED times the first that was logged of the first of them.

    Once LPIPS has joined, the first is the second with it: the row in which it joins may have steps without it.
    """
    sums = [row for row in history if losses[0] in row]
    if "perceptual" in terms:
        late = sums and "perceptual" not in sums[0]
        sums = [row for row in sums if "perceptual" in row][1 if late else 0:]
    begun = sums[0][losses[0]] if sums else None
    if begun is None:
        return
    for name in losses:
        if terms.get(name, 0.0) > EXPLODED * abs(begun):
            raise TesseraeError(
                f"step {step}: the term {name!r} is {terms[name]:.4g}, more than {EXPLODED:.0f} times the loss "
                "that training began with, so it stops with the last checkpoint kept; try half the learning rate, a "
                "longer warmup, or a grad_clip of 1."
            )


def codebook_remedy(block: VQGANParams) -> str:
    """What may help a codebook of this block that has collapsed: only what its quantizer has a use for."""
    used, off = USED[block.quantizer], []
    if "revive_after" in used:
        off += [] if block.revive_after else ["revive_after: 50"]
        off += [] if block.codebook_init == "data" else ["codebook_init: data"]
    if off:
        return " and ".join(off)
    rate = "a lower codebook_lr" if "codebook_lr" in used else "a lower lr"
    return " or ".join([rate, *remedies(block.quantizer)])


def no_better_than_chance(row: Row, gan_loss: str) -> bool:
    """Whether a discriminator tells pictures from reconstructions no better than one that says 0 of everything.

    That one's loss is 1 (hinge) or log 2 (vanilla), and half of its logits are right. Where the row has
    `disc_accuracy`, both must say so: one that is right about most but far off on the rest still teaches G something.
    """
    at_chance = 1.0 if gan_loss == "hinge" else math.log(2)
    accuracy = row.get("disc_accuracy", math.nan)
    return row["disc"] >= BLIND * at_chance and not accuracy >= GUESSED  # NaN is no accuracy


def vqgan_alarms(history: Sequence[Row], codebook_size: int, remedy: str, gan_loss: str = "hinge",
                 discriminator: str = "patch") -> list[Alarm]:
    """Collapses of the codebook and of the discriminator, in the order in which they began.

    history: rows with `usage` in [0,1], `perplexity` in codes, and once the discriminator has joined `disc`, its
    loss, `disc_accuracy`, `logits_real` and `logits_fake`; what is NaN counts as missing. remedy: `codebook_remedy`.
    gan_loss, discriminator: as in params.yaml.
    """
    rows, judged = ([row for row in history if math.isfinite(row.get(name, math.nan))]
                    for name in ("perplexity", "disc"))
    better = "twice the disc_lr, or more disc_channels"
    if discriminator == "patch":
        better = f"discriminator: features, which learns within tens of steps, {better}"
    found = [
        *_begun(rows, lambda row: row["usage"] < DEAD_USAGE or row["perplexity"] < DEAD_PERPLEXITY * codebook_size,
                lambda row: f"the codebook has collapsed: {row['usage']:.0%} of its {codebook_size} codes are in "
                            f"use, as evenly as {row['perplexity']:.1f}; try {remedy}."),
        *_begun(judged, lambda row: row["disc"] < WON,
                lambda row: f"the discriminator has won: its loss is {row['disc']:.2g}, and the decoder learns "
                            "nothing more from it; try half of disc_lr, or a later disc_start."),
        *_begun(judged, lambda row: no_better_than_chance(row, gan_loss),
                lambda row: f"the discriminator is no better than chance: its loss is {row['disc']:.2g}, "
                            f"{_accuracy(row)}and the decoder learns nothing from it; try {better}."),
    ]
    return sorted(found, key=lambda alarm: alarm.step)


def _accuracy(row: Row) -> str:
    accuracy = row.get("disc_accuracy", math.nan)
    return f"it is right about {accuracy:.0%}, " if math.isfinite(accuracy) else ""


def _begun(rows: Sequence[Row], wrong: Callable[[Row], bool], say: Callable[[Row], str]) -> list[Alarm]:
    """An alarm for every time that rows have been wrong IN_A_ROW times."""
    found, count = [], 0
    for row in rows:
        count = count + 1 if wrong(row) else 0
        if count == IN_A_ROW:
            found.append(Alarm(int(row["step"]), say(row)))
    return found
