"""`make own`: params.yaml for one's own pictures, from a preset; the pictures stay where they are.

    FROM=path/to/pictures PRESET=own-64 python -m tesserae.pipeline.own

PAIR="segmentation=masks" pairs the pictures first, see `tesserae.data.pair`.
"""

from __future__ import annotations

import os
from pathlib import Path

from tesserae.data.listing import check_columns, list_source
from tesserae.data.pair import write_pairs
from tesserae.errors import TesseraeError, command
from tesserae.files import find_root
from tesserae.params import check_params
from tesserae.params.reading import parsed
from tesserae.pipeline.check import OUTPUTS
from tesserae.pipeline.preset import compose, named, preset_file, write_params

PRESET = "own-64"


class OwnError(TesseraeError, ValueError):
    """Nothing can be made of these pictures, or there is no such preset."""


def take(root: Path, folder: str, preset: str, here: Path, pair: str = "") -> list[str]:
    """Make params.yaml the preset with prepare.source set to `folder`, which is seen from `here`.

    pair: what `write_pairs` takes, separated by spaces. A params.yaml that was edited moves to earlier/. Returns what
    to print, a line each. Raises OwnError, PresetError, PairError, RawError before params.yaml is written.
    """
    source = _source(root, folder, here)
    file = preset_file(root, preset, "PRESET")
    text = compose(root, preset, {"prepare": {"source": source}})
    params = check_params(parsed(text, named(root, file)), named(root, file))
    wanted = {name: block.column for name, block in params.vqgan.items()}
    if pair:
        check_columns(folder, [word.partition("=")[0] for word in pair.split()], wanted)
    lines = write_pairs(root / source, pair.split()) if pair else []
    raw = list_source(root / source)
    if not raw.count:
        raise OwnError(f"FROM={folder} holds no pictures: name the folder that they lie in.")
    check_columns(folder, raw.columns, wanted)
    lines += [note for note in raw.notes if "PAIR=" in note]
    changes = write_params(root, text)
    return [*lines, f"params.yaml is now {named(root, file)} with the {raw.count:,} files of {source}; nothing was "
            "copied, and data/ stays as it is.", *changes, "Next: make repro"]


def _source(root: Path, folder: str, here: Path) -> str:
    """What prepare.source is to be: relative for a folder of this clone, else the whole path."""
    if not folder:
        raise OwnError("make own needs the folder of the pictures: make own FROM=path/to/pictures")
    place = Path(os.path.normpath(here / Path(folder).expanduser()))
    if not place.exists():
        raise OwnError(f"FROM={folder} is not there: name the folder of your pictures (a dataset of the Hugging Face "
                       "hub is set as prepare.source in params.yaml).")
    if not place.is_dir():
        raise OwnError(f"FROM={folder} is a file: unpack it if it is an archive, and name the folder of pictures.")
    data, resolved = root / "data", place.resolve()
    if place == data:
        return "data"
    if data.resolve() in resolved.parents and not data.is_symlink():
        raise OwnError(f"FROM={folder} lies inside data/, which DVC keeps as one: move the folder out of it, for "
                       f"instance with mv {os.path.relpath(place, here)} {place.name}, and name it there.")
    if root.resolve().is_relative_to(resolved):
        raise OwnError(f"FROM={folder} holds this clone itself: name the folder that holds the pictures alone.")
    if any(resolved.is_relative_to((root / output).resolve()) for output in OUTPUTS):
        raise OwnError(f"FROM={folder} is where the pipeline writes: move the pictures to a folder of their own.")
    return str(place.relative_to(root)) if place.is_relative_to(root) else str(place)


def main() -> None:
    """The command: FROM, PRESET and PAIR come from the environment, as make hands them on."""
    with command():
        print(*take(find_root(), os.environ.get("FROM", ""), os.environ.get("PRESET") or PRESET, Path.cwd(),
                    os.environ.get("PAIR", "")), sep="\n")


if __name__ == "__main__":
    main()
