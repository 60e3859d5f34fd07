"""One sentence for what is wrong in a parameters file: the key, its value, what is allowed."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Annotated, Literal

from pydantic import BaseModel

from tesserae.codebook_params import AUTO
from tesserae.params.project import Params


def one_line(error: Exception) -> str:
    """What a YAML parser says, in one line: the place and the problem."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark and problem:  # of the parser: what is wrong, and where
        return f"line {mark.line + 1}: {_short(' '.join(str(problem).split()), 200)}".rstrip(".")
    return _short(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."


def sentence(error: dict) -> str:
    """One of pydantic's errors as a sentence."""
    loc, value, kind = error["loc"], error["input"], error["type"]
    if kind == "invalid_key" or loc[-1:] == ("[key]",):
        block = ".".join(map(str, loc[: -1 if kind == "invalid_key" else -2])) or "it"
        return f"{block} has the key {_short(repr(value))}; a name is made of letters, digits, - and _."
    key = _short(".".join(repr(step)[1:-1] if isinstance(step, str) else str(step) for step in loc), 120)
    if kind == "extra_forbidden":
        known = sorted(_model_at(loc[:-1]).model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {_short(', '.join(known), 400)}."
        return f"{key} is not a parameter; {hint}"
    if kind == "missing":
        return f"{key} is missing: give it, {_model_at(loc[:-1]).model_fields[loc[-1]].description}."
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{error['ctx']['error']}."
    automatic = f", or {AUTO}" if loc[-1] in getattr(_model_at(loc[:-1]), "model_fields", {}) and (
        _model_at(loc[:-1]).model_fields[loc[-1]].default == AUTO) else ""
    return f"{key} = {_short(repr(value))} is not allowed; it must be {_allowed(loc)}{automatic}."


def _model_at(loc: tuple) -> type[BaseModel]:
    return _annotation_at(loc)[0]


def _annotation_at(loc: tuple) -> tuple[object, tuple]:
    """The annotation and its constraints at a path into Params."""
    annotation, metadata = Params, ()
    for step in loc:
        origin = typing.get_origin(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields[step]
            annotation, metadata = field.annotation, tuple(field.metadata)
        elif origin in (dict, list):
            annotation, metadata = typing.get_args(annotation)[-1], ()
        if typing.get_origin(annotation) is Annotated:
            metadata = tuple(typing.get_args(annotation)[1].metadata)
            annotation = typing.get_args(annotation)[0]
    return annotation, metadata


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


def _allowed(loc: tuple) -> str:
    annotation, metadata = _annotation_at(loc)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if origin is list:
        limits = {k: getattr(m, k) for m in metadata for k in ("min_length", "max_length") if hasattr(m, k)}
        least, most = limits.get("min_length", 0), limits.get("max_length")
        lengths = "" if most is None else f" of {most}" if least == most else f" of {least} to {most}"
        return f"a list{lengths}, each {_allowed((*loc, 0))}"
    if origin in (dict, types.UnionType) or annotation not in _NAMES:
        return "a block of keys and values"
    bounds = [f"{word} {getattr(m, k):,.10g}" for k, word in _BOUNDS for m in metadata
              if getattr(m, k, None) is not None]
    return _NAMES[annotation] + (", " + " and ".join(bounds) if bounds else "")
