"""Condition fidelity: whether samples follow the condition that they are sampled for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.pictures import Pictures, spread
from tesserae.data.views import Classes, View
from tesserae.errors import TesseraeError
from tesserae.evaluation.features import FeatureNetwork
from tesserae.evaluation.images import Distance
from tesserae.evaluation.intervals import Measures, resampled_counts
from tesserae.evaluation.neighbours import nearest
from tesserae.evaluation.segmenter import Segmenter, confusions, fit_segmenter, predicted, scores
from tesserae.evaluation.streams import AT_ONCE, Images, as_floats
from tesserae.models.perceptual import LPIPS, MIN_SIDE

QUERIES, BANK, NEAREST = 48, 200, 5  # of class_share: samples, training pictures, neighbours that vote
MAX_SAMPLES = 512  # that condition fidelity is measured on
SEGMENTER_PICTURES = 2000  # training pictures that the segmenter is fitted to, at most
SHOWN = 6  # samples in the figure
Features = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [-1,1] -> (B,D)


@dataclass(frozen=True)
class SampleConditions:
    """The conditions of samples: the held-out pictures `chosen` (N,), and their classes (N,) or None.

    views: the maps among the conditions.
    """

    chosen: Tensor
    labels: Tensor | None
    views: Mapping[str, View]

    def some(self, numbers: Tensor) -> SampleConditions:
        """The conditions of these samples."""
        labels = None if self.labels is None else self.labels[numbers]
        return SampleConditions(self.chosen[numbers], labels, self.views)


def condition_fidelity(samples: Images, conditions: SampleConditions, train: Pictures, held_out: Pictures,
                       network: FeatureNetwork, seed: int) -> tuple[Measures, dict[str, Tensor]]:
    """Measure MAX_SAMPLES of the samples, where the network is, and return pictures that go with the numbers.

    The pictures, {} without a map of classes, are (SHOWN,3,H,W) each: condition, sample, and segmented, which shows
    the classes that a segmenter finds in the sample.
    """
    few = torch.tensor(spread(MAX_SAMPLES, len(samples)))
    conditions, sampled = conditions.some(few), torch.cat([batch.cpu() for batch in samples.some(few)])
    found, shown = Measures(), {}
    if conditions.views:
        found.join(_lpips(sampled, conditions, held_out, network.device))
    if conditions.labels is not None:
        found.join(_class_share(sampled, conditions.labels, train, held_out, network))
    for view in conditions.views.values():
        if isinstance(view, Classes):
            measures, shown = _segmented(sampled, conditions.chosen, view, (train, held_out), seed, network.device)
            found.join(measures)
    return found, shown


# ---- the picture of the condition, and another one ---------------------------------------------------------


def another_of(groups: Tensor) -> Tensor:
    """For each picture one of another group, the same in every run: (N,) -> indices (N,) int64.

    Groups stand in a ring by their number; the other picture is of the next group and has the same rank there,
    modulo the size of that group. Groups of one picture each give a derangement. Raises TesseraeError where there is
    one group only.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    ring = sorted(members)
    if len(ring) < 2:
        raise TesseraeError("all pictures have the same condition, so none has another to be compared with: "
                            "sample for two conditions or more.")
    found = torch.empty(len(groups), dtype=torch.int64)
    for group, follower in zip(ring, ring[1:] + ring[:1]):
        for rank, index in enumerate(members[group]):
            found[index] = members[follower][rank % len(members[follower])]
    return found


@torch.no_grad()
def lpips_to_true_and_other(sampled: Tensor, real: Tensor, lpips: Distance, groups: Tensor | None = None,
                            batch_size: int = AT_ONCE, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """LPIPS from samples to the picture that their condition was taken from, and to another's.

    sampled, real: (N,3,H,W), uint8 or floats in [-1,1]; real[n] is the picture whose condition sampled[n] has.
    groups (N,): equal numbers for equal conditions; None: all differ. device: where `lpips` is. Returns `lpips_true`
    and `lpips_other` of each picture, (N,) on the CPU; the larger the difference, the stronger the condition.
    Raises TesseraeError where shapes differ or all conditions are equal.
    """
    if sampled.shape != real.shape:
        raise TesseraeError(f"samples {tuple(sampled.shape)} and true pictures {tuple(real.shape)} differ in shape: "
                            "give one true picture for each sample, at its size.")
    other = another_of(torch.arange(len(sampled)) if groups is None else groups)
    each: dict[str, list[Tensor]] = {"lpips_true": [], "lpips_other": []}
    for rows in torch.arange(len(sampled)).split(batch_size):
        made = as_floats(sampled[rows].to(device))
        for name, numbers in (("lpips_true", rows), ("lpips_other", other[rows])):
            each[name].append(lpips(as_floats(real[numbers].to(device)), made).cpu().double())
    return {name: torch.cat(parts) for name, parts in each.items()}


def _lpips(sampled: Tensor, conditions: SampleConditions, held_out: Pictures, device: torch.device) -> Measures:
    found = Measures()
    if held_out.size < MIN_SIDE["alex"]:
        found.notes.append("lpips_true and lpips_other are left out: LPIPS (AlexNet) needs "
                           f"{MIN_SIDE['alex']} pixels a side, the pictures have {held_out.size}.")
        return found
    if len(conditions.chosen.unique()) < 2:
        found.notes.append("lpips_true and lpips_other are left out: they need two held-out pictures, here is one "
                           "(prepare.holdout sets how many).")
        return found
    real = held_out.batch(conditions.chosen.tolist())
    each = lpips_to_true_and_other(sampled, real, LPIPS.load("alex").to(device), conditions.chosen, device=device)
    found.add_means(each, {"features": "LPIPS (AlexNet)",
                           "reference": "validation split, the pictures of the conditions",
                           "size": f"{held_out.size} x {held_out.size} pixels", "pixels": "float, decoded"})
    return found


# ---- the class ---------------------------------------------------------------------------------------------


def mostly_of_class(images: Tensor, labels: Tensor, bank: Iterable[Tensor], bank_labels: Tensor, features: Features,
                    k: int = NEAREST) -> Tensor:
    """Whether most of a picture's k nearest bank pictures are of its class: 0 or 1, (N,) float64.

    images (N,3,H,W), uint8 or floats in [-1,1], with labels (N,); bank: batches of such pictures, iterated once, with
    bank_labels (M,) in their order. Near is by the cosine of the features; mirror images count, too. features: a
    `features.FeatureNetwork`, for instance.
    """
    found = nearest(images.split(AT_ONCE), bank, lambda part: F.normalize(features(as_floats(part)).float()), k)
    return ((bank_labels[found.indices] == labels[:, None]).float().mean(1) > 0.5).double()


def _class_share(sampled: Tensor, labels: Tensor, train: Pictures, held_out: Pictures,
                 network: FeatureNetwork) -> Measures:
    bank, some, few = (torch.tensor(spread(count, of)) for count, of in (
        (BANK, len(train)), (QUERIES, len(held_out)), (QUERIES, len(sampled))))
    images = torch.cat([as_floats(sampled[few]), as_floats(held_out.batch(some.tolist()))])
    batches = (train.batch(part.tolist()) for part in bank.split(AT_ONCE))
    mostly = mostly_of_class(images, torch.cat([labels[few], held_out.labels[some]]), batches, train.labels[bank],
                             network)
    found = Measures()
    found.add_fractions(dict(zip(("class_share", "class_share_held_out"), mostly.split([len(few), len(some)]))), {
        "features": network.protocol, "k": NEAREST, "pixels": "uint8 RGB, rounded in memory",
        "reference": f"train split, {len(bank)} of {len(train)} pictures, evenly spread"})
    return found


# ---- a map of classes --------------------------------------------------------------------------------------


def segmenter_scores(segmenter: Segmenter, sampled: Tensor, real: Tensor, masks: Tensor,
                     protocol: Mapping) -> Measures:
    """Compare requested maps of classes with what a segmenter finds in samples and in real pictures.

    sampled, real: (N,3,H,W), uint8 or floats in [-1,1]; masks (N,H,W), held out from the segmenter. Gives
    `pixel_accuracy` and `miou` in [0,1], of real pictures with `_real` behind, which is the best that the segmenter
    can find; `segmenter_share`: the samples' pixel accuracy over the real pictures'.
    """
    found, weights = Measures(), torch.cat([torch.ones(1, len(masks)), resampled_counts(len(masks))])
    for ending, images in {"": sampled, "_real": real}.items():
        for name, values in scores(confusions(segmenter, images, masks), weights).items():
            found.add(name + ending, float(values[0]), protocol, values[1:], (0.0, 1.0))
    ratio = found.values["pixel_accuracy"] / max(found.values["pixel_accuracy_real"], 1e-9)
    found.add("segmenter_share", ratio, protocol)
    return found


def _segmented(sampled: Tensor, chosen: Tensor, view: Classes, sets: tuple[Pictures, Pictures], seed: int,
               device: torch.device) -> tuple[Measures, dict[str, Tensor]]:
    train, held_out = sets
    fitted = spread(SEGMENTER_PICTURES, len(train))
    masks = view.targets(view.stored(train, fitted))
    segmenter = fit_segmenter(train.batch(fitted), masks, view.channels, seed=seed, device=device)
    masks = view.stored(held_out, chosen.tolist())
    measures = segmenter_scores(segmenter, sampled, held_out.batch(chosen.tolist()), view.targets(masks), {
        "features": f"a segmenter fitted to {len(fitted)} of {len(train)} training pictures",
        "reference": "validation split, the layouts of the conditions", "n": len(sampled), "pixels": "float, decoded",
        "resampled": "the pictures"})
    few = slice(0, SHOWN)
    index = predicted(segmenter, sampled[few])
    return measures, {"condition": view.drawn(view.seen(masks[few])), "sample": sampled[few],
                      "segmented": view.drawn(view.seen(index[:, None]))}
