"""Checkpoints that a crash cannot spoil: written aside, flushed, renamed, checksummed, never unpickled.

A checkpoint is one safetensors file with every tensor of the training state, and a JSON file beside it with the
rest: step, checksum, history. The JSON is renamed into place last, so a checkpoint without it does not count.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tesserae.files import replacing


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Nested dicts and lists -> tensors by path, and the same nest with each tensor replaced by its path.

    Keys that are whole numbers survive: dicts become [[key, value], ...] in the nest.
    """
    if isinstance(tree, Tensor):
        return {prefix: tree.detach().cpu().contiguous().clone()}, {"tensor": prefix}
    if isinstance(tree, dict):
        # numbered, so that the paths of "a/b" and of "b" below "a" differ
        pairs = [(key, flatten(value, f"{prefix}/{n}.{key}")) for n, (key, value) in enumerate(tree.items())]
        nest: Any = {"dict": [[key, part] for key, (_, part) in pairs]}
    elif isinstance(tree, list | tuple):
        pairs = [(i, flatten(value, f"{prefix}/{i}")) for i, value in enumerate(tree)]
        nest = {"list": [part for _, (_, part) in pairs]}
    else:
        return {}, {"value": tree}
    return {path: tensor for _, (tensors, _) in pairs for path, tensor in tensors.items()}, nest


def unflatten(tensors: dict[str, Tensor], nest: Any) -> Any:
    """The inverse of `flatten`; tuples come back as lists."""
    (kind, content), = nest.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(tensors, part) for key, part in content}
    if kind == "list":
        return [unflatten(tensors, part) for part in content]
    return content


def save_checkpoint(folder: Path, step: int, state: dict, keep: int = 2) -> None:
    """Write `state` (nested dicts and lists of tensors and JSON values) as that step's.

    Of the steps before it the newest `keep` - 1 stay. Those after it go: they are left from a run with more
    `steps`, and neither the best model nor the last one beside them is theirs any longer. Raises
    DiskFullError on a full disk, with what was there before intact.
    """
    tensors, nest = flatten(state)
    body, head = _names(folder, step)
    for left in folder.glob(".step-*"):  # by a kill while it was written
        left.unlink(missing_ok=True)
    with replacing(head, flush=True) as head_file, replacing(body, flush=True) as body_file:
        save_file(tensors, body_file)
        record = {"step": step, "sha256": _checksum(body_file), "state": nest}
        head_file.write_text(json.dumps({**record, "self": _seal(record)}), encoding="utf-8")
    there = steps_in(folder)
    for old in {*there[:there.index(step) + 1][:-keep], *there[there.index(step) + 1:]}:
        for path in reversed(_names(folder, old)):
            path.unlink(missing_ok=True)


def load_checkpoint(folder: Path, at_most: int, log: Any = print) -> tuple[int, dict] | None:
    """The newest whole checkpoint of a step <= `at_most`: (step, state), or None. A message names a damaged one."""
    for step in reversed([step for step in steps_in(folder) if step <= at_most]):
        body, head = _names(folder, step)
        try:
            record = json.loads(head.read_text(encoding="utf-8"))
            if record.pop("self") != _seal(record) or record["step"] != step or record["sha256"] != _checksum(body):
                raise ValueError("its checksum does not match")
            return step, unflatten(load_file(body), record["state"])
        except Exception as error:
            reason = "it lacks " + str(error) if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            log(f"checkpoint {body.name} is damaged ({reason}); the one before it is used.")
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps that `folder` holds a checkpoint of, ascending."""
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob(f"step-{'[0-9]' * 8}.json"))


def _names(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"step-{step:08d}.safetensors", folder / f"step-{step:08d}.json"


def _seal(record: dict) -> str:
    """The checksum of the JSON part itself, which reading and writing again does not change."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
