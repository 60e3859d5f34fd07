"""Write the metadata.jsonl that pairs pictures with their masks, depth maps or other files of the same name.

    python -m tesserae.data.pair my-pictures segmentation=masks depth=depth

Each `column=folder` names a folder inside that of the pictures. Every picture that lies in none of these is paired
with the file there that has its name, but for the suffix: `cats/7.jpg` with `masks/cats/7.png`, `masks/7.png` or
`masks/7_mask.png`. Pictures that miss a file of any column are named and left out of metadata.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from tesserae.data.decoding import is_picture_name
from tesserae.data.listing import METADATA
from tesserae.errors import TesseraeError, command, writing

SHOWN = 5  # names in a sentence
ENDINGS = ("_mask", "-mask", "_segmentation", "_seg", "_label", "_labels", "_depth", "-depth", "_gt", "_disp")


class PairError(TesseraeError, ValueError):
    """Pictures and their files cannot be paired by name."""


def pair_files(folder: Path, columns: Mapping[str, str]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a metadata.jsonl, and which pictures have none because a file is missing, sorted.

    columns: name of each column -> folder of its files, relative to `folder`. Raises PairError.
    """
    if not folder.is_dir():
        raise PairError(f"{folder} is no folder: name the one that holds the pictures.")
    tops = {column: _inside(folder, place, column) for column, place in columns.items()}
    pictures = [path for path in _files(folder) if not any(path.is_relative_to(top) for top in tops.values())]
    if not pictures:
        raise PairError(f"{folder} holds no pictures outside {', '.join(map(str, tops.values()))}.")
    files = {column: _by_stem(_files(folder / top)) for column, top in tops.items()}
    rows, missing = [], []
    for picture in pictures:
        found = {column: _of(picture, files[column], column) for column in tops}
        if all(found.values()):
            rows.append({"file_name": str(picture)}
                        | {f"{column}_file_name": str(tops[column] / path) for column, path in found.items()})
        else:
            missing.append(str(picture))
    if not rows:
        raise PairError(f"No picture of {folder} has a file of its name in {', '.join(map(str, tops.values()))}: "
                        f"{missing[0]}, for instance, has none. Give equal names to what belongs together.")
    return rows, missing


def _inside(folder: Path, place: str, column: str) -> PurePosixPath:
    try:
        top = (folder / place).resolve().relative_to(folder.resolve())
    except ValueError:
        raise PairError(f"{column}={place} lies outside {folder}: move it inside, for metadata.jsonl names files "
                        "below its own folder only.") from None
    if not (folder / top).is_dir() or top == Path():
        raise PairError(f"{column}={place} is no folder inside {folder}: name the one that holds its files.")
    return PurePosixPath(top.as_posix())


def _files(folder: Path) -> list[PurePosixPath]:
    """Files below a folder that carry a picture's suffix, relative to it, sorted; none that begin with a dot."""
    found = (path.relative_to(folder) for path in folder.rglob("*")
             if is_picture_name(path.name) and path.is_file())
    return sorted(PurePosixPath(path.as_posix()) for path in found
                  if not any(part.startswith(".") for part in path.parts))


def _by_stem(paths: Iterable[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """Files by the name of the picture they belong to: their own without suffix, else without a usual ending, too."""
    exact: dict[str, list[PurePosixPath]] = {}
    shortened: dict[str, list[PurePosixPath]] = {}
    for path in paths:
        exact.setdefault(path.stem, []).append(path)
        for ending in ENDINGS:
            if path.stem.lower().endswith(ending):
                shortened.setdefault(path.stem[:-len(ending)], []).append(path)
    return shortened | exact


def _of(picture: PurePosixPath, files: Mapping[str, list[PurePosixPath]], column: str) -> PurePosixPath | None:
    """The file of this name: of several, the one whose folders end as the picture's do. Raises PairError."""
    found = files.get(picture.stem, [])
    if len(found) < 2:
        return found[0] if found else None
    near = [path for path in found if not path.parent.parts
            or picture.parent.parts[-len(path.parent.parts):] == path.parent.parts]
    deepest = [path for path in near if len(path.parts) == max(len(each.parts) for each in near)]
    if len(deepest) != 1:
        raise PairError(f"{picture} could go with {len(found)} files of {column}, {found[0]} and {found[1]} among "
                        "them: put them into folders as the pictures are, or give them different names.")
    return deepest[0]


def write_pairs(folder: Path, words: Iterable[str]) -> list[str]:
    """Write folder/metadata.jsonl for words of the form column=folder; returns the messages, a sentence each.

    A metadata file that is there already stays as it is, and is accepted where it has the same content.
    Raises PairError.
    """
    words = list(words)
    wrong = [word for word in words if not all(word.partition("=")[::2])]
    if wrong:
        raise PairError(f"{wrong[0]} is not of the form column=folder, for instance segmentation=masks.")
    rows, missing = pair_files(folder, dict(word.split("=", 1) for word in words))
    target, text = folder / METADATA[0], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    there = [folder / name for name in METADATA if (folder / name).exists()]
    if there and (there != [target] or target.read_text(encoding="utf-8", errors="replace") != text):
        raise PairError(f"{there[0]} is there already and stays as it is: add the columns to it, or move it away.")
    if not there:
        with writing(target):
            target.write_text(text, encoding="utf-8")
    lines = [f"{target} pairs {len(rows):,} pictures with {', '.join(words)}."]
    if missing:
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        lines.append(f"{len(missing):,} have no file of their name and will be left out: "
                    f"{', '.join(missing[:SHOWN])}{more}.")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """The command. It exits with 1 and a sentence where metadata.jsonl does not pair the pictures."""
    parser = argparse.ArgumentParser("python -m tesserae.data.pair", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="the folder of the pictures")
    parser.add_argument("columns", nargs="+", metavar="column=folder", help="for instance segmentation=masks")
    options = parser.parse_args(arguments)
    with command():
        print(*write_pairs(options.folder, options.columns), sep="\n")


if __name__ == "__main__":
    main()
