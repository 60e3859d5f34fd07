"""`make own`: params.yaml for one's own pictures, from a preset; the pictures stay where they are.

    FROM=path/to/pictures PRESET=own-64 python -m tesserae.pipeline.own

PAIR="segmentation=masks" pairs the pictures first, see `tesserae.data.pair`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from tesserae.data.left_out import check_columns
from tesserae.data.pair import write_pairs
from tesserae.data.raw import list_raw
from tesserae.errors import TesseraeError, command
from tesserae.files import find_root, write_atomically
from tesserae.params import check_params
from tesserae.pipeline.check import OUTPUTS
from tesserae.pipeline.earlier import FOLDER, keep_earlier

PRESET = "own-64"
_SOURCE = re.compile(r'^(  source: )("(?:\\.|[^"\\\n])*"|\S+)( *)', re.MULTILINE)  # of prepare, in presets


class OwnError(TesseraeError, ValueError):
    """Nothing can be made of these pictures, or there is no such preset."""


def take(root: Path, folder: str, preset: str, here: Path, pair: str = "") -> list[str]:
    """Make params.yaml the preset with prepare.source set to `folder`, which is seen from `here`.

    pair: what `write_pairs` takes, separated by spaces. A params.yaml that is neither committed nor a preset moves to
    earlier/. Returns what to tell, a line each. Raises OwnError, PairError, RawError before params.yaml is written.
    """
    source = _source(root, folder, here)
    file = _preset(root, preset)
    text = _SOURCE.sub(lambda match: f"{match[1]}{json.dumps(source, ensure_ascii=False)}{match[3]}",
                       file.read_text(encoding="utf-8"), count=1)
    asked = check_params(YAML(typ="safe", pure=True).load(text), file.name)
    if asked.prepare.source != source:
        raise OwnError(f"presets/{file.name} has no line for prepare.source: take another preset.")
    wanted = {name: block.column for name, block in asked.vqgan.items()}
    if pair:
        check_columns(folder, [word.partition("=")[0] for word in pair.split()], wanted)
    told = write_pairs(root / source, pair.split()) if pair else []
    raw = list_raw(root / source)
    if not raw.count:
        raise OwnError(f"FROM={folder} holds no pictures: name the folder that they lie in.")
    check_columns(folder, raw.columns, wanted)
    told += [note for note in raw.notes if "PAIR=" in note]
    params = root / "params.yaml"
    if params.is_file() and params.read_text(encoding="utf-8") != text and not _known(root, params):
        keep_earlier(root, params)
        told.append(f"The params.yaml that was here is in {FOLDER}/.")
    write_atomically(params, text.encode())
    return [*told, f"params.yaml is now presets/{file.name} with the {raw.count:,} files of {source}; nothing was "
            "copied, and data/ stays as it is.", "Next: make repro"]


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


def _preset(root: Path, name: str) -> Path:
    file = root / "presets" / f"{name.removeprefix('presets/').removesuffix('.yaml')}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in (root / "presets").glob("*.yaml")))
        raise OwnError(f"PRESET={name} is no preset: take one of {known}.")
    return file


def _known(root: Path, params: Path) -> bool:
    """Whether these very parameters can be had again: they are a preset, with whatever source, or committed."""
    text = params.read_text(encoding="utf-8")
    plain = _SOURCE.sub(r"\1data\3", text, count=1)
    if any(_SOURCE.sub(r"\1data\3", path.read_text(encoding="utf-8"), count=1) == plain
           for path in (root / "presets").glob("*.yaml")):
        return True
    try:
        done = subprocess.run(["git", "-C", str(root), "show", "HEAD:./params.yaml"], capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and done.stdout == text.encode()


def main() -> None:
    """The command: FROM, PRESET and PAIR come from the environment, as make hands them on."""
    with command():
        print(*take(find_root(), os.environ.get("FROM", ""), os.environ.get("PRESET") or PRESET, Path.cwd(),
                    os.environ.get("PAIR", "")), sep="\n")


if __name__ == "__main__":
    main()
