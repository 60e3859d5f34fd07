"""Code maps: the whole set encoded once, so that stage 2 never runs the encoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tesserae.errors import TesseraeError, writing

VIEWS = 2  # as it is, and mirrored
_KEY = "tesserae"  # one entry of metadata: several are written in any order, and the file's hash changes


class CodesError(TesseraeError, ValueError):
    """The code maps are missing, damaged, or not what the transformer needs."""


class CodeMaps:
    """One split of the set as codes.

    indices: (N,V,h,w) int32 in [0, codebook_size); V = 2 views, as it is and mirrored, or V = 1.
    labels: (N,) int64 or None; class_names: the words for them, [] without.
    vqgan: fingerprint of the VQGAN that encoded.
    """

    def __init__(self, indices: Tensor, labels: Tensor | None, class_names: Sequence[str], codebook_size: int,
                 vqgan: str = "") -> None:
        _check(indices, labels, class_names, codebook_size)
        self.indices, self.labels = indices, labels
        self.class_names, self.codebook_size, self.vqgan = list(class_names), codebook_size, vqgan

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
            return cls(tensors["indices"], tensors.get("labels"), **about)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CodesError(f"{path} is damaged or another version's ({reason}): "
                             "run dvc repro codebook.") from None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        """(h,w) of a map."""
        return tuple(self.indices.shape[-2:])

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change with any code, label or class name."""
        digest = hashlib.blake2b(self.indices.contiguous().numpy().tobytes(), digest_size=16)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().tobytes())
        digest.update(json.dumps([self.class_names, self.codebook_size, list(self.indices.shape)]).encode())
        return digest.hexdigest()


def save_codes(folder: str | Path, split: str, indices: Tensor, labels: Tensor | None,
               class_names: Sequence[str], codebook_size: int, vqgan: str = "") -> Path:
    """Write one split for `CodeMaps.load`; arguments as CodeMaps' attributes. Equal codes give equal bytes.

    Raises CodesError where indices, labels and names do not fit together.
    """
    labels = None if labels is None else labels.long().contiguous()
    maps = CodeMaps(indices.to(torch.int32).contiguous(), labels, class_names, codebook_size, vqgan)
    tensors = {"indices": maps.indices} | ({} if maps.labels is None else {"labels": maps.labels})
    about = {"class_names": maps.class_names, "codebook_size": codebook_size, "vqgan": vqgan}
    path = _path(folder, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with writing(path):
        save_file(tensors, part, {_KEY: json.dumps(about, sort_keys=True)})
    os.replace(part, path)
    return path


def _path(folder: str | Path, split: str) -> Path:
    return Path(folder) / f"{split}.safetensors"


def _check(indices: Tensor, labels: Tensor | None, class_names: Sequence[str], codebook_size: int) -> None:
    if indices.ndim != 4 or not indices.numel() or indices.shape[1] > VIEWS:
        raise CodesError(f"indices have the shape {tuple(indices.shape)}; (pictures, views, h, w) with at "
                         f"least one picture and 1 or {VIEWS} views is needed.")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= codebook_size:
        raise CodesError(f"codes run from {low} to {high}; a codebook of {codebook_size} has "
                         f"0 to {codebook_size - 1}.")
    if labels is None:
        return
    if labels.shape != (len(indices),) or not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise CodesError(f"labels of shape {tuple(labels.shape)} do not fit {len(indices)} pictures in "
                         f"{len(class_names)} classes.")
