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
IN_MEMORY = 1 << 30  # bytes
AT_ONCE = 1024  # pictures that are looked at together


class PicturesError(TesseraeError, ValueError):
    """The prepared set is missing or is not one."""


class Pictures:
    """One split of the prepared set.

    labels: (N,) int64, None where there are no classes. class_names: the words for them. size: pixels a side.
    A column that takes fewer bytes than `hold` is decoded at its first use and kept; others for each batch.
    """

    def __init__(self, dataset, hold: int = IN_MEMORY) -> None:
        names = dataset.column_names
        if "image" not in names or not len(dataset):
            raise PicturesError("The prepared set holds no pictures: run dvc repro prepare.")
        self._table = dataset.data
        self._column = dataset.data.column("image")  # struct<bytes, path>, memory-mapped
        self.labels: Tensor | None = None
        self.class_names: list[str] = []
        if "label" in names:
            self.labels = torch.from_numpy(np.asarray(dataset["label"], dtype=np.int64))
            self.class_names = list(dataset.features["label"].names)
        self.size: int = _opened(self._column[0]).width
        self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # PIL decodes without the lock
        self._hold = hold
        self._held: dict[tuple[str, bool], Tensor] = {}  # decoded columns, where they fit

    @classmethod
    def load(cls, folder: str | Path, split: str, hold: int = IN_MEMORY) -> Pictures:
        """Open `folder`, a prepared set, at "train" or "validation". Raises PicturesError."""
        import datasets

        place = Path(folder) / split
        if not place.is_dir():
            raise PicturesError(f"{place} does not exist: run dvc repro prepare first.")
        try:
            return cls(datasets.load_from_disk(str(place)), hold)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, TesseraeError):
                raise
            reason = " ".join(str(error).split())
            raise PicturesError(f"{place} is no prepared set ({reason}): run dvc repro prepare.") from None

    def __len__(self) -> int:
        return len(self._column)

    @cached_property
    def paths(self) -> list[str]:
        """Where each raw picture lay, "" where that is not known."""
        return self._table.column("path").to_pylist() if "path" in self._table.column_names else [""] * len(self)

    def batch(self, indices: Sequence[int] | np.ndarray, column: str = "image", deep: bool = False) -> Tensor:
        """A column's pictures by their indices.

        (B,3,H,W) uint8 of pictures in colour, (B,1,H,W) uint8 of masks (indices) and of paired pictures in grey;
        deep: (B,1,H,W) int32 in 0 to 65,535, whatever the bits of the file.
        """
        chosen = [int(index) for index in indices]
        key = (column, deep)
        if key not in self._held and self._decode(column, 0, deep).nbytes * len(self) < self._hold:
            self._held[key] = self._gather(range(len(self)), column, deep)
        if key in self._held:
            return self._held[key][torch.tensor(chosen, dtype=torch.int64)]
        return self._gather(chosen, column, deep)

    def check_column(self, column: str) -> None:
        """Raise PicturesError where there is no such column of pictures."""
        if column != "image" and column not in self.paired:
            there = ", ".join(["image", *self.paired])
            raise PicturesError(f"The prepared set has no column {column!r} ({there} are there): name another, or "
                                f"pair the pictures by {column}_file_name in metadata.jsonl and prepare them again.")

    def palette(self, column: str) -> list[tuple[int, int, int]]:
        """The colours of a mask's classes, as many as occur: of its own palette, else far apart ones."""
        pieces = (range(start, min(start + AT_ONCE, len(self))) for start in range(0, len(self), AT_ONCE))
        highest = max(int(self.batch(piece, column).max()) for piece in pieces)
        first = _opened(self._table.column(column)[0])
        own = first.getpalette("RGB") if first.mode == "P" else None
        colours = [tuple(own[3 * k:3 * k + 3]) for k in range(len(own) // 3)] if own else []
        return colours[:highest + 1] + [_apart(k) for k in range(len(colours), highest + 1)]

    @property
    def paired(self) -> list[str]:
        """Names of the paired columns."""
        return [name for name in self._table.column_names if name not in COLUMNS]

    def look(self, column: str, indices: Sequence[int] | np.ndarray) -> Tensor:
        """A paired column made visible, (B,3,H,W) uint8: maps of indices in colours, depth in grey."""
        cells = self._table.column(column)
        found = [_visible(_opened(cells[int(index)]), column) for index in indices]
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())

    def fingerprint_of(self, column: str = "image") -> str:
        """32 hex digits that change with any pixel of a column, any label or class name."""
        digest = hashlib.blake2b(digest_size=16)
        for chunk in self._table.column(column).chunks:
            for content in chunk.field("bytes"):
                digest.update(content.as_buffer())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """`fingerprint_of` the pictures."""
        return self.fingerprint_of()

    def _decode(self, column: str, index: int, deep: bool = False) -> np.ndarray:
        """(c,H,W) uint8 or, deep, int32."""
        picture = _opened(self._table.column(column)[index])
        if deep:
            values = np.asarray(picture if picture.mode.startswith("I") else picture.convert("L"), np.int32)
            return (values if picture.mode.startswith("I") else values * 257)[None]
        if column == "image" or picture.mode not in ("P", "L", "1"):
            return np.asarray(_visible(picture, column)).transpose(2, 0, 1)
        return np.asarray(picture if picture.mode == "P" else picture.convert("L"), np.uint8)[None]

    def _gather(self, indices: Sequence[int], column: str, deep: bool) -> Tensor:
        first = self._decode(column, indices[0], deep)
        images = np.empty((len(indices), *first.shape), dtype=first.dtype)

        def place(position: int) -> None:
            images[position] = self._decode(column, indices[position], deep)

        list(self._pool.map(place, range(len(indices))))
        return torch.from_numpy(images)


def _opened(cell) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"].as_buffer()))


def _apart(index: int) -> tuple[int, int, int]:
    """A colour far from that of the index before."""
    turns = index * 0.618 + np.array([0, 0.33, 0.67])
    return tuple((127.5 + 110 * np.cos(2 * np.pi * turns)).astype(int).tolist())


def _visible(picture: Image.Image, column: str) -> np.ndarray:
    """(H,W,3) uint8 to look at."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    elif picture.mode == "L" and is_mask(column):
        return np.array([_apart(index) for index in range(256)], np.uint8)[np.asarray(picture)]
    return np.asarray(picture.convert("RGB"))


def spread(count: int, total: int) -> list[int]:
    """At most `count` indices below `total`, evenly apart: a set is ordered by folder, its first pictures alike."""
    count = min(count, total)
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]
