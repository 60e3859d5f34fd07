"""Conditions from outside the prepared set: a user's picture, a painted layout, a scene of any size."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tesserae.data.decoding import decode, decode_depth
from tesserae.data.layouts import draw_layout, read_layout
from tesserae.data.pictures import Pictures
from tesserae.data.sources import HELD_OUT, SCENES, layout_files
from tesserae.data.values import BYTE, FLOAT, FULL, WHOLE, Extent, Ranges, Rejected, inliers, range_of, scaled
from tesserae.data.views import Classes, Depth, View
from tesserae.errors import TesseraeError
from tesserae.scenes.render import render_scene

SCENES_SEED = 1 << 20  # landscapes that no training set holds
Conditions = dict[str, Tensor]  # by condition, (B,c,H,W) in the view's raw form


def external_condition(path: str, views: Mapping[str, View], size: tuple[int, int],
                       root: Path | None) -> Conditions:
    """One condition for each view, (1,c,H,W), from the picture at `path`, or painted where that is "".

    {} where there is no path and a view for which nothing can be painted, or no view at all. Raises TesseraeError
    for a file that cannot be read as what the view needs.
    """
    if path:
        return {name: read_condition(root / path, view, size) for name, view in views.items()}
    if views and all(_of_scenes(view) for view in views.values()):
        layout = draw_layout(0, size)
        if all(int(layout.max()) < view.channels for view in views.values()):  # a set may lack the last classes
            return {name: layout[None, None].to(torch.uint8) for name in views}
    return {}


def read_condition(path: Path, view: View, size: tuple[int, int]) -> Tensor:
    """A user's picture as a view's raw form, (1,c,H,W): its middle, brought to `size` (height, width)."""
    if isinstance(view, Classes):
        return read_layout(path, view.channels, view.colours, size, view.ignore_index,
                           view.void)[None, None].to(torch.uint8)
    if isinstance(view, Depth):
        return _read_depth(path, view, size)
    image = _read_rgb(path, size, view.ranges)
    found = view.of_picture(image)
    return image if found is None else found


def scene_conditions(views: Mapping[str, View], size: tuple[int, int], count: int,
                     seed: int) -> tuple[Conditions, list[str]]:
    """The conditions of landscapes rendered at any size, and their classes. Raises TesseraeError for other data."""
    others = [name for name, view in views.items() if isinstance(view, Classes) and not _of_scenes(view)]
    if others:
        raise TesseraeError("conditions_from = 'scenes' of highres renders landscapes, whose classes are not those "
                            f"of vqgan.{others[0]}: set it to held_out, or to a folder of pictures.")
    scenes = [render_scene(SCENES_SEED + seed, number, size) for number in range(count)]
    raw: Conditions = {}
    for name, view in views.items():
        if isinstance(view, Classes):
            values = [scene.segmentation[None] for scene in scenes]
        elif isinstance(view, Depth):
            values = [np.rint(scene.depth * 65535).astype(np.int32)[None] for scene in scenes]
        else:
            values = [rearrange(scene.image, "h w c -> c h w") for scene in scenes]
        raw[name] = torch.from_numpy(np.stack(values))
        if not isinstance(view, Classes | Depth):
            raw[name] = view.of_picture(raw[name])
    return raw, [scene.label for scene in scenes]


def enlarged(view: View, pictures: Pictures, chosen: list[int], size: tuple[int, int]) -> Tensor:
    """Conditions of pictures of the set, enlarged to cover `size`, the middle cut out: raw form (B,c,H,W)."""
    raw = view.raw(pictures, chosen)
    scale = max(side / own for side, own in zip(size, raw.shape[-2:]))
    whole = [max(side, round(own * scale)) for side, own in zip(size, raw.shape[-2:])]
    if view.smooth:
        low, high = int(raw.min()), int(raw.max())
        large = F.interpolate(raw.float(), whole, mode="bicubic", align_corners=False).round().clamp(low, high)
    else:
        large = F.interpolate(raw.float(), whole, mode="nearest")
    top, left = ((own - side) // 2 for own, side in zip(whole, size))
    return large[..., top:top + size[0], left:left + size[1]].to(raw.dtype)


def _of_scenes(view: View) -> bool:
    return isinstance(view, Classes) and view.of_scenes


def _read_rgb(path: Path, size: tuple[int, int], ranges: Ranges) -> Tensor:
    """(1,3,H,W) uint8, scaled to cover the size, the middle cut out; values beyond 8 bits by the scale of a set."""
    found = decode(_content(path), size, "cover", 1)
    if isinstance(found, Rejected):
        raise TesseraeError(f"{path} is refused ({found}): take a JPEG, PNG or WebP picture.")
    return torch.from_numpy(np.array(found.shown(ranges))).permute(2, 0, 1)[None]


def _read_depth(path: Path, view: Depth, size: tuple[int, int]) -> Tensor:
    """(1,1,H,W) int32 in 0 to 65,535: by the scale that the view was trained on; 8 bits are fractions of it."""
    try:
        values, kind, extent = decode_depth(_content(path), size, "cover")
    except Rejected as reason:
        has = str(reason).startswith(("has ", "holds "))  # a sentence that names the remedy
        raise TesseraeError(f"{path} {reason}." if has else
                            f"{path} cannot be read as depth ({reason}): save it as PNG.") from None
    black_white = (0.0, 255.0) if kind == BYTE else _scale_for(path, kind, extent, view.ranges)
    return torch.from_numpy(scaled(values, black_white, int(FULL[1])).astype(np.int32))[None, None]


def _scale_for(path: Path, kind: str, extent: Extent, ranges: Ranges) -> tuple[float, ...]:
    """What is black and white of depth from a file; refuses and warns where its unit is not that of the training."""
    known = ranges.of(kind)
    if not known:
        if other := ranges.whole or ranges.floats:
            words = ("floats", "whole numbers") if kind == FLOAT else ("whole numbers", "floats")
            raise TesseraeError(f"{path} holds {words[0]}, and depth was trained on {words[1]} from {other[0]:,g} to "
                                f"{other[1]:,g}: save it in that unit.")
        return FULL if kind == WHOLE else range_of(extent, kind, paired=True)
    low, high = inliers(extent)
    if low > known[1] or high < known[0] or high - known[0] > 2 * (known[1] - known[0]):
        raise TesseraeError(f"{path} holds {low:,g} to {high:,g}, and depth was trained on {known[0]:,g} to "
                            f"{known[1]:,g}: save it in that unit.")
    if low < known[0] or high > known[1]:
        warnings.warn(f"{path} holds {low:,g} to {high:,g}, and depth was trained on {known[0]:,g} to {known[1]:,g}: "
                      "what lies outside is cut off.", stacklevel=4)
    return known


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TesseraeError(f"{path} cannot be read ({error.strerror}): name a picture.") from None


def large_conditions(source: str, views: Mapping[str, View], size: tuple[int, int], count: int, seed: int,
                     held_out: Pictures, root: Path) -> tuple[Conditions, Tensor | None]:
    """Conditions for `count` pictures of any size, and their classes (count,) or None.

    source: "scenes": landscapes rendered anew; "held_out": those of held-out pictures, enlarged; else the path of a
    picture, or of a folder of them. Raises TesseraeError where the source cannot give what a view needs.
    """
    if source == SCENES:
        raw, labels = scene_conditions(views, size, count, seed)
        known = {name: number for number, name in enumerate(held_out.class_names)}
        return raw, torch.tensor([known.get(label, 0) for label in labels]) if known else None
    if source == HELD_OUT:
        chosen = [(2 * place + 1 + seed) * len(held_out) // (2 * count) % len(held_out) for place in range(count)]
        labels = None if held_out.labels is None else held_out.labels[chosen]
        return {name: enlarged(view, held_out, chosen, size) for name, view in views.items()}, labels
    paths = layout_files(root / source)
    used = [paths[number % len(paths)] for number in range(count)]
    raw = {name: torch.cat([read_condition(path, view, size) for path in used]) for name, view in views.items()}
    return raw, None if held_out.labels is None else torch.zeros(count, dtype=torch.int64)
