"""The code of a notebook's cells, without what a notebook server writes beside it.

Saving a notebook rewrites ids, metadata, key order, outputs and counts of executions. Stages depend on what computes:
the code cells, in their order. Text cells and empty cells compute nothing.

    python -m tesserae.source_code.notebooks notebooks/*.ipynb          names those that hold outputs
    python -m tesserae.source_code.notebooks --strip notebooks/*.ipynb  takes the outputs out, for a commit
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tesserae.errors import TesseraeError
from tesserae.files import write_atomically

INJECTED = {"params_file", "target", "overrides"}  # assigned in the cell `parameters`; a stage gives its own values


class NotebookError(TesseraeError, ValueError):
    """A file is no notebook."""


def read_notebook(path: str | Path) -> dict[str, Any]:
    """The notebook, as JSON gives it. Raises NotebookError."""
    path = Path(path)
    named = f"{path.parent.name}/{path.name}"
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        [_source(cell) for cell in notebook["cells"]]
    except OSError as error:
        raise NotebookError(f"{named} cannot be read ({error.strerror}): git checkout {named} brings back the "
                            "committed one.") from None
    except (ValueError, KeyError, TypeError):
        raise NotebookError(f"{named} is no notebook of version 4: git checkout {named} brings back the committed "
                            "one.") from None
    return notebook


def code_of_notebook(notebook: dict[str, Any]) -> str:
    """The code cells as one text, each under a line "# %%" that has the cell's tags.

    Empty cells are left out, and so are the values that the cell tagged `parameters` gives to `params_file`,
    `target` and `overrides`.
    """
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        tags = sorted(cell.get("metadata", {}).get("tags", ()))
        source = _source(cell)
        if "parameters" in tags:
            source = _without_injected(source)
        elif not source:
            continue
        cells.append(" ".join(["# %%", *tags]) + f"\n{source}\n")
    return "\n".join(cells)


def has_results(notebook: dict[str, Any]) -> bool:
    """Whether a cell has outputs, or the count of an execution."""
    return any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


def stripped(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook without outputs and counts of executions."""
    empty = {"outputs": [], "execution_count": None}
    return notebook | {"cells": [cell | empty if cell["cell_type"] == "code" else cell for cell in notebook["cells"]]}


def _source(cell: dict[str, Any]) -> str:
    """A cell's text, which the format allows to be one string or a list of lines."""
    return "".join(cell["source"]).replace("\r\n", "\n").rstrip()


def _without_injected(source: str) -> str:
    with suppress(SyntaxError):
        lines = source.splitlines()
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and _is_literal(statement.value) and all(
                    isinstance(name, ast.Name) and name.id in INJECTED for name in statement.targets):
                lines[statement.lineno - 1:statement.end_lineno] = [""] * (
                    statement.end_lineno - statement.lineno + 1)
        return "\n".join(line for line in lines if line)
    return source


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 where a notebook holds outputs and they are not taken out."""
    parser = argparse.ArgumentParser("python -m tesserae.source_code.notebooks", description="Outputs in notebooks.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--strip", action="store_true", help="take the outputs out")
    options = parser.parse_args(arguments)
    try:
        found = [path for path in options.notebooks if has_results(read_notebook(path))]
        if options.strip:
            for path in found:
                text = json.dumps(stripped(read_notebook(path)), indent=1, ensure_ascii=False)
                write_atomically(path, f"{text}\n".encode())
            return 0
    except TesseraeError as error:
        print(error, file=sys.stderr)
        return 1
    if found:
        named = " ".join(map(str, found))
        print(f"Notebooks are committed without outputs: python -m tesserae.source_code.notebooks --strip {named}",
              file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
