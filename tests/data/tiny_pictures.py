"""A split of the prepared set made of a few pictures, with whatever columns a test needs."""

import io

import datasets
import numpy as np
from PIL import Image

from tesserae.data.pictures import Pictures

PALETTE = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def pictures_of(labels=None, names=(), **columns) -> Pictures:
    """columns: by name, arrays (H,W,3) uint8 of colours, (H,W) uint8 of grey, (H,W) uint16, or PIL images."""
    rows = {name: [as_png(each) for each in column] for name, column in columns.items()}
    features = {name: datasets.Image() for name in columns}
    if labels is not None:
        rows["label"], features["label"] = list(labels), datasets.ClassLabel(names=list(names))
    return Pictures(datasets.Dataset.from_dict(rows, features=datasets.Features(features)))


def as_png(picture) -> dict:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def painted(indices: np.ndarray, palette=PALETTE) -> Image.Image:
    """A mask with a palette of its own."""
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for colour in palette for value in colour])
    return picture


def smooth(count: int, side: int = 16, seed: int = 0) -> np.ndarray:
    """Pictures of soft blots, (count,side,side,3) uint8."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((side, side))) for each in coarse])
