"""Code maps: the whole set encoded once, so that stage 2 never runs the encoder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.files import replacing

VIEWS = 2  # as it is, and mirrored
_KEY = "tesserae"  # one entry of metadata: several are written in any order, and the file's hash changes


class CodesError(TesseraeError, ValueError):
    """The code maps are missing, damaged, or not what the transformer needs."""


class CodeMaps:
    """One split of the set as codes.

    indices: (N,V,h,w) int32 in [0, codebook_size); V = 2 views, as it is and mirrored, or V = 1.
    labels: (N,) int64 or None; class_names: the words for them, [] without.
    origin: fingerprints of the VQGAN that encoded, as "vqgan", and of the split's pictures, as "pictures"; {} where
    they are not known, as of files of an older version.
    """

    def __init__(self, indices: Tensor, labels: Tensor | None, class_names: Sequence[str], codebook_size: int,
                 origin: Mapping[str, str] | None = None) -> None:
        _check(indices.shape, [indices.numpy()], labels, class_names, codebook_size)
        self.indices, self.labels = indices, labels
        self.class_names, self.codebook_size, self.origin = list(class_names), codebook_size, dict(origin or {})

    @classmethod
    def load(cls, folder: str | Path, split: str) -> CodeMaps:
        """Open `folder`/<split>.safetensors; split is "train" or "validation". Raises CodesError."""
        path = _path(folder, split)
        if not path.is_file():
            raise CodesError(f"{path} does not exist: run dvc repro codebook first.")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads(file.metadata()[_KEY])
            about.pop("vqgan", None)  # an older version's fingerprint, of the weights' file
            checksum = about.pop("checksum", None)
            maps = cls(tensors["indices"], tensors.get("labels"), **about)
            if checksum not in (None, maps.fingerprint):
                raise ValueError("its codes do not have the checksum that they were saved with")
            return maps
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise CodesError(f"{path} is damaged or another version's ({reason}): remove it, then run dvc checkout "
                             f"codes/{path.parent.name}, or dvc repro codebook@{path.parent.name}.") from None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        """(h,w) of a map."""
        return tuple(self.indices.shape[-2:])

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change with any code, label or class name."""
        return _fingerprint([self.indices.contiguous().numpy()], self.indices.shape, self.labels, self.class_names,
                            self.codebook_size)


def save_codes(folder: str | Path, split: str, indices: Tensor | Sequence[np.ndarray], labels: Tensor | None,
               class_names: Sequence[str], codebook_size: int, origin: Mapping[str, str] | None = None) -> Path:
    """Write one split for `CodeMaps.load`; arguments as CodeMaps' attributes. Equal codes give equal bytes.

    indices may come in parts, (n,V,h,w) arrays one after the other: where those are mapped from files, memory holds
    none of them whole. Raises CodesError where indices, labels and names do not fit together.
    """
    parts = [indices.numpy()] if isinstance(indices, Tensor) else list(indices)
    parts = [part.astype("<i4", order="C", copy=False) for part in parts]
    shape = (sum(map(len, parts)), *(parts[0].shape[1:] if parts else ()))
    _check(shape, parts, labels, class_names, codebook_size)
    about = {"class_names": list(class_names), "codebook_size": codebook_size, "origin": dict(origin or {}),
             "checksum": _fingerprint(parts, shape, labels, class_names, codebook_size)}
    tensors: dict[str, tuple[str, tuple[int, ...], Sequence[np.ndarray]]] = {}
    if labels is not None:
        tensors["labels"] = ("I64", tuple(labels.shape), [labels.numpy().astype("<i8", order="C")])
    tensors["indices"] = ("I32", shape, parts)
    path = _path(folder, split)
    with replacing(path) as aside, aside.open("wb") as file:
        file.write(_header(tensors, {_KEY: json.dumps(about, sort_keys=True)}))
        for _, _, arrays in tensors.values():
            for array in arrays:
                file.write(array.data)  # tofile does not report why it fails
    return path


def _fingerprint(parts: Sequence[np.ndarray], shape: Sequence[int], labels: Tensor | None,
                 class_names: Sequence[str], codebook_size: int) -> str:
    """Of maps that come in parts (n,V,h,w) int32, together of that shape."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    if labels is not None:
        digest.update(labels.long().contiguous().numpy())  # as the file has them
    digest.update(json.dumps([list(class_names), codebook_size, list(shape)]).encode())
    return digest.hexdigest()


def _header(tensors: Mapping[str, tuple[str, tuple[int, ...], Sequence[np.ndarray]]], about: dict[str, str]) -> bytes:
    """The head of a safetensors file: its length, then JSON with the range of each tensor's bytes.

    The library writes tensors that are in memory; the longest numbers come first in a file, as it has them.
    """
    described: dict[str, object] = {"__metadata__": about}
    end = 0
    for name, (kind, shape, arrays) in tensors.items():
        begin, end = end, end + sum(array.nbytes for array in arrays)
        described[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _path(folder: str | Path, split: str) -> Path:
    return Path(folder) / f"{split}.safetensors"


def _check(shape: Sequence[int], parts: Sequence[np.ndarray], labels: Tensor | None, class_names: Sequence[str],
           codebook_size: int) -> None:
    """Raise CodesError unless the parts (n,V,h,w) of all these maps, the labels and the names fit together."""
    if len(shape) != 4 or not math.prod(shape) or shape[1] > VIEWS:
        raise CodesError(f"indices have the shape {tuple(shape)}; (pictures, views, h, w) with at "
                         f"least one picture and 1 or {VIEWS} views is needed.")
    low, high = min(int(part.min()) for part in parts), max(int(part.max()) for part in parts)
    if low < 0 or high >= codebook_size:
        raise CodesError(f"codes run from {low} to {high}; a codebook of {codebook_size} has "
                         f"0 to {codebook_size - 1}.")
    if labels is None:
        return
    if labels.shape != (shape[0],) or not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise CodesError(f"labels of shape {tuple(labels.shape)} do not fit {shape[0]} pictures in "
                         f"{len(class_names)} classes.")
