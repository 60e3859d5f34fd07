"""The lists of sources in dvc.yaml, which are derived: what each stage's notebook imports, see `source_code.graph`.

    python -m tesserae.pipeline.sources
"""

from __future__ import annotations

import re
from pathlib import Path

from tesserae.errors import TesseraeError, command
from tesserae.files import MARKER, find_root, write_atomically
from tesserae.source_code.graph import computing_modules, imported_modules, submodules
from tesserae.source_code.notebooks import code_of_notebook, read_notebook

STAGE = re.compile(r"  (\w+):")  # the line that begins a stage in dvc.yaml
NOTEBOOK = re.compile(r"\s+cmd: .* (notebooks/\w+\.ipynb)")
SOURCE = re.compile(r"(\s+)- src/")


class SourcesError(TesseraeError, ValueError):
    """A stage in dvc.yaml has no place for its sources."""


def sources_of(notebook: Path) -> list[str]:
    """Return the files that compute what a notebook does, relative to the root; a folder where all of it does."""
    modules = set(computing_modules(*imported_modules(code_of_notebook(read_notebook(notebook)))))
    paths = set()
    for module in modules:
        parts = module.split(".")
        parents = (".".join(parts[:length]) for length in range(2, len(parts)))
        whole = next((parent for parent in parents if submodules(parent) - {parent} <= modules), None)
        paths.add(_path(whole or module, whole is not None or len(submodules(module)) > 1))
    return sorted(path for path in paths if not any(path.startswith(f"{other}/") for other in paths))


def with_sources(pipeline: str, root: Path) -> str:
    """Return the text of dvc.yaml with the sources of each stage that runs a notebook. Raises SourcesError."""
    lines, stage, notebook, written = [], "", None, set()
    for line in pipeline.splitlines():
        if begins := STAGE.fullmatch(line):
            stage, notebook = begins[1], None
        if runs := NOTEBOOK.match(line):
            notebook = runs[1]
        source = SOURCE.match(line)
        if not source:
            lines.append(line)
        elif notebook and stage not in written:
            lines += [f"{source[1]}- {path}" for path in sources_of(root / notebook)]
            written.add(stage)
    stages = {name for name, text in re.findall(r"^  (\w+):\n((?:    .*\n|\n)+)", pipeline, re.MULTILINE)
              if "notebooks/" in text}
    if stages != written:
        raise SourcesError(f"{MARKER} names no source of {', '.join(sorted(stages - written))}: put a line with any "
                           "file below src/ among its deps, then run this again.")
    return "\n".join(lines) + "\n"


def _path(module: str, is_folder: bool) -> str:
    place = f"src/{module.replace('.', '/')}"
    return place if is_folder else f"{place}.py"


def main() -> None:
    """The command: rewrite the lists, and name the stages that run again."""
    with command():
        root = find_root()
        path = root / MARKER
        before = path.read_text(encoding="utf-8")
        after = with_sources(before, root)
        if after == before:
            print(f"{MARKER} lists what the notebooks import.")
        else:
            write_atomically(path, after.encode())
            print(f"{MARKER} lists what the notebooks import now: git diff {MARKER} shows what changed.")


if __name__ == "__main__":
    main()
