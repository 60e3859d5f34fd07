"""The prepared pictures, as a trainer reads them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tesserae.data.decode import is_mask
from tesserae.errors import TesseraeError

COLUMNS = ("image", "label", "path", "sha")  # all others are paired pictures
IN_MEMORY = 1 << 30  # bytes of decoded pictures that are held; larger sets are decoded for each batch


class PicturesError(TesseraeError, ValueError):
    """The prepared set is missing or is not one."""


class Pictures:
    """One split of the prepared set.

    labels: (N,) int64, None where there are no classes. class_names: the words for them.
    paths: where each raw picture lay. size: pixels a side.
    """

    def __init__(self, dataset) -> None:
        names = dataset.column_names
        if "image" not in names or not len(dataset):
            raise PicturesError("The prepared set holds no pictures: run dvc repro prepare.")
        self._table = dataset.data
        self._column = dataset.data.column("image")  # struct<bytes, path>, memory-mapped
        self.paths: list[str] = list(dataset["path"]) if "path" in names else [""] * len(dataset)
        self.labels: Tensor | None = None
        self.class_names: list[str] = []
        if "label" in names:
            self.labels = torch.from_numpy(np.asarray(dataset["label"], dtype=np.int64))
            self.class_names = list(dataset.features["label"].names)
        first = self._decode(0)
        self.size: int = first.shape[0]
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # PIL decodes without the lock
        self._held = self._gather(range(len(self))) if first.nbytes * len(self) < IN_MEMORY else None

    @classmethod
    def load(cls, folder: str | Path, split: str) -> Pictures:
        """Open `folder`, a prepared set, at "train" or "validation". Raises PicturesError."""
        import datasets

        place = Path(folder) / split
        if not place.is_dir():
            raise PicturesError(f"{place} does not exist: run dvc repro prepare first.")
        try:
            return cls(datasets.load_from_disk(str(place)))
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, TesseraeError):
                raise
            reason = " ".join(str(error).split())
            raise PicturesError(f"{place} is no prepared set ({reason}): run dvc repro prepare.") from None

    def __len__(self) -> int:
        return len(self._column)

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures by their indices, (B,3,H,W) uint8."""
        chosen = [int(index) for index in indices]
        if self._held is not None:
            return self._held[torch.tensor(chosen, dtype=torch.int64)]
        return self._gather(chosen)

    @property
    def paired(self) -> list[str]:
        """Names of the paired columns."""
        return [name for name in self._table.column_names if name not in COLUMNS]

    def look(self, column: str, indices: Sequence[int] | np.ndarray) -> Tensor:
        """A paired column made visible, (B,3,H,W) uint8: maps of indices in colours, depth in grey."""
        cells = self._table.column(column)
        found = [_visible(_opened(cells[int(index)]), column) for index in indices]
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change with any pixel, label or class name."""
        digest = hashlib.blake2b(digest_size=16)
        for chunk in self._column.chunks:
            for content in chunk.field("bytes"):
                digest.update(content.as_buffer())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()

    def _decode(self, index: int) -> np.ndarray:
        return np.asarray(_opened(self._column[index]).convert("RGB"))  # (H,W,3)

    def _gather(self, indices: Sequence[int]) -> Tensor:
        images = np.empty((len(indices), 3, self.size, self.size), dtype=np.uint8)

        def place(position: int) -> None:
            images[position] = self._decode(indices[position]).transpose(2, 0, 1)

        list(self._pool.map(place, range(len(indices))))
        return torch.from_numpy(images)


def _opened(cell) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"].as_buffer()))


def _visible(picture: Image.Image, column: str) -> np.ndarray:
    """(H,W,3) uint8 to look at."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    elif picture.mode == "L" and is_mask(column):
        indices = np.asarray(picture).astype(np.float64)[..., None]  # a colour each, far apart from the last
        turns = indices * 0.618 + np.array([0, 0.33, 0.67])
        return (127.5 + 110 * np.cos(2 * np.pi * turns)).astype(np.uint8)
    return np.asarray(picture.convert("RGB"))


def spread(count: int, total: int) -> list[int]:
    """At most `count` indices below `total`, evenly apart: a set is ordered by folder, its first pictures alike."""
    count = min(count, total)
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]
