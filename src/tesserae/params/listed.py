"""Keys that dvc.yaml lists: DVC reads params.yaml itself, and stops at one that the file leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesserae.params.compose import sections
from tesserae.params.defaults import with_blocks
from tesserae.params.project import Params
from tesserae.params.reading import check_params, parsed
from tesserae.params.types import ParamsError

_NESTED = (("evaluation", "inception_weights"), ("evaluation", "reference"))


def with_listed_keys(text: str, origin: str | Path) -> tuple[str, list[str]]:
    """A file's text with the top-level keys that it lacks at its end, and their names.

    Files of earlier versions lack a few, and short files many; what stands in them stays as it is. Raises ParamsError
    for a block that lacks a key which dvc.yaml lists, and for values that are not allowed.
    """
    values: Any = parsed(text, origin)
    check_params(values, origin)
    inner = [(kind, key) for kind, key in _NESTED if kind in values and key not in values[kind]]
    inner += [(f"transformer.{name}", key) for name, block in values.get("transformer", {}).items()
              for key in ("vqgan", "condition") if isinstance(block, Mapping) and key not in block]
    if inner:
        raise ParamsError(f"{origin} leaves out {'.'.join(inner[0])}, which dvc.yaml lists; make preset "
                          "NAME=params.yaml writes the file out whole.")
    missing = [key for key in Params.model_fields if key not in values]
    lines = [line for key in missing for line in ["", *sections(with_blocks(values), key)]]
    return (text.rstrip("\n") + "\n" + "\n".join(lines) + "\n" if missing else text), missing
