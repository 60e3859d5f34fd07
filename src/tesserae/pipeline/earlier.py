"""What stages made that params.yaml no longer has: moved to earlier/, so that it does not lie among one's results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tesserae.errors import writing
from tesserae.params import Params
from tesserae.stage import KINDS, MODELS, stage_name

FOLDER = "earlier"
_STAGE = re.compile(rf"({'|'.join(KINDS)})-(.+)")


def stage_names(params: Params) -> set[str]:
    """The names of all stages that these parameters have, for instance "vqgan-image"."""
    return {"prepare"} | {stage_name(kind, target) for kind in KINDS if kind != "prepare"
                          for target in getattr(params, kind)}


def set_aside(root: Path, params: Params) -> list[str]:
    """Move reports, models, codes and samples of stages that `params` lacks to earlier/, under the same paths.

    Returns the paths that moved, relative to the root. Nothing is overwritten: a second one of a name gets a number.
    Raises TesseraeError where something cannot be moved.
    """
    stale = [path for path in _made_by_stages(root) if _stage_of(path.relative_to(root)) not in stage_names(params)]
    return [str(keep_earlier(root, path)) for path in stale]


def keep_earlier(root: Path, path: Path) -> Path:
    """Move a file or folder to earlier/ under its own path, numbered where there is one; returns its old path,
    relative to the root."""
    inside = path.relative_to(root)
    to = root / FOLDER / inside
    number = 1
    while to.exists() or to.is_symlink():
        number += 1
        to = root / FOLDER / inside.with_name(f"{inside.stem}-{number}{inside.suffix}")
    with writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    return inside


def moved_message(moved: Iterable[str]) -> str:
    """Return one line that names what moved."""
    moved = list(moved)
    named = ", ".join(moved[:4]) + (f" and {len(moved) - 4:,} more" if len(moved) > 4 else "")
    return f"params.yaml has no stage any more for {named}: moved to {FOLDER}/."


def _made_by_stages(root: Path) -> list[Path]:
    """The folders and notebooks that have a stage's name where stages write."""
    found = [*(root / "reports").glob("*-*"), *(root / "reports/notebooks").glob("*-*.ipynb"),
             *(root / "models").glob("*-*"), *(root / "codes").glob("*"), *(root / "samples").glob("*")]
    known = _outputs(root)
    return sorted(path for path in found if _stage_of(path.relative_to(root)) and (
        path.parts[-2] not in ("codes", "samples") or path.relative_to(root).as_posix() in known))


def _stage_of(inside: Path) -> str | None:
    """The stage that writes a path, by its name; None where no stage does."""
    place, name = inside.parts[0], inside.stem if inside.suffix == ".ipynb" else inside.name
    if place == "codes":
        return f"codebook-{name}"
    if place == "samples":
        return name if name.startswith("highres-") else f"sample-{name}"
    match = _STAGE.fullmatch(name)
    return name if match and (place == "reports" or match[1] in MODELS) else None


def _outputs(root: Path) -> set[str]:
    """The outputs that dvc.lock has, of stages that are no more, too: folders of other names may be a user's."""
    from ruamel.yaml import YAML

    try:
        lock: Any = YAML(typ="safe", pure=True).load((root / "dvc.lock").read_text(encoding="utf-8"))
        return {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", ())}
    except Exception:  # no lock yet, or half of one, which `tesserae.pipeline.repair` puts right
        return set()
