"""Whether drawn pictures obey their condition, and whether large ones hold together where windows meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.errors import TesseraeError
from tesserae.evaluation.distributions import SetStatistics, frechet, frechet_resampled
from tesserae.evaluation.features import FeatureNetwork, set_features
from tesserae.evaluation.images import Distance
from tesserae.evaluation.intervals import Measures, resampled_counts
from tesserae.evaluation.neighbours import nearest
from tesserae.evaluation.segmenter import Segmenter, confusions, scores
from tesserae.models.perceptual import LEAST

AT_ONCE = 32
Features = Callable[[Tensor], Tensor]  # images (B,3,H,W) in [-1,1] -> (B,D)


# ---- one condition, one picture ----------------------------------------------------------------------------


def others(groups: Tensor) -> Tensor:
    """For each picture one of another group, the same in every run: (N,) -> indices (N,) int64.

    Groups stand in a ring by their number; the other picture is of the next group and has the same rank there,
    counted round where that group is smaller. Groups of one picture each give a derangement. Raises
    TesseraeError where there is one group only.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    ring = sorted(members)
    if len(ring) < 2:
        raise TesseraeError("all pictures have the same condition, so none has another to be compared with: "
                            "draw for two conditions or more.")
    found = torch.empty(len(groups), dtype=torch.int64)
    for group, follower in zip(ring, ring[1:] + ring[:1]):
        for rank, index in enumerate(members[group]):
            found[index] = members[follower][rank % len(members[follower])]
    return found


@torch.no_grad()
def lpips_to_own_and_other(made: Tensor, real: Tensor, lpips: Distance, groups: Tensor | None = None,
                           batch_size: int = AT_ONCE, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """LPIPS from drawn pictures to the picture that their condition was taken from, and to another's.

    made, real: (N,3,H,W), uint8 or floats in [-1,1]; real[n] is the picture whose condition made[n] was drawn
    for. groups (N,): equal numbers for equal conditions; None: all differ. device: where `lpips` is. `lpips_true`
    and `lpips_other` of each picture, (N,) on the CPU; the further the first lies below the second, the more the
    condition has said.
    """
    if made.shape != real.shape:
        raise TesseraeError(f"drawn pictures {tuple(made.shape)} and true ones {tuple(real.shape)} differ in shape: "
                            "give one true picture for each drawn one, at its size.")
    other = others(torch.arange(len(made)) if groups is None else groups)
    each: dict[str, list[Tensor]] = {"lpips_true": [], "lpips_other": []}
    for rows in torch.arange(len(made)).split(batch_size):
        drawn = _unit(made[rows].to(device))
        for name, places in (("lpips_true", rows), ("lpips_other", other[rows])):
            each[name].append(lpips(_unit(real[places].to(device)), drawn).cpu().double())
    return {name: torch.cat(parts) for name, parts in each.items()}


def class_agreement(made: Tensor, labels: Tensor, bank: Iterable[Tensor], bank_labels: Tensor, features: Features,
                    k: int = 5, held_out: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
    """Whether each drawn picture lies among real training pictures of the class that was asked for: 0 or 1, (N,).

    `class_share`: whether more than half of the k nearest training pictures have the asked class;
    `class_share_held_out`: the same of held-out real pictures, where they are given as (images, labels): what perfect
    pictures would reach. Near is by cosine of the features, or by Euclid on
    features of unit length, which is the same order; mirror images count.

    made (N,3,H,W), uint8 or floats in [-1,1], with labels (N,); bank: batches of such pictures, gone through
    once, with bank_labels (M,) in their order. features: a `features.FeatureNetwork`, for instance.
    """
    sets = {"class_share": (made, labels)} | ({"class_share_held_out": held_out} if held_out else {})
    queries = [part for images, _ in sets.values() for part in images.split(AT_ONCE)]
    found = nearest(queries, bank, lambda images: F.normalize(features(_unit(images)).float()), k)
    asked = torch.cat([wanted for _, wanted in sets.values()])
    mostly = (bank_labels[found.indices] == asked[:, None]).float().mean(1) > 0.5  # (N,)
    return dict(zip(sets, mostly.double().split([len(images) for images, _ in sets.values()])))


def segmenter_scores(segmenter: Segmenter, made: Tensor, reconstructed: Tensor | None, real: Tensor,
                     masks: Tensor, protocol: Mapping | None = None) -> Measures:
    """`scores` of the layouts that were asked for: of samples, reconstructions (or None), real pictures.

    made, reconstructed, real: (N,3,H,W), uint8 or floats in [-1,1]; masks (N,H,W), held out from the segmenter.
    Keys `pixel_accuracy` and `miou`, with nothing, `_reconstructions` or `_real` behind; the last is what the
    segmenter can do at best. `segmenter_share`: the samples' pixel accuracy over the real pictures'.
    """
    sets = {"": made, "_real": real} | ({} if reconstructed is None else {"_reconstructions": reconstructed})
    found, weights = Measures(), torch.cat([torch.ones(1, len(masks)), resampled_counts(len(masks))])
    for ending, images in sets.items():
        for name, values in scores(confusions(segmenter, images, masks), weights).items():
            found.add(name + ending, float(values[0]), protocol or {}, values[1:], (0.0, 1.0))
    share = found.values["pixel_accuracy"] / max(found.values["pixel_accuracy_real"], 1e-9)
    found.add("segmenter_share", share, protocol or {})
    return found


# ---- large pictures ----------------------------------------------------------------------------------------


def window_frechet(large: Tensor, real: Iterable[Tensor], window_pixels: int, border_every_pixels: int,
                   network: FeatureNetwork, most: int = 256) -> Measures:
    """Fréchet distances of windows of large drawn pictures to windows of real scenes.

    Borders are the lines at multiples of `border_every_pixels` down and across, where one drawn window met the
    next. `frechet_<name>_inside`, by the network's name: windows in the middle of the cells between borders;
    `_across`: windows with a border, or two that cross, in their middle; `_real`: real windows of other scenes. All
    three are of as many windows, at most `most`, to as many, so that they compare; near the first, the second shows
    that borders cost nothing. What is taken is taken by lot, the same in every run.

    large (N,3,H,W) and real, batches of such pictures, are uint8 or floats in [-1,1]. Real scenes of the large
    pictures' size are cut at the same places, so that sky is compared with sky; scenes without room for a
    window across borders are cut inside only. Half of the scenes are reference. No number where there are too few
    windows, or where they are too small for VGG16, but a note. Raises TesseraeError where no window fits into a cell,
    or none into a scene.
    """
    if window_pixels > border_every_pixels:
        raise TesseraeError(f"windows of {window_pixels} pixels do not fit between borders every "
                            f"{border_every_pixels}: take smaller windows.")
    if network.name == "vgg16" and window_pixels < LEAST["vgg"]:
        found = Measures()
        found.notes.append(f"Distances between windows are left out: windows of {window_pixels} pixels a side are "
                           f"too small for VGG16, which needs {LEAST['vgg']}.")
        return found
    scenes = [scene for batch in real for scene in batch]  # (3,H,W) each
    scenes = [scenes[place] for place in _lot(len(scenes))]  # sets may come class by class, or day after night
    kinds = [False, True]
    made = [_windows(list(large), window_pixels, border_every_pixels, across) for across in kinds]
    known = [_windows(scenes[0::2], window_pixels, border_every_pixels, across) for across in kinds]
    known = [known[0], known[1] or known[0]]
    unseen = _windows(scenes[1::2], window_pixels, border_every_pixels, across=False)
    if scenes and not known[0]:
        raise TesseraeError(f"real scenes of {scenes[0].shape[1]} x {scenes[0].shape[2]} pixels hold no window of "
                            f"{window_pixels}: render larger scenes, or take smaller windows.")
    count = min(most, len(unseen), *map(len, made))
    against = min(most, *map(len, known))
    if min(count, against) < 2:
        found = Measures()
        found.notes.append("Distances between windows are left out: they need two windows of each kind, here are "
                           f"{count} drawn and {against} real ones, from {len(scenes)} held-out pictures "
                           "(prepare.holdout sets how many).")
        return found

    def features(windows: list[Tensor], number: int) -> Tensor:  # at random: even steps could miss a place in all
        chosen = [windows[place] for place in _lot(len(windows))[:number]]
        return set_features((torch.stack(chosen[at:at + AT_ONCE]) for at in range(0, number, AT_ONCE)), network)[0]

    inside, across = (SetStatistics.of(features(windows, against)) for windows in known)
    protocol = {"features": network.words, "size": f"windows of {window_pixels} pixels", "n_generated": count,
                "reference": f"as large windows of {len(scenes[0::2])} held-out scenes", "n_reference": against,
                "pixels": "uint8 RGB, rounded in memory", "resampled": "the windows"}
    found = Measures()
    for ending, windows, reference in (("inside", made[0], inside), ("across", made[1], across),
                                       ("real", unseen, inside)):
        own = features(windows, count)
        found.add(f"frechet_{network.name}_{ending}", frechet(SetStatistics.of(own), reference), protocol,
                  frechet_resampled(own, reference), (0.0, float("inf")))
    return found


def seam_ratio(images: Tensor, border_every_pixels: int, grid_pixels: int = 1) -> float:
    """The mean step |x_i - x_(i-1)| of pixels over the borders, over the mean step elsewhere; 1: no seam.

    images (N,3,H,W), uint8 or floats in [-1,1]. Borders are the lines at multiples of `border_every_pixels`;
    elsewhere are the other multiples of `grid_pixels`: with the VQGAN's f there, borders are compared with
    places where two codes meet as well. The mean of the two directions, or the one that has borders; not a
    number where none has. Scenes have a horizon, which is a step, too: compare with real scenes of the size.
    """
    x = _unit(images)
    ratios = []
    for axis in (2, 3):
        steps = x.diff(dim=axis).abs().mean([other for other in range(4) if other != axis])  # (L-1,)
        place = torch.arange(1, x.shape[axis])
        border = place % border_every_pixels == 0
        plain = ~border & (place % grid_pixels == 0)
        if border.any() and plain.any():
            ratios.append(float(steps[border].mean() / steps[plain].mean().clamp_min(1e-9)))
    return sum(ratios) / len(ratios) if ratios else float("nan")


def _lot(count: int) -> list[int]:
    """0 to count - 1 in an order that has nothing to do with theirs, the same in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def _windows(scenes: list[Tensor], window: int, every: int, across: bool) -> list[Tensor]:
    """All windows (3,window,window) of one kind, scene by scene, as views."""
    return [scene[:, top:top + window, left:left + window]
            for scene in scenes for top, left in _places(*scene.shape[1:], window, every, across)]


def _places(height: int, width: int, window: int, every: int, across: bool) -> list[tuple[int, int]]:
    """(top, left) of the windows in the middle of cells, or of those with a border in their middle."""
    rows, columns = (_along(length, window, every) for length in (height, width))
    if not across:
        return list(product(rows[0], columns[0]))
    return [*product(rows[0], columns[1]), *product(rows[1], columns[0]), *product(rows[1], columns[1])]


def _along(length: int, window: int, every: int) -> tuple[list[int], list[int]]:
    """Where windows begin along one side: in the middle of each cell that has room, and about each border."""
    cells = [(start, min(start + every, length)) for start in range(0, length, every)]
    inside = [start + (stop - start - window) // 2 for start, stop in cells if stop - start >= window]
    about = [line - window // 2 for line in range(every, length, every)]
    return inside, [start for start in about if start >= 0 and start + window <= length]


def _unit(images: Tensor) -> Tensor:
    return to_unit(images) if images.dtype == torch.uint8 else images.float()
