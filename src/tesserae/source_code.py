"""Which code computed something: equal code, equal results."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent


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
