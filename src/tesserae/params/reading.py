"""A parameters file, and changes of single keys, become Params."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from tesserae.params.defaults import KINDS, with_blocks
from tesserae.params.messages import one_line, sentence
from tesserae.params.project import Params
from tesserae.params.renamed import with_new_names
from tesserae.params.types import ParamsError

_POWER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # 1e-3
_ADVICE = "make preset NAME=default writes one"


def load_params(path: str | Path = "params.yaml", overrides: Mapping[str, Any] | str | None = None) -> Params:
    """Read and check a parameters file.

    A key that the file leaves out has its default. overrides: values that replace the file's, by dotted keys
    ("vqgan.image.steps") or in nested blocks; a string is read as YAML. Raises ParamsError, in one sentence that
    names the file, the key, the value and what is allowed.
    """
    values = read_values(path)
    if not overrides:
        return check_params(values, path)
    return check_params(overridden(values, overrides, path), f"{path} with overrides")


def read_values(path: str | Path) -> object:
    """What a YAML file holds. Raises ParamsError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist: {_ADVICE}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read as a text file: {error}.") from None
    return parsed(text, path)


def parsed(text: str, origin: str | Path) -> object:
    """What a text in YAML holds. Raises ParamsError."""
    try:
        return _numbers(YAML(typ="safe", pure=True).load(text))
    except Exception as error:  # the parser has many ways to fail, deep nesting among them
        raise ParamsError(f"{origin} is not YAML: {one_line(error)}.") from None


def check_params(values: object, origin: str | Path = "params") -> Params:
    """Values as read from YAML -> Params; `origin` names the file in the error. Raises ParamsError."""
    if not isinstance(values, dict):
        raise ParamsError(f"{origin} must hold keys and values: {_ADVICE}.")
    try:
        return Params.model_validate(with_new_names(values, origin))
    except ValidationError as error:
        raise ParamsError(f"{origin}: {sentence(error.errors()[0])}") from None


def overridden(values: object, overrides: Mapping[str, Any] | str, origin: str | Path) -> object:
    """The values with those of `overrides` in their place; see `load_params`. Raises ParamsError."""
    if isinstance(overrides, str):
        overrides = parsed(overrides, "overrides")
    if not isinstance(overrides, Mapping):
        raise ParamsError(f"overrides = {overrides!r} must be keys and values, such as {{'vqgan.image.steps': 20}}.")
    if not isinstance(values, dict):
        return values  # which `check_params` refuses
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        *blocks, last = str(key).split(".")
        for block in reversed(blocks):
            last, value = block, {last: value}
        changes = merged(changes, {last: value})
    found = with_blocks(with_new_names(values, origin))
    for kind in set(KINDS) & set(changes):
        found[kind] = _blocks_changed(kind, found[kind], changes.pop(kind), origin)
    return merged(found, with_new_names(changes, "overrides"))


def settings(words: Iterable[str]) -> dict[str, Any]:
    """`--set key=value` of a command line as overrides; values are read as YAML. Raises ParamsError."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ParamsError(f"--set {word} is no key=value: write --set vqgan.image.steps=20, for instance.")
        found[key] = parsed(value, f"--set {word}")
    return found


def _blocks_changed(kind: str, blocks: Any, changes: Any, origin: str | Path) -> Any:
    """The blocks of a kind with changes, which name blocks that there are."""
    if not isinstance(changes, Mapping) or not isinstance(blocks, Mapping):
        raise ParamsError(f"overrides: {kind} = {changes!r} is not allowed; name a key of one of its blocks.")
    changes = with_new_names({kind: changes}, "overrides")[kind]
    for name in changes:
        if name not in blocks:
            near = difflib.get_close_matches(str(name), map(str, blocks), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(map(str, blocks)) or 'none'}."
            raise ParamsError(f"overrides: {kind}.{name} is not in {origin}; {hint}")
    return merged(blocks, changes)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested blocks joined; a value of `changes` comes before one of `values`."""
    found = dict(values)
    for key, value in changes.items():
        known = found.get(key)
        found[key] = merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return found


def _numbers(values: object) -> object:
    """YAML reads 1e-3, without a dot, as text: it becomes the number that is meant."""
    if isinstance(values, dict):
        return {key: _numbers(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return float(values) if isinstance(values, str) and _POWER.fullmatch(values) else values
