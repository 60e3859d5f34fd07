"""Which training a checkpoint belongs to: equal parameters, data and code, or training does not go on from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tesserae.source_code import code_of

__all__ = ["INPUTS", "PACE", "checkpoint_folder", "code_of", "fingerprint", "fingerprint_inputs"]

# Parameters that say how long and how often, not what is learned: a change of these goes on from a checkpoint.
PACE = ("steps", "max_seconds", "log_every", "sample_every", "eval_every", "eval_images", "checkpoint_every")
INPUTS = "fingerprint.json"  # beside the checkpoints: what their fingerprint is made of
HEX_DIGITS = 16


def fingerprint(values: Any) -> str:
    """A short hash of JSON-like values: equal values, equal fingerprints, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:HEX_DIGITS]


def fingerprint_inputs(block: Any, **others: Any) -> dict[str, str]:
    """What decides a training's result, by name: the keys of its part of params.yaml but PACE, and `others`."""
    values = {name: value for name, value in block.model_dump().items() if name not in PACE} | others
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}


def checkpoint_folder(root: Path, name: str, inputs: Mapping[str, str], log: Callable[[str], None] = print) -> Path:
    """Where the training with these inputs keeps its checkpoints: root/checkpoints/<name>-<fingerprint>.

    Where only trainings with other inputs left some, a message names what differs from the latest of those.
    """
    folder = root / "checkpoints" / f"{name}-{fingerprint(inputs)}"
    if not _has_checkpoint(folder):
        candidates = folder.parent.glob(f"{name}-{'?' * HEX_DIGITS}")
        others = [path for path in candidates if path != folder and _has_checkpoint(path)]
        if others:
            latest = max(others, key=lambda path: path.stat().st_mtime)
            log(f"{name}: {_difference(inputs, latest)} than for the checkpoints in {latest.name}, so training "
                "starts afresh; those stay where they are.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INPUTS).write_text(json.dumps(dict(inputs), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("step-*.json"))


def _difference(inputs: Mapping[str, str], other: Path) -> str:
    """Which inputs differ, in words."""
    try:
        known = json.loads((other / INPUTS).read_text(encoding="utf-8"))
        names = sorted(name for name in {*inputs, *known} if inputs.get(name) != known.get(name))
    except (OSError, ValueError, AttributeError):
        names = []
    if not names:
        return "parameters, data or code are other ones"
    return f"{', '.join(names)} {'are other ones' if len(names) > 1 else 'is another one'}"
