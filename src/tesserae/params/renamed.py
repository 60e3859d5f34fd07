"""Names that keys had in earlier versions: files with them still run, and a note says the new ones."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesserae.params.types import ParamsError

# by block; * is any name
RENAMED: dict[str, dict[str, str]] = {
    "vqgan.*": {"perceptual_share": "perceptual_fraction"},
    "codebook.*": {"views": "num_images"},
    "transformer.*": {"processes": "strategy"},
    "sample.*": {"measured": "num_eval_samples", "elsewhere": "condition_image", "layouts": "num_conditions"},
    "highres.*": {"layout": "conditions_from"},
    "evaluation": {"bank": "max_train_images"},
}
_printed: set[str] = set()


def with_new_names(values: Mapping[str, Any], origin: str | Path) -> dict[str, Any]:
    """The values under the names of this version; prints one note, once, where a name is an old one.

    Raises ParamsError for a key that is there under both names.
    """
    found: dict[str, Any] = dict(values)
    notes: dict[str, str] = {}  # each old name once, whatever blocks have it
    for place, names in RENAMED.items():
        kind, _, every = place.partition(".")
        block = found.get(kind)
        if not isinstance(block, Mapping):
            continue
        if every:
            found[kind] = {name: _renamed(each, names, f"{kind}.{name}", origin) for name, each in block.items()}
            blocks = list(block.values())
        else:
            found[kind] = _renamed(block, names, kind, origin)
            blocks = [block]
        notes |= {f"{place}.{old}": new for old, new in names.items()
                  if any(isinstance(each, Mapping) and old in each for each in blocks)}
    note = (f"{origin} has keys of an earlier version, which still work: "
            + ", ".join(f"{old} is {new} now" for old, new in notes.items()) + ".")
    if notes and note not in _printed:
        _printed.add(note)
        print(note, file=sys.stderr)
    return found


def _renamed(block: Any, names: Mapping[str, str], place: str, origin: str | Path) -> Any:
    if not isinstance(block, Mapping):
        return block
    for old, new in names.items():
        if old in block and new in block:
            raise ParamsError(f"{origin}: {place} has {old} and {new}, which are the earlier and the present name of "
                              f"one key; keep {new}.")
    return {names.get(key, key) if isinstance(key, str) else key: value for key, value in block.items()}
