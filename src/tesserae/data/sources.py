"""Where data come from: what a prepared set remembers of it, what a raw folder shows, what `highres` names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tesserae.errors import TesseraeError
from tesserae.params import Params, PrepareParams
from tesserae.scenes.names import SEGMENT_PALETTE

SCENES, HELD_OUT = "scenes", "held_out"  # what highres.*.layout may name; all else is a path
MADE = "made.json"  # in the prepared set
_NO_MATTER = ("max_rejected",)  # it decides whether there is a set, not what is in it


def write_made(folder: Path, params: PrepareParams, seed: int, scenes: bool) -> None:
    """Note in a prepared set its parameters, and whether its pictures are the built-in scenes."""
    values = {"prepare": params.model_dump(), "seed": seed, "scenes": scenes}
    (folder / MADE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_made(folder: Path) -> dict[str, Any]:
    """What `write_made` noted; {} where there is no set, or one of an older version."""
    try:
        values = json.loads((folder / MADE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise TesseraeError(f"{folder.name}/{MADE} is damaged: run dvc repro prepare.") from None
    return values if isinstance(values, dict) else {}


def check_prepared(folder: Path, params: Params) -> None:
    """Raise TesseraeError where the prepared set in `folder` was made with other parameters than these."""
    made = read_made(folder).get("prepare", {})
    for key, wanted in params.prepare.model_dump().items():
        if key in made and key not in _NO_MATTER and made[key] != wanted:
            raise TesseraeError(f"{folder.name}/ was made with prepare.{key} = {made[key]!r}, and the parameters "
                                f"have {wanted!r}: run dvc repro prepare.")


def are_scenes(folder: Path) -> bool:
    """Whether a raw folder holds the built-in scenes: its first picture has a depth, and a mask in their colours."""
    try:
        with (folder / "metadata.jsonl").open(encoding="utf-8") as file:
            row = json.loads(file.readline())
        with Image.open(folder / row["segmentation_file_name"]) as mask:
            palette = mask.getpalette("RGB") or []
    except (OSError, ValueError, KeyError, TypeError):
        return False
    theirs = [value for colour in SEGMENT_PALETTE for value in colour]
    return "depth_file_name" in row and palette[:len(theirs)] == theirs


def layout_files(place: Path, key: str = "the layout of highres") -> list[Path]:
    """The picture that `place` is, or those of a folder, sorted; names that begin with a dot are left out.

    Raises TesseraeError, which names the `key` that names the place, where there is none.
    """
    if not place.is_dir():
        return [place]
    paths = sorted(path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise TesseraeError(f"{place} holds no picture: put some there, or change {key}.")
    return paths
