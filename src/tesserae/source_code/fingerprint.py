"""A hash of what Python code computes: equal for equal code, whatever its words and whichever Python reads it."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from typing import Any

from tesserae.source_code.graph import computing_modules, source_of

MESSAGES = ("print", "log", "say", "warn")  # functions that, called for nothing but their effect, give a message


@cache
def code_of(*modules: str) -> str:
    """Return a hash of what these modules, "tesserae.training.vqgan" for instance, and all that they import compute.

    It does not change with comments, docstrings, layout or the words of messages, nor with what computes nothing,
    see `graph.NOT_COMPUTING`.
    """
    digest = hashlib.sha256()
    for module in computing_modules(*modules):
        digest.update(f"{module}\n{canonical(source_of(module).read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def canonical(source: str) -> str:
    """Return a text that is equal for sources that compute the same by the same code.

    Comments, layout, docstrings and the words of messages leave it as it is. Words count where they select something:
    as keys, as arguments by name, in comparisons and as defaults. `ast.dump` would change with the version of Python.
    """
    return _dumped(_Wordless().visit(ast.parse(source)))


def _dumped(node: Any) -> str:
    """A syntax tree as text, without its empty fields: newer versions of Python add some."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return f"{type(node).__name__}({','.join(f'{name}={_dumped(value)}' for name, value in fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_dumped, node))}]"
    return ascii(node)


class _Wordless(ast.NodeTransformer):
    """Drops docstrings, and the words of errors and of messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """A string that stands alone is a docstring; nothing is computed from a message."""
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return ast.Pass()
        if isinstance(value, ast.Call) and _name(value.func) in MESSAGES:
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """An error's words."""
        if _name(node.func).endswith("Error"):
            return ast.Call(node.func, [], [])
        return self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Python 3.12.0 and 3.12.1 put an empty text behind the last field of a format."""
        node.values = [each for each in node.values if not (isinstance(each, ast.Constant) and each.value == "")]
        return self.generic_visit(node)


def _name(function: ast.expr) -> str:
    """The last part of a function's name; "" of what has none."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
