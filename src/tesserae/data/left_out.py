"""What was left out, and what to do about it: whole folders, sizes, columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tesserae.data.entries import RawError

NAMED = 8  # reasons named in an error
SEVERAL = 2  # pictures from which on a folder is one that matters
TOO_SMALL = re.compile(r"too small: (\d+) x (\d+)")
UNPAIRED = re.compile(r"has no (\w+) in the metadata, unlike others")
Rejections = list[tuple[str, str]]  # path, reason


def listed(rejected: Rejections) -> str:
    """The commonest reasons, each with a file that has it; those that differ in numbers alone are one."""
    files: dict[str, Rejections] = {}
    for path, reason in rejected:
        files.setdefault(re.sub(r"\d+", "0", reason), []).append((path, reason))
    groups = sorted(files.values(), key=lambda group: -len(group))
    said = [f"{group[0][0]}{f' and {len(group) - 1:,} more' if len(group) > 1 else ''}: {group[0][1]}"
            for group in groups[:NAMED]]
    return "; ".join(said + ([f"and {len(groups) - NAMED:,} other reasons"] if len(groups) > NAMED else []))


def lost_folder(rejected: Rejections, there: Iterable[str]) -> tuple[str, Rejections] | None:
    """The largest folder of which nothing is `there`, the outermost of its kind, and what was rejected of it."""
    counts = Counter(folder for path, _ in rejected for folder in _folders(path))
    for path in there:
        for folder in _folders(path):
            counts.pop(folder, None)
    outermost = [(count, folder) for folder, count in counts.items()
                 if count >= SEVERAL and not any(above in counts for above in _folders(folder))]
    if not outermost:
        return None
    folder = max(outermost)[1]
    return folder, [(path, reason) for path, reason in rejected if path.startswith(f"{folder}/")]


def _folders(path: str) -> Iterator[str]:
    """Those that a path lies in, below the source."""
    parts = path.split("/")[:-1]
    return ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def remedy(rejected: Rejections, otherwise: str, place: str = "") -> str:
    """What to do about the commonest of these reasons, as an imperative. place: the folder that they lie in."""
    small = [min(map(int, found.groups())) for _, reason in rejected if (found := TOO_SMALL.match(reason))]
    unpaired = Counter(found[1] for _, reason in rejected if (found := UNPAIRED.match(reason)))
    if 2 * len(small) > len(rejected):
        return f"set prepare.min_side to {min(small)} to take them, or remove them"
    if 2 * unpaired.total() > len(rejected):
        column = unpaired.most_common(1)[0][0]
        alone = f"set prepare.source to {place} to train on these alone, or " if place else ""
        return f"{alone}name the {column}_file_name of each in the metadata"
    return otherwise


def check_columns(source: str, there: list[str], wanted: Mapping[str, str]) -> None:
    """Raise RawError where a VQGAN reads a column that the data lack. wanted: column, by the name of its block."""
    for name, column in wanted.items():
        if column not in ("image", *there):
            raise RawError(f"vqgan.{name}.column = {column!r} is not among the columns of {source}, which are "
                           f"{', '.join(['image', *there])}: name one of them, remove vqgan.{name}, or pair the "
                           f"pictures with files of their names: python -m tesserae.data.pair {source} "
                           f"{column}=FOLDER-OF-THESE.")
