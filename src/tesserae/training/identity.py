"""Which training a checkpoint belongs to: equal parameters, data and code, or it is not gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tesserae.source_code import code_of
from tesserae.training.checkpoints import fingerprint, steps_in

__all__ = ["FACTS", "PACE", "checkpoint_folder", "code_of", "facts_of"]

# Parameters that say how long and how often, not what is learned: a change of these goes on from a checkpoint.
PACE = ("steps", "max_seconds", "log_every", "sample_every", "eval_every", "eval_images", "checkpoint_every")
FACTS = "facts.json"


def facts_of(block: Any, **others: Any) -> dict[str, str]:
    """What decides a training's result, by name: the keys of its part of params.yaml but PACE, and `others`."""
    values = {name: value for name, value in block.model_dump().items() if name not in PACE} | others
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}


def checkpoint_folder(root: Path, name: str, facts: Mapping[str, str], say: Callable[[str], None] = print) -> Path:
    """Where the training with these facts keeps its checkpoints: root/checkpoints/<name>-<hash of the facts>.

    Where only trainings with other facts left some, it is said which facts differ from the latest of those.
    """
    folder = root / "checkpoints" / f"{name}-{fingerprint(facts)}"
    if not steps_in(folder):
        others = [path for path in folder.parent.glob(f"{name}-{'?' * 16}") if path != folder and steps_in(path)]
        if others:
            latest = max(others, key=lambda path: path.stat().st_mtime)
            say(f"{name}: {_difference(facts, latest)} than for the checkpoints in {latest.name}, so training "
                "starts afresh; those stay where they are.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).write_text(json.dumps(dict(facts), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder


def _difference(facts: Mapping[str, str], other: Path) -> str:
    """Which facts differ, in words."""
    try:
        known = json.loads((other / FACTS).read_text(encoding="utf-8"))
        names = sorted(name for name in {*facts, *known} if facts.get(name) != known.get(name))
    except (OSError, ValueError, AttributeError):
        names = []
    if not names:
        return "parameters, data or code are other ones"
    return f"{', '.join(names)} {'are other ones' if len(names) > 1 else 'is another one'}"
