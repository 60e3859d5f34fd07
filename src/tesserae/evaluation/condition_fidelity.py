"""The measures of obedience, for samples drawn for held-out pictures' conditions; see `obedience` for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import Classes, View
from tesserae.evaluation.features import FeatureNetwork
from tesserae.evaluation.intervals import Measures
from tesserae.evaluation.obedience import class_agreement, lpips_to_own_and_other, segmenter_scores
from tesserae.evaluation.segmenter import fit_segmenter, predicted
from tesserae.evaluation.streams import AT_ONCE, Images
from tesserae.models.perceptual import LEAST, LPIPS

QUERIES, BANK, NEAREST = 48, 200, 5  # pictures conditions about, and training pictures they are compared with
MOST = 512  # samples that obedience is measured on
TAUGHT = 2000  # training pictures that the segmenter is fitted to: it sees that many


@dataclass(frozen=True)
class SampleConditions:
    """What samples are conditioned on: the held-out pictures `chosen` (N,), and their classes (N,) or None.

    views: the maps among the conditions.
    """

    chosen: Tensor
    labels: Tensor | None
    views: Mapping[str, View]

    def some(self, numbers: Tensor) -> SampleConditions:
        """Those of these samples."""
        labels = None if self.labels is None else self.labels[numbers]
        return SampleConditions(self.chosen[numbers], labels, self.views)


def condition_fidelity(samples: Images, conditions: SampleConditions, train: Pictures, held_out: Pictures,
                       network: FeatureNetwork, seed: int) -> tuple[Measures, dict[str, Tensor]]:
    """Numbers, and pictures that go with them, of MOST of the samples; all is computed where the network is.

    The pictures, {} without a map of classes: what was conditions, what was drawn, what the segmenter finds in it.
    """
    few = torch.tensor(spread(MOST, len(samples)))
    conditions, drawn = conditions.some(few), torch.cat([batch.cpu() for batch in samples.some(few)])
    found, shown = Measures(), {}
    if conditions.views:
        found.join(_to_the_true_ones(drawn, conditions, held_out, network.device))
    if conditions.labels is not None:
        found.join(_class_share(drawn, conditions.labels, train, held_out, network))
    for view in conditions.views.values():
        if isinstance(view, Classes):
            scores, shown = _segmented(drawn, conditions.chosen, view, (train, held_out), seed, network.device)
            found.join(scores)
    return found, shown


def _to_the_true_ones(drawn: Tensor, conditions: SampleConditions, held_out: Pictures,
                      device: torch.device) -> Measures:
    found = Measures()
    if held_out.size < LEAST["alex"]:
        found.notes.append(f"lpips_true and lpips_other are left out: LPIPS (AlexNet) needs {LEAST['alex']} pixels a "
                           f"side, the pictures have {held_out.size}.")
        return found
    if len(conditions.chosen.unique()) < 2:
        found.notes.append("lpips_true and lpips_other are left out: they need two held-out pictures, here is one "
                           "(prepare.holdout sets how many).")
        return found
    real = held_out.batch(conditions.chosen.tolist())
    each = lpips_to_own_and_other(drawn, real, LPIPS.load("alex").to(device), conditions.chosen, device=device)
    found.add_means(each, {"features": "LPIPS (AlexNet)",
                           "reference": "validation split, the pictures of the conditions",
                           "size": f"{held_out.size} x {held_out.size} pixels", "pixels": "float, decoded"})
    return found


def _class_share(drawn: Tensor, labels: Tensor, train: Pictures, held_out: Pictures,
                 network: FeatureNetwork) -> Measures:
    bank = torch.tensor(spread(BANK, len(train)))
    some = torch.tensor(spread(QUERIES, len(held_out)))
    conditions = torch.tensor(spread(QUERIES, len(drawn)))
    real = (held_out.batch(some.tolist()), held_out.labels[some])
    batches = (train.batch(part.tolist()) for part in bank.split(AT_ONCE))
    each = class_agreement(drawn[conditions], labels[conditions], batches, train.labels[bank], network, NEAREST, real)
    found = Measures()
    found.add_shares(each, {"features": network.words, "k": NEAREST,
                            "reference": f"train split, {len(bank)} of {len(train)} pictures, evenly spread",
                            "pixels": "uint8 RGB, rounded in memory"})
    return found


def _segmented(drawn: Tensor, chosen: Tensor, view: Classes, sets: tuple[Pictures, Pictures], seed: int,
               device: torch.device) -> tuple[Measures, dict[str, Tensor]]:
    train, held_out = sets
    taught = spread(TAUGHT, len(train))
    masks = view.targets(view.stored(train, taught))
    segmenter = fit_segmenter(train.batch(taught), masks, view.channels, seed=seed, device=device)
    masks = view.stored(held_out, chosen.tolist())
    scores = segmenter_scores(segmenter, drawn, None, held_out.batch(chosen.tolist()), view.targets(masks), {
        "features": f"a segmenter fitted to {len(taught)} of {len(train)} training pictures",
        "reference": "validation split, the layouts of the conditions", "n": len(drawn), "pixels": "float, decoded",
        "resampled": "the pictures"})
    few = slice(0, 6)
    index = predicted(segmenter, drawn[few])
    return scores, {"asked": view.drawn(view.seen(masks[few])), "sample": drawn[few],
                    "found in it": view.drawn(view.seen(index[:, None]))}
