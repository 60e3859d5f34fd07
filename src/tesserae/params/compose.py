"""A parameters file written out: every key that applies, with its value and its comment.

`params.yaml` is the default, written by this; presets and short files become whole files by it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from tesserae.codebook_params import NEUTRAL, USED
from tesserae.params.defaults import BLOCKS, KINDS, spelled, with_blocks
from tesserae.params.project import Params
from tesserae.params.reading import check_params
from tesserae.params.renamed import with_new_names
from tesserae.params.sizes import MEASURED, SIZES, sizes_of
from tesserae.params.transformer import PLAIN_CONDITIONS
from tesserae.params.types import Block
from tesserae.params.vqgan import COLOURED

HEAD = ("# Every parameter, with its default: the file to edit. `dvc repro` runs what a change touches.\n"
        "# presets/ has other settings; docs/parameters.md has recipes. `auto` with four values: by `size`.\n")
_COLUMNS = {0: 19, 2: 29, 4: 29}  # where comments begin, by indent
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NO_TEXT = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # to a parser of YAML 1.1, too
_SECTIONS = {
    ("vqgan", "channels"): "network: f = patch * 2^(levels - 1)",
    ("vqgan", "pixel_loss"): "objective",
    ("vqgan", "steps"): "training",
    ("transformer", "n_layer"): "network",
    ("transformer", "pkeep"): "training",
}
_WHY = {
    ("vqgan", "segmentation", "zoom"): "a large layout has windows of nothing but sky",
    ("transformer", "layout", "pkeep"): "so it leans on the layout: large pictures hold together",
}


def composed(values: Mapping[str, Any], head: str = HEAD, origin: str = "params") -> str:
    """The text of a whole parameters file for the values of a short one.

    Keys that `values` leaves out have their default, or `auto`; keys that do not apply are left out, unless `values`
    has them. Raises ParamsError.
    """
    values = with_blocks(with_new_names(values, origin))
    check_params(values, origin)
    blocks = [lines for key in Params.model_fields for lines in ([""] * _apart(key), sections(values, key))]
    return "\n".join([*head.rstrip().split("\n"), *(line for lines in blocks for line in lines)]) + "\n"


def sections(values: Mapping[str, Any], key: str) -> list[str]:
    """The lines of a top-level key and what lies below it; values: a file's, with all kinds of blocks."""
    field = Params.model_fields[key]
    if key in KINDS:
        if not values[key]:
            return [_line(key, {}, field.description, 0)]
        return [_line(key, None, field.description, 0), *_kind(key, values)]
    if not isinstance(field.default, Block):
        measured = MEASURED if key == "size" else {}
        return [_line(key, values.get(key, field.default), field.description, 0),
                *(f"#   {size:3} {measured[size]}" for size in SIZES if size in measured)]
    given = values.get(key, {})
    return [_line(key, None, field.description, 0),
            *(_line(inner, given.get(inner, each.default), each.description, 2)
              for inner, each in type(field.default).model_fields.items())]


def _apart(key: str) -> bool:
    """Whether an empty line comes before a top-level key."""
    return key in (*KINDS, "size", "scenes", "prepare", "evaluation")


def shown(kind: str, block: Mapping[str, Any], values: Mapping[str, Any]) -> set[str]:
    """The keys that have an effect in a block whose values are whole; values: the whole file's, completed."""
    keys = set(_fields(kind))
    if kind == "vqgan":
        keys -= set(NEUTRAL) - set(USED[block["quantizer"]])
        if block["view"] != "segmentation":
            keys -= {"ignore_index"}
        if not block["perceptual_weight"]:
            keys -= {"perceptual_fraction", "perceptual_start"}
        if block["gan_loss"] == "none":
            keys -= {"gan_weight", "discriminator"} | {key for key in keys if key.startswith("disc_")}
        if block["view"] not in COLOURED:
            keys -= {"perceptual_weight", "gan_loss"}
    if kind in ("vqgan", "transformer") and block["optimiser"] != "muon":
        keys -= {"muon_lr"}
    return keys


def _kind(kind: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of all blocks of a kind. A comment stands where its key comes first."""
    whole = check_params(values).model_dump()
    commented: set[str] = set()
    for number, (name, block) in enumerate(values[kind].items()):
        given = spelled(kind, block, name)
        keys = (shown(kind, whole[kind][name], whole) - _without_conditions(kind, name, whole)) | set(block)
        yield from ([""] if number else [])
        yield f"  {name}:"
        for key, field in _fields(kind).items():
            if key not in keys:
                continue
            if key not in commented and number == 0 and (kind, key) in _SECTIONS:
                yield f"    # {_SECTIONS[kind, key]}"
            value = given.get(key, field.default)
            yield _line(key, value, _comment(kind, name, key, field, given, commented), 4)
            commented.add(key)


def _without_conditions(kind: str, name: str, whole: Mapping[str, Any]) -> set[str]:
    """Keys of a sample block that are about maps which its transformer is conditioned on, or about windows."""
    if kind != "sample":
        return set()
    transformer = whole["transformer"][name]
    without = {"stride"} if transformer["window"] == 0 else set()
    if set(transformer["condition"]) <= set(PLAIN_CONDITIONS):
        without |= {"num_conditions", "condition_image"}
    return without


def _comment(kind: str, name: str, key: str, field: FieldInfo, given: Mapping[str, Any], commented: set[str]) -> str:
    parts = [] if key in commented else [field.description or ""]
    if (kind, name, key) in _WHY and given[key] == spelled(kind, BLOCKS[kind][name])[key]:
        parts = [_WHY[kind, name, key]]
    sizes = sizes_of(kind, given).get(key)
    if sizes:
        parts.append(f"auto: {' | '.join(_scalar(value) for value in sizes)}")
    return "; ".join(part for part in parts if part)


def _fields(kind: str) -> dict[str, FieldInfo]:
    return get_args(Params.model_fields[kind].annotation)[1].model_fields


def _line(key: str, value: Any, comment: str | None, indent: int) -> str:
    line = " " * indent + f"{key}:" + ("" if value is None else f" {_scalar(value)}")
    return f"{line.ljust(_COLUMNS[indent] - 1)} # {comment}" if comment else line


def _scalar(value: Any) -> str:
    """A value as YAML, on one line; texts that another parser might take for something else are quoted."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _NO_TEXT
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_scalar(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_scalar, value)) + "]"
    return str(value)


def _float(value: float) -> str:
    """0.001 -> 1.0e-3, with the dot that parsers of YAML need to see a number."""
    text = repr(value)
    if "e" in text or 0 < abs(value) < 0.01:
        shortest = next(digits for length in range(1, 18) if float(digits := f"{value:.{length}e}") == value)
        mantissa, power = shortest.split("e")
        return f"{mantissa}e{int(power)}"
    return text
