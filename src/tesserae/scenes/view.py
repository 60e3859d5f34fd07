"""The camera and the picture being drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tesserae.scenes.world import World

SKY, DISC, CLOUD, MOUNTAIN, SNOW, WATER, FOREST, GRASS, SAND = range(9)


@dataclass
class View:
    """A pinhole camera that looks ahead along z; x points right, y up.

    across: (W,) x / z of each column. up: (H,) (y - camera) / z of each row, falling. pixel: slope a pixel spans.
    """

    across: np.ndarray
    up: np.ndarray
    pixel: float

    @classmethod
    def of(cls, world: World, height: int, width: int) -> View:
        """The camera of a world for a picture of that many pixels."""
        columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
        rows = (np.arange(height, dtype=np.float32) + 0.5) / height
        return cls(columns / world.focal, (world.horizon - rows) / world.focal, 1 / (height * world.focal))


@dataclass
class Canvas:
    """colour: (3,H,W) linear RGB. segment: (H,W) uint8. distance: (H,W), infinite in the sky."""

    colour: np.ndarray
    segment: np.ndarray
    distance: np.ndarray


def column(colour) -> np.ndarray:
    """An RGB triple, (3,1,1), to go with planes."""
    return np.asarray(colour, np.float32)[:, None, None]


def blend(below: np.ndarray, above: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Linear interpolation."""
    return below + (above - below) * share
