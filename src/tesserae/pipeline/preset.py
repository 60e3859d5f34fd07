"""`make preset`: params.yaml composed from a preset, which holds what differs from the defaults.

    NAME=own-64 SIZE=m python -m tesserae.pipeline.preset

NAME is a preset, `default`, or a parameters file, which is written out whole; SIZE is the dial. Without NAME and SIZE
it lists the presets.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tesserae.errors import TesseraeError, command
from tesserae.files import find_root, write_atomically
from tesserae.params import Params, ParamsError, check_params
from tesserae.params.compose import HEAD, composed
from tesserae.params.defaults import KINDS
from tesserae.params.reading import parsed, read_values
from tesserae.pipeline.earlier import FOLDER, keep_earlier

DEFAULT = "default"
_SHOWN = 12  # changes of a block that are listed


class PresetError(TesseraeError, ValueError):
    """There is no such preset."""


def compose(root: Path, name: str, changes: Mapping[str, Any] | None = None) -> str:
    """The text of the whole parameters file that a preset stands for.

    name: a preset's, `default`, or a parameters file's path; changes: nested values that come before its own, such as
    {"size": "m"}. Raises PresetError, ParamsError.
    """
    file = preset_file(root, name)
    values = read_values(file) if file else {}
    if not isinstance(values, dict):
        raise PresetError(f"{file} must hold keys and values, those that differ from the defaults.")
    for key, value in (changes or {}).items():
        inner = values.get(key)
        values[key] = {**inner, **value} if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return composed(values, _head(file), named(root, file))


def preset_file(root: Path, name: str, key: str = "NAME") -> Path | None:
    """The file of a preset, None for the default. Raises PresetError, which speaks of `key`."""
    if name == DEFAULT:
        return None
    stem = name.removeprefix("presets/").removesuffix(".yaml")
    file = root / "presets" / f"{stem}.yaml"
    if file.is_file():
        return file
    if name.endswith(".yaml") and (root / name).is_file():
        return root / name
    known = ", ".join([DEFAULT, *sorted(path.stem for path in (root / "presets").glob("*.yaml"))])
    raise PresetError(f"{key}={name} is no preset: take one of {known}.")


def named(root: Path, file: Path | None) -> str:
    """How messages name a preset."""
    return "the default" if file is None else str(file.relative_to(root) if file.is_relative_to(root) else file)


def write_params(root: Path, text: str) -> list[str]:
    """Make params.yaml this text; returns what changed, a line each.

    A params.yaml that was edited, that is, one which is neither committed nor a preset as it was composed, moves to
    earlier/ first, where nothing is overwritten.
    """
    params = root / "params.yaml"
    if params.is_file() and params.read_text(encoding="utf-8") == text:
        return []
    lines = _differences(params, text)
    if params.is_file() and not _recoverable(root, params):
        keep_earlier(root, params)
        lines.append(f"The params.yaml that was here is in {FOLDER}/.")
    write_atomically(params, text.encode())
    return lines


def list_presets(root: Path) -> list[str]:
    """The presets, a line each: a name and the first line of its file."""
    files = sorted((root / "presets").glob("*.yaml"))
    about = {DEFAULT: "Every default."} | {
        path.stem: path.read_text(encoding="utf-8").split("\n")[0].removeprefix("# ") for path in files}
    return ["make preset NAME=... [SIZE=xs|s|m|l] makes params.yaml one of these:",
            *(f"  {name:15} {words}" for name, words in about.items())]


def _head(file: Path | None) -> str:
    """The comment at the head of a composed file: the preset's own, then the default's."""
    if file is None:
        return HEAD
    own = re.match(r"(#.*\n)*", file.read_text(encoding="utf-8"))[0]
    return own if own.endswith(HEAD) else f"{own}#\n{HEAD}" if own else HEAD


def _differences(params: Path, text: str) -> list[str]:
    """What a new text changes in params.yaml, a line for each block."""
    after = check_params(parsed(text, "params.yaml")).model_dump()
    try:
        before = check_params(read_values(params), "params.yaml").model_dump()
    except ParamsError:
        return []  # none, or one that cannot be read
    lines = []
    for key in Params.model_fields:
        if key not in KINDS:
            lines += _changed(key, before[key], after[key])
            continue
        for name in dict.fromkeys([*before[key], *after[key]]):
            lines += _changed(f"{key}.{name}", before[key].get(name), after[key].get(name))
    return lines


def _changed(name: str, before: Any, after: Any) -> list[str]:
    if before == after:
        return []
    if before is None or after is None:
        return [f"  {name}: {'new' if before is None else 'gone'}"]
    if not isinstance(before, dict):
        return [f"  {name}: {before} -> {after}"]
    found = [f"{key} {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]
    more = [f"{len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return [f"  {name}: {', '.join(found[:_SHOWN] + more)}"]


def _recoverable(root: Path, params: Path) -> bool:
    """Whether these very parameters can be had again: they are committed, or composed from a preset."""
    text = params.read_text(encoding="utf-8")
    try:
        done = subprocess.run(["git", "-C", str(root), "show", "HEAD:./params.yaml"], capture_output=True, timeout=10)
        if done.returncode == 0 and done.stdout == text.encode():
            return True
    except (OSError, subprocess.SubprocessError):
        pass  # no git here
    try:
        values = read_values(params)
        changes = {"size": values["size"], "prepare": {"source": values["prepare"]["source"]}}
        names = [DEFAULT, *(path.stem for path in (root / "presets").glob("*.yaml"))]
        return any(compose(root, name, changes) == text for name in names)
    except (TesseraeError, KeyError, TypeError):
        return False


def main() -> None:
    """The command: NAME and SIZE come from the environment, as make hands them on."""
    name, size = os.environ.get("NAME", ""), os.environ.get("SIZE", "")
    with command():
        root = find_root()
        if not name and not size:
            print(*list_presets(root), sep="\n")
            return
        text = compose(root, name or DEFAULT, {"size": size} if size else None)
        changed = write_params(root, text)
        name_and_size = named(root, preset_file(root, name or DEFAULT)) + (f" at size {size}" if size else "")
        first = f"params.yaml is now {name_and_size}:" if changed else f"params.yaml is {name_and_size} already."
        print(first, *changed, "Next: make repro", sep="\n")


if __name__ == "__main__":
    main()
