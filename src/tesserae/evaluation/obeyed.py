"""The measures of obedience, for samples drawn for held-out pictures' conditions; see `obedience` for each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import Classes, View
from tesserae.evaluation.images import at_most, feature_network
from tesserae.evaluation.obedience import class_agreement, lpips_to_own_and_other, segmenter_scores
from tesserae.evaluation.segmenter import fit_segmenter, predicted
from tesserae.models.perceptual import LPIPS

QUERIES, BANK, NEAREST = 48, 200, 5  # pictures asked about, and training pictures they are compared with


def obeyed(drawn: Tensor, chosen: Tensor, labels: Tensor | None, views: Mapping[str, View], train: Pictures,
           held_out: Pictures, seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Numbers, and pictures that go with them: drawn (N,3,H,W) in [-1,1] for the held-out pictures `chosen` (N,).

    labels (N,): the classes asked for, where the transformer is told them; views: the maps among its conditions.
    The pictures, {} without a map of classes: what was asked, what was drawn, what the segmenter finds in it.
    """
    found, shown = {}, {}
    if views:
        real = to_unit(held_out.batch(chosen.tolist()))
        found |= lpips_to_own_and_other(drawn, real, LPIPS.load("alex"), groups=chosen)
    if labels is not None:
        found |= _class_share(drawn, labels, train, held_out)
    for view in views.values():
        if isinstance(view, Classes):
            scores, shown = _segmented(drawn, chosen, view, train, held_out, seed)
            found |= scores
    return found, shown


def _class_share(drawn: Tensor, labels: Tensor, train: Pictures, held_out: Pictures) -> dict[str, float]:
    _, features = feature_network()
    bank = torch.tensor(spread(BANK, len(train)))
    some = torch.tensor(spread(QUERIES, len(held_out)))
    real = (at_most(to_unit(held_out.batch(some.tolist()))), held_out.labels[some])
    batches = (at_most(to_unit(train.batch(part.tolist()))) for part in bank.split(64))
    return class_agreement(at_most(drawn[:QUERIES]), labels[:QUERIES], batches, train.labels[bank], features,
                           NEAREST, real)


def _segmented(drawn: Tensor, chosen: Tensor, view: Classes, train: Pictures, held_out: Pictures,
               seed: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    everything = range(len(train))
    masks = train.batch(everything, view.column)[:, 0]
    segmenter = fit_segmenter(train.batch(everything), masks, view.channels, seed=seed)
    masks = held_out.batch(chosen.tolist(), view.column)[:, 0]
    scores = segmenter_scores(segmenter, drawn, None, to_unit(held_out.batch(chosen.tolist())), masks)
    few = slice(0, 6)
    index = predicted(segmenter, drawn[few])
    return scores, {"asked": view.drawn(view.seen(masks[few, None])), "sample": drawn[few],
                    "found in it": view.drawn(view.seen(index[:, None]))}
