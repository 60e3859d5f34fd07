"""Connected regions of a map of classes, and which of them are mere patches."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def without_patches(labels: np.ndarray, near: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Labels (H,W) in which patches have the label of the nearest region that is none.

    near, sure (H,W): whether a pixel is close to its label, and whether it is so for certain. Where two colours run
    into each other, what lies between them may be a third class's colour by chance. So a region stays where all of it
    is sure; or where 2x2 of its pixels are near, and somewhere its label has a region that is sure or has 3x3.
    """
    regions = _regions(labels)
    certain = np.bincount(regions.ravel(), ~sure.ravel()) == 0
    own = np.empty(len(certain), dtype=labels.dtype)  # the label of each region
    own[regions] = labels
    attested = np.isin(own, own[certain | _with_square(regions, near, 3)])
    stays = (certain | (_with_square(regions, near, 2) & attested))[regions]
    if stays.all() or not stays.any():
        return labels
    rows, columns = ndimage.distance_transform_edt(~stays, return_distances=False, return_indices=True)
    return labels[rows, columns]


def _with_square(regions: np.ndarray, near: np.ndarray, side: int) -> np.ndarray:
    """By the number of a region, whether a square of that side lies in it whose pixels are all near."""
    found = np.zeros(regions.max() + 1, dtype=bool)
    if min(regions.shape) < side:
        return found
    within, close = (np.lib.stride_tricks.sliding_window_view(each, (side, side)) for each in (regions, near))
    first = within[..., 0, 0]
    same = [close[..., y, x] & (within[..., y, x] == first) for y in range(side) for x in range(side)]
    found[first[np.logical_and.reduce(same)]] = True
    return found


def _regions(labels: np.ndarray) -> np.ndarray:
    """The number of the connected region, side by side or above each other, that each pixel is in: (H,W)."""
    number = np.arange(labels.size).reshape(labels.shape)
    beside, below = labels[:, 1:] == labels[:, :-1], labels[1:] == labels[:-1]
    first = np.concatenate([number[:, :-1][beside], number[:-1][below]])
    second = np.concatenate([number[:, 1:][beside], number[1:][below]])
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(labels.size, labels.size))
    return connected_components(graph, directed=False)[1].reshape(labels.shape)
