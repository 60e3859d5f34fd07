"""Batches as a pure function of (seed, step, process): which pictures, how mirrored, how enlarged.

Nothing here has a state. So a run that was killed sees the same batches when it goes on, and one process or
four read the same global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def batch_indices(count: int, batch_size: int, step: int, seed: int, process: int = 0,
                  processes: int = 1) -> np.ndarray:
    """The pictures of one step on one process, (batch_size,) int64 in [0, count).

    Epochs are permutations of all pictures, laid end to end without an end. Step t reads the global batch
    [t B, (t + 1) B) of that sequence, B = batch_size * processes, and each process its own part of it.
    A batch may span epochs. Raises ValueError when there is no picture.
    """
    if count < 1:
        raise ValueError(f"a batch needs at least one picture, there are {count}")
    start = (step * processes + process) * batch_size
    positions = np.arange(start, start + batch_size)
    epochs, places = np.divmod(positions, count)
    chosen = np.empty(batch_size, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        chosen[here] = _permutation(count, epoch, seed)[places[here]]
    return chosen


def augment(images: Tensor, step: int, seed: int, indices: Sequence[int] | np.ndarray, flip: bool,
            zoom: float = 1.0, crop: int = 0, smooth: bool = True) -> Tensor:
    """Mirror, enlarge and cut pictures at random, (B,c,H,W) integers -> the same, (B,c,crop,crop) where cut.

    Half of the pictures are mirrored when `flip`; each is enlarged by a factor uniform in [1, zoom] and cut at a
    uniform place; `crop` cuts a square of so many pixels out, at a uniform place (0: the whole picture). All of it
    depends on seed, step and the picture's own index alone, not its place in a batch. smooth: whether values may
    be interpolated; else the nearest one is taken.
    """
    chance = _uniform(seed, step, indices)  # (B,6)
    if flip:
        mirrored = torch.from_numpy(chance[:, 0] < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if zoom > 1:
        images = _enlarge(images, 1 + (zoom - 1) * chance[:, 1], chance[:, 2:4], smooth)
    return _cut(images, crop, chance[:, 4:]) if crop and crop < images.shape[-1] else images


def to_unit(images: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 in [0, 255]; what lies outside is clipped."""
    return images.to(torch.float32).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4)
def _permutation(count: int, epoch: int, seed: int) -> np.ndarray:
    """The order of one epoch: Philox's raw stream is promised to stay, `Generator.permutation` is not."""
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(keys, kind="stable")


def _uniform(seed: int, step: int, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Six numbers in [0, 1) for each index, (B,6): the SplitMix64 hash of (seed, step, index, which)."""
    mixed = np.zeros((len(indices), 6), dtype=np.uint64)
    for part in (np.uint64(seed), np.uint64(step), np.asarray(indices, dtype=np.uint64)[:, None],
                 np.arange(6, dtype=np.uint64)):
        mixed = _splitmix(mixed ^ part)
    return (mixed >> np.uint64(11)) * 2.0**-53


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _enlarge(images: Tensor, scales: np.ndarray, places: np.ndarray, smooth: bool) -> Tensor:
    """Cut a window of 1 / scale of each side at places in [0, 1)^2 and bring it to full size."""
    share = 1 / scales
    theta = np.zeros((len(scales), 2, 3), dtype=np.float32)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = (2 * places - 1) * (1 - share)[:, None]  # the window stays inside the picture
    grid = F.affine_grid(torch.from_numpy(theta).to(images.device), list(images.shape), align_corners=False)
    cut = F.grid_sample(images.float(), grid, "bilinear" if smooth else "nearest", padding_mode="border",
                        align_corners=False)  # (B,c,H,W)
    return cut.round().to(images.dtype)  # between values that were there


def _cut(images: Tensor, side: int, places: np.ndarray) -> Tensor:
    """Squares of `side` pixels at places in [0, 1)^2: (B,c,H,W) -> (B,c,side,side)."""
    tops, lefts = (np.floor(places[:, axis] * (images.shape[2 + axis] - side + 1)).astype(int) for axis in (0, 1))
    return torch.stack([image[:, top:top + side, left:left + side]
                        for image, top, left in zip(images, tops, lefts)])
