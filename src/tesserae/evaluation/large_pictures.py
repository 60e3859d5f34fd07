"""Whether large sampled pictures hold together where the transformer's windows meet."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.evaluation.distributions import SetStatistics, frechet, frechet_resampled
from tesserae.evaluation.features import FeatureNetwork, set_features
from tesserae.evaluation.intervals import Measures
from tesserae.evaluation.streams import AT_ONCE, as_floats
from tesserae.models.perceptual import MIN_SIDE


def window_frechet(large: Tensor, real: Iterable[Tensor], window_pixels: int, border_every_pixels: int,
                   network: FeatureNetwork, max_windows: int = 256) -> Measures:
    """Fréchet distances of windows of large sampled pictures to windows of real scenes.

    Borders are the lines at multiples of `border_every_pixels` down and across, where windows of the transformer
    meet. `frechet_<name>_inside`, by the network's name: windows in the middle of the cells between borders;
    `_across`: windows with a border, or two that cross, in their middle; `_real`: real windows of other scenes. All
    three have the same number of windows, at most `max_windows`, and references of equal numbers, so they compare: if
    the second is close to the first, borders do no harm. Windows are chosen at random, the same in every run.

    large (N,3,H,W) and real, batches of such pictures, are uint8 or floats in [-1,1]. Real scenes of the large
    pictures' size are cut at the same positions, so that sky is compared with sky; scenes without room for a
    window across borders are cut inside only. Half of the scenes are the reference. Where there are too few windows,
    or where they are too small for VGG16, there is a note in place of numbers. Raises TesseraeError where no window
    fits into a cell, or none into a scene.
    """
    if window_pixels > border_every_pixels:
        raise TesseraeError(f"windows of {window_pixels} pixels do not fit between borders every "
                            f"{border_every_pixels}: take smaller windows.")
    if network.name == "vgg16" and window_pixels < MIN_SIDE["vgg"]:
        found = Measures()
        found.notes.append(f"Distances between windows are left out: windows of {window_pixels} pixels a side are "
                           f"too small for VGG16, which needs {MIN_SIDE['vgg']}.")
        return found
    scenes = [scene for batch in real for scene in batch]  # (3,H,W) each
    scenes = [scenes[number] for number in _shuffled(len(scenes))]  # sets may come class by class, or day after night
    kinds = [False, True]
    sampled = [_windows(list(large), window_pixels, border_every_pixels, across) for across in kinds]
    reference_windows = [_windows(scenes[0::2], window_pixels, border_every_pixels, across) for across in kinds]
    reference_windows = [reference_windows[0], reference_windows[1] or reference_windows[0]]
    unseen = _windows(scenes[1::2], window_pixels, border_every_pixels, across=False)
    if scenes and not reference_windows[0]:
        raise TesseraeError(f"real scenes of {scenes[0].shape[1]} x {scenes[0].shape[2]} pixels hold no window of "
                            f"{window_pixels}: render larger scenes, or take smaller windows.")
    count = min(max_windows, len(unseen), *map(len, sampled))
    against = min(max_windows, *map(len, reference_windows))
    if min(count, against) < 2:
        found = Measures()
        found.notes.append("Distances between windows are left out: they need two windows of each kind, here are "
                           f"{count} sampled and {against} real ones, from {len(scenes)} held-out pictures "
                           "(prepare.holdout sets how many).")
        return found

    def features(windows: list[Tensor], number: int) -> Tensor:  # at random: even steps could miss a position in all
        chosen = [windows[index] for index in _shuffled(len(windows))[:number]]
        return set_features((torch.stack(chosen[at:at + AT_ONCE]) for at in range(0, number, AT_ONCE)), network)[0]

    inside, across = (SetStatistics.of(features(windows, against)) for windows in reference_windows)
    protocol = {"features": network.protocol, "size": f"windows of {window_pixels} pixels", "n_generated": count,
                "reference": f"as large windows of {len(scenes[0::2])} held-out scenes", "n_reference": against,
                "pixels": "uint8 RGB, rounded in memory", "resampled": "the windows"}
    found = Measures()
    for ending, windows, reference in (("inside", sampled[0], inside), ("across", sampled[1], across),
                                       ("real", unseen, inside)):
        own = features(windows, count)
        found.add(f"frechet_{network.name}_{ending}", frechet(SetStatistics.of(own), reference), protocol,
                  frechet_resampled(own, reference), (0.0, float("inf")))
    return found


def seam_ratio(images: Tensor, border_every_pixels: int, grid_pixels: int = 1) -> float:
    """The mean step |x_i - x_(i-1)| of pixels over the borders, over the mean step between them; 1: no seam.

    images (N,3,H,W), uint8 or floats in [-1,1]. Borders are the lines at multiples of `border_every_pixels`;
    between them are the other multiples of `grid_pixels`: with the VQGAN's f there, borders are compared with
    positions where two codes meet as well. The mean of the two directions, or the one that has borders; not a
    number where none has. Scenes have a horizon, which is a step, too: compare with real scenes of the size.
    """
    x = as_floats(images)
    ratios = []
    for axis in (2, 3):
        steps = x.diff(dim=axis).abs().mean([other for other in range(4) if other != axis])  # (L-1,)
        position = torch.arange(1, x.shape[axis])
        border = position % border_every_pixels == 0
        plain = ~border & (position % grid_pixels == 0)
        if border.any() and plain.any():
            ratios.append(float(steps[border].mean() / steps[plain].mean().clamp_min(1e-9)))
    return sum(ratios) / len(ratios) if ratios else float("nan")


def _shuffled(count: int) -> list[int]:
    """0 to count - 1 in a random order, the same in every run."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def _windows(scenes: list[Tensor], window: int, every: int, across: bool) -> list[Tensor]:
    """All windows (3,window,window) of one kind, scene by scene, as views."""
    return [scene[:, top:top + window, left:left + window]
            for scene in scenes for top, left in _positions(*scene.shape[1:], window, every, across)]


def _positions(height: int, width: int, window: int, every: int, across: bool) -> list[tuple[int, int]]:
    """(top, left) of the windows in the middle of cells, or of those with a border in their middle."""
    rows, columns = (_along(length, window, every) for length in (height, width))
    if not across:
        return list(product(rows[0], columns[0]))
    return [*product(rows[0], columns[1]), *product(rows[1], columns[0]), *product(rows[1], columns[1])]


def _along(length: int, window: int, every: int) -> tuple[list[int], list[int]]:
    """Where windows begin along one side: in the middle of each cell that is large enough, and about each border."""
    cells = [(start, min(start + every, length)) for start in range(0, length, every)]
    inside = [start + (stop - start - window) // 2 for start, stop in cells if stop - start >= window]
    about = [line - window // 2 for line in range(every, length, every)]
    return inside, [start for start in about if start >= 0 and start + window <= length]
