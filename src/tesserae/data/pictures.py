"""The prepared pictures, as a trainer reads them."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tesserae.data.palette import Colour, LegendEntry, colours_of, legend
from tesserae.data.values import COLOUR, MASKS, Held, coloured, is_mask, read_columns
from tesserae.errors import TesseraeError

COLUMNS = ("image", "label", "path", "sha")  # all others are paired pictures
IN_MEMORY = 1 << 30  # bytes
AT_ONCE = 1024  # pictures that are looked at together
Form = Literal["raw", "colour", "deep"]  # of a column's pictures, see `Pictures.batch`


class PicturesError(TesseraeError, ValueError):
    """The prepared set is missing or is not one."""


class Pictures:
    """One split of the prepared set.

    labels: (N,) int64, None where there are no classes. class_names: the words for them. size: pixels a side.
    held: by column, what its files are and their scale; {} where the set was made by an older version.
    A column that takes fewer bytes than `hold` is decoded at its first use and kept; others for each batch.
    """

    def __init__(self, dataset, hold: int = IN_MEMORY, held: Mapping[str, Held] | None = None) -> None:
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
        self.held = dict(held or {})
        self._hold = hold
        self._held: dict[tuple[str, str], Tensor] = {}  # decoded columns, where they fit
        self._indices: dict[str, list[int]] = {}  # of masks, by column

    @classmethod
    def load(cls, folder: str | Path, split: str, hold: int = IN_MEMORY) -> Pictures:
        """Open `folder`, a prepared set, at "train" or "validation". Raises PicturesError."""
        import datasets

        place = Path(folder) / split
        if not place.is_dir():
            raise PicturesError(f"{place} does not exist: run dvc repro prepare first.")
        try:
            return cls(datasets.load_from_disk(str(place)), hold, read_columns(Path(folder)))
        except (OSError, ValueError, KeyError, TypeError) as error:
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

    def batch(self, indices: Sequence[int] | np.ndarray, column: str = "image", form: Form = "raw") -> Tensor:
        """A column's pictures by their indices.

        raw: (B,3,H,W) uint8 of pictures in colour, (B,1,H,W) uint8 of masks (indices) and of paired pictures in
        grey; colour: (B,3,H,W) uint8 of any of them; deep: (B,1,H,W) int32 in 0 to 65,535, whatever the bits of the
        file.
        """
        chosen = [int(index) for index in indices]
        key = (column, form)
        if key not in self._held and self._decode(column, 0, form).nbytes * len(self) < self._hold:
            self._held[key] = self._gather(range(len(self)), column, form)
        if key in self._held:
            return self._held[key][torch.tensor(chosen, dtype=torch.int64)]
        return self._gather(chosen, column, form)

    def find_coloured(self, column: str) -> str | None:
        """The name of a picture of this column in which red, green and blue differ; None where all are grey.

        Of sets by older versions, which do not say so, some pictures are looked at.
        """
        if column in self.held:
            return self.held[column].first.get(COLOUR)
        for number in spread(AT_ONCE, len(self)):
            picture = _opened(self._table.column(column)[number])
            grey = picture.mode in ("1", "L") or picture.mode.startswith("I")
            if not grey and coloured(np.asarray(picture.convert("RGB"))):
                return self.paths[number] or f"picture {number}"
        return None

    def check_column(self, column: str) -> None:
        """Raise PicturesError where there is no such column of pictures."""
        if column != "image" and column not in self.paired:
            there = ", ".join(["image", *self.paired])
            raise PicturesError(f"The prepared set has no column {column!r} ({there} are there): name another, or "
                                f"pair the pictures by {column}_file_name in metadata.jsonl and prepare them again.")

    def mask_indices(self, column: str, key: str = "") -> list[int]:
        """The indices that occur in a column of masks, sorted; masks are opened one by one.

        key: the parameter that names the column, for the sentence. Raises PicturesError where it holds no masks.
        """
        if column not in self._indices:
            self.check_column(column)
            kinds = ("P", "L") if is_mask(column) else ("P",)  # prepared as indices, or with a palette

            def found_in(place: int) -> np.ndarray | None:
                mask = _opened(cells[place])
                return np.flatnonzero(mask.histogram()) if mask.mode in kinds else None

            cells, found = self._table.column(column), np.zeros(256, dtype=bool)
            for start in range(0, len(self), AT_ONCE):
                for each in self._pool.map(found_in, range(start, min(start + AT_ONCE, len(self)))):
                    if each is None:
                        raise PicturesError(self._no_masks(column, key))
                    found[each] = True
            self._indices[column] = np.flatnonzero(found).tolist()
        return self._indices[column]

    def own_palette(self, column: str) -> list[Colour]:
        """The colours that the first mask of a column has for its indices; [] where it has none."""
        return _own_palette(_opened(self._table.column(column)[0]))

    def _no_masks(self, column: str, key: str) -> str:
        named = f"{key} = {column!r}" if key else f"The column {column!r}"
        there = [name for name in self.paired if is_mask(name)]
        remedy = f"name {' or '.join(there)}" if there else (
            "pair masks with the pictures, by segmentation_file_name in metadata.jsonl for instance, and prepare "
            "them again")
        return (f"{named} holds no masks, which view: segmentation reads: {remedy} (columns with one of "
                f"{', '.join(MASKS)} in their name are kept as indices).")

    @property
    def paired(self) -> list[str]:
        """Names of the paired columns."""
        return [name for name in self._table.column_names if name not in COLUMNS]

    def look(self, column: str, indices: Sequence[int] | np.ndarray) -> Tensor:
        """A paired column made visible, (B,3,H,W) uint8: maps of indices in colours, depth in grey."""
        cells = self._table.column(column)
        opened = [_opened(cells[int(index)]) for index in indices]
        if is_mask(column):
            found = [self._colours(column, opened)[np.asarray(each)] for each in opened]
        else:
            found = [_visible(each) for each in opened]
        return torch.from_numpy(np.stack(found).transpose(0, 3, 1, 2).copy())

    def legend(self, column: str, indices: Sequence[int] | np.ndarray) -> list[LegendEntry]:
        """The indices of some masks with the colours that `look` gives them; [] for a column of something else."""
        if not is_mask(column):
            return []
        cells = self._table.column(column)
        opened = [_opened(cells[int(index)]) for index in indices]
        counts = np.sum([each.histogram() for each in opened], axis=0)
        return legend(dict(enumerate(counts.tolist())), self._colours(column, opened).tolist())

    def _colours(self, column: str, masks: Sequence[Image.Image]) -> np.ndarray:
        """(256,3) uint8 for these masks: of the column's palette where that tells their indices apart."""
        used = np.flatnonzero(np.sum([each.histogram() for each in masks], axis=0)).tolist()
        return np.array(colours_of(used, self.own_palette(column)), dtype=np.uint8)

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

    def _decode(self, column: str, index: int, form: Form) -> np.ndarray:
        """(c,H,W) uint8 or, deep, int32."""
        picture = _opened(self._table.column(column)[index])
        if form == "deep":
            values = np.asarray(picture if picture.mode.startswith("I") else picture.convert("L"), np.int32)
            return (values if picture.mode.startswith("I") else values * 257)[None]
        if form == "colour" or column == "image" or picture.mode not in ("P", "L", "1"):
            return np.asarray(_visible(picture)).transpose(2, 0, 1)
        return np.asarray(picture if picture.mode == "P" else picture.convert("L"), np.uint8)[None]

    def _gather(self, indices: Sequence[int], column: str, form: Form) -> Tensor:
        first = self._decode(column, indices[0], form)
        images = np.empty((len(indices), *first.shape), dtype=first.dtype)

        def place(position: int) -> None:
            images[position] = self._decode(column, indices[position], form)

        list(self._pool.map(place, range(len(indices))))
        return torch.from_numpy(images)


def _opened(cell) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(cell["bytes"].as_buffer()))
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # PIL's decoders raise any of these
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise PicturesError(f"A picture of the prepared set is damaged ({reason}): remove prepared/, then run dvc "
                            "checkout prepared, or dvc repro prepare.") from None
    return picture


def _own_palette(mask: Image.Image) -> list[Colour]:
    values = mask.getpalette("RGB") if mask.mode == "P" else None
    return [tuple(values[place:place + 3]) for place in range(0, len(values), 3)] if values else []


def _visible(picture: Image.Image) -> np.ndarray:
    """(H,W,3) uint8 to look at."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) // 257).astype(np.uint8))
    return np.asarray(picture.convert("RGB"))


def spread(count: int, total: int) -> list[int]:
    """At most `count` indices below `total`, evenly apart: a set is ordered by folder, its first pictures alike."""
    count = min(count, total)
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]
