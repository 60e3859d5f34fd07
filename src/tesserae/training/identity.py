"""Which training a checkpoint belongs to: equal parameters, data and code, or it is not gone on from."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tesserae.training.checkpoints import fingerprint, steps_in

# Parameters that say how long and how often, not what is learned: a change of these goes on from a checkpoint.
PACE = ("steps", "max_seconds", "log_every", "sample_every", "eval_every", "eval_images", "checkpoint_every")
FACTS = "facts.json"
PACKAGE = Path(__file__).parent.parent


def facts_of(block: Any, **others: Any) -> dict[str, str]:
    """What decides a training's result, by name: the keys of its part of params.yaml but PACE, and `others`."""
    values = {name: value for name, value in block.model_dump().items() if name not in PACE} | others
    return {name: json.dumps(value, sort_keys=True, default=str) for name, value in values.items()}


def code_of(*files: str) -> str:
    """A hash of what files of this package compute, named as "models/vqgan.py", or of a folder's, "data/views".

    It does not change with comments, docstrings, layout or what is said in messages. Words count where they
    select something: as keys, as arguments by name, in comparisons and as defaults.
    """
    digest = hashlib.sha256()
    for place in (PACKAGE / file for file in files):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            digest.update(ast.dump(_Wordless().visit(tree)).encode())
    return digest.hexdigest()[:16]


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


class _Wordless(ast.NodeTransformer):
    """Drops docstrings, and what is said in raised errors and in calls of `say`."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """A string that stands alone is a docstring."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Nothing is computed from what is said."""
        if isinstance(node.func, ast.Name) and (node.func.id == "say" or node.func.id.endswith("Error")):
            return ast.Call(node.func, [], [])
        return self.generic_visit(node)
