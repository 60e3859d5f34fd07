"""What a parameters file may leave out: keys, blocks, and `auto`.

The fields of the schema hold the default of each key. Here is what differs by the kind of network, and which blocks
the default project has. `completed` applies both to what a file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tesserae.codebook_params import AUTO, NEUTRAL, resolved
from tesserae.params.sizes import DEFAULT_SIZE, SIZES, sizes_of

KINDS = ("vqgan", "codebook", "transformer", "sample", "highres")  # each of their blocks is a stage

# VQGANs of views that are no pictures: small ones, without LPIPS and discriminator.
_CONDITION = {"refine": 0, "codebook_size": 128, "perceptual_weight": 0.0, "gan_loss": "none", "gan_weight": 0.2,
              "discriminator": "patch", "disc_layers": 3, "disc_lr": 2.0e-4, "eval_images": 64}
OF_VIEWS: dict[str, dict[str, Any]] = {
    "segmentation": _CONDITION | {"column": "segmentation", "pixel_loss": "cross_entropy", "zoom": 3.0},
    "depth": _CONDITION | {"column": "depth"},
    "edges": _CONDITION,
    "low_resolution": _CONDITION,
}

# The default project, which learns the built-in landscapes.
BLOCKS: dict[str, dict[str, dict[str, Any]]] = {
    "vqgan": {"image": {}, "segmentation": {"view": "segmentation"}},
    "codebook": {"image": {}, "segmentation": {}},
    "transformer": {
        "class": {"vqgan": "image", "condition": ["class"]},
        "layout": {"vqgan": "image", "condition": ["class", "coordinates", "segmentation"], "window": 8,
                   "pkeep": 0.7},
    },
    "sample": {"class": {}, "layout": {"stride": 4, "per_class": 3, "num_eval_samples": 48}},
    "highres": {"layout": {}},
}


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file, with the blocks that it leaves out, and the keys of blocks whose default varies.

    What is wrong in `values` stays, for the schema to name.
    """
    found = with_blocks(values)
    for kind in KINDS:
        if isinstance(blocks := found[kind], Mapping):
            found[kind] = {name: completed_block(kind, block, str(name), found.get("size"))
                           if isinstance(block, Mapping) else block for name, block in blocks.items()}
    return found


def with_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the kinds of blocks that they leave out.

    A kind that is left out has the default project's blocks, as far as the VQGANs and transformers that these need
    are there; codebooks and samples have one for each of them.
    """
    found = dict(values)
    for kind in KINDS:
        if kind not in found:
            found[kind] = _default_blocks(kind, found)
    return found


def completed_block(kind: str, block: Mapping[str, Any], name: str = "",
                    size: object = DEFAULT_SIZE) -> dict[str, Any]:
    """A block with the keys that depend on its name, its view, its quantizer and the size."""
    found = spelled(kind, block, name)
    column = SIZES.index(size) if isinstance(size, str) and size in SIZES else SIZES.index(DEFAULT_SIZE)
    for key, sizes in sizes_of(kind, found).items():
        if isinstance(given := found.get(key, AUTO), str) and given == AUTO:
            found[key] = sizes[column]
    if kind != "vqgan":
        return found
    return resolved({"quantizer": "nearest"} | dict.fromkeys(NEUTRAL, AUTO) | found)


def spelled(kind: str, block: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """A block over the default block of its name and the defaults of its view; `auto` stays."""
    found = {**BLOCKS[kind].get(name, {}), **block}
    view = found.get("view")
    return {**OF_VIEWS.get(view, {}), **found} if kind == "vqgan" and isinstance(view, str) else found


def _default_blocks(kind: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The blocks of a kind that a file leaves out; values: the file's, with the kinds before this one."""
    of = {"transformer": "vqgan", "codebook": "vqgan", "sample": "transformer", "highres": "transformer"}.get(kind)
    names = values[of] if of else None
    if not isinstance(names, Mapping):
        return BLOCKS[kind]
    if kind == "transformer":
        return {name: block for name, block in BLOCKS[kind].items()
                if {block["vqgan"], *block["condition"]} <= {"class", "coordinates", *names}}
    return {name: {} for name in names if kind != "highres" or name in BLOCKS["highres"]}
