"""Conditions from outside the prepared set: a user's picture, a painted layout, a scene of any size."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from tesserae.data.decode import Rejected, decode
from tesserae.data.layouts import draw_layout, read_layout
from tesserae.data.pictures import Pictures
from tesserae.data.raw import Entry
from tesserae.data.scenes import SEGMENT_PALETTE, render_scene
from tesserae.data.views import Classes, Depth, View
from tesserae.errors import TesseraeError

SCENES_SEED = 1 << 20  # landscapes that no training set holds
Stored = dict[str, Tensor]  # by condition, (B,c,H,W) in the view's stored form


def foreign_condition(path: str, views: Mapping[str, View], size: tuple[int, int], root: Path | None) -> Stored:
    """One condition for each view, (1,c,H,W), from the picture at `path`, or painted where that is "".

    {} where there is no path and a view for which nothing can be painted, or no view at all. Raises TesseraeError
    for a file that cannot be read as what the view needs.
    """
    if path:
        return {name: read_condition(root / path, view, size) for name, view in views.items()}
    if views and all(_of_scenes(view) for view in views.values()):
        return {name: draw_layout(0, size)[None, None].to(torch.uint8) for name in views}
    return {}


def read_condition(path: Path, view: View, size: tuple[int, int]) -> Tensor:
    """A user's picture as a view's stored form, (1,c,H,W): its middle, brought to `size` (height, width)."""
    if isinstance(view, Classes):
        return read_layout(path, view.channels, view.colours, size)[None, None].to(torch.uint8)
    image = _read_rgb(path, size)
    if isinstance(view, Depth):
        return image.float().mean(1, keepdim=True).mul(257).round().int()
    found = view.of_picture(image)
    return image if found is None else found


def scene_conditions(views: Mapping[str, View], size: tuple[int, int], count: int,
                     seed: int) -> tuple[Stored, list[str]]:
    """The conditions of landscapes rendered at any size, and their classes. Raises TesseraeError for other data."""
    others = [name for name, view in views.items() if isinstance(view, Classes) and not _of_scenes(view)]
    if others:
        raise TesseraeError(f"highres.layout = 'scenes' renders landscapes, whose classes are not those of vqgan."
                            f"{others[0]}: set it to held_out, or to a folder of pictures.")
    scenes = [render_scene(SCENES_SEED + seed, number, size) for number in range(count)]
    stored: Stored = {}
    for name, view in views.items():
        if isinstance(view, Classes):
            values = [scene.segmentation[None] for scene in scenes]
        elif isinstance(view, Depth):
            values = [np.rint(scene.depth * 65535).astype(np.int32)[None] for scene in scenes]
        else:
            values = [rearrange(scene.image, "h w c -> c h w") for scene in scenes]
        stored[name] = torch.from_numpy(np.stack(values))
        if not isinstance(view, Classes | Depth):
            stored[name] = view.of_picture(stored[name])
    return stored, [scene.label for scene in scenes]


def enlarged(view: View, pictures: Pictures, chosen: list[int], size: tuple[int, int]) -> Tensor:
    """Conditions of pictures of the set, enlarged to cover `size`, the middle cut out: stored form (B,c,H,W)."""
    stored = view.stored(pictures, chosen)
    scale = max(side / own for side, own in zip(size, stored.shape[-2:]))
    whole = [max(side, round(own * scale)) for side, own in zip(size, stored.shape[-2:])]
    if view.smooth:
        low, high = int(stored.min()), int(stored.max())
        large = F.interpolate(stored.float(), whole, mode="bicubic", align_corners=False).round().clamp(low, high)
    else:
        large = F.interpolate(stored.float(), whole, mode="nearest")
    top, left = ((own - side) // 2 for own, side in zip(whole, size))
    return large[..., top:top + size[0], left:left + size[1]].to(stored.dtype)


def _of_scenes(view: View) -> bool:
    return isinstance(view, Classes) and view.colours == list(SEGMENT_PALETTE[:view.channels])


def _read_rgb(path: Path, size: tuple[int, int]) -> Tensor:
    """(1,3,H,W) uint8, scaled to cover the size, the middle cut out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TesseraeError(f"{path} cannot be read ({error.strerror}): name a picture.") from None
    side = max(size)
    found = decode(Entry(str(path), lambda: content), side, "cover", 1)
    if isinstance(found, Rejected):
        raise TesseraeError(f"{path} is refused ({found}): take a JPEG, PNG or WebP picture.")
    square = torch.from_numpy(np.array(Image.open(io.BytesIO(found.image)))).permute(2, 0, 1)[None]
    top, left = ((side - own) // 2 for own in size)
    return square[..., top:top + size[0], left:left + size[1]]


def large_conditions(source: str, views: Mapping[str, View], size: tuple[int, int], count: int, seed: int,
                     held_out: Pictures, root: Path) -> tuple[Stored, Tensor | None]:
    """Conditions for `count` pictures of any size, and their classes (count,) or None.

    source: "scenes": landscapes rendered anew; "held_out": those of held-out pictures, enlarged; else the path of a
    picture, or of a folder of them. Raises TesseraeError where the source cannot give what a view needs.
    """
    if source == "scenes":
        stored, labels = scene_conditions(views, size, count, seed)
        known = {name: number for number, name in enumerate(held_out.class_names)}
        return stored, torch.tensor([known.get(label, 0) for label in labels]) if known else None
    if source == "held_out":
        chosen = [(2 * place + 1 + seed) * len(held_out) // (2 * count) % len(held_out) for place in range(count)]
        labels = None if held_out.labels is None else held_out.labels[chosen]
        return {name: enlarged(view, held_out, chosen, size) for name, view in views.items()}, labels
    place = root / source
    paths = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
    if not paths:
        raise TesseraeError(f"{place} holds no picture: put some there, or change the layout of highres.")
    used = [paths[number % len(paths)] for number in range(count)]
    stored = {name: torch.cat([read_condition(path, view, size) for path in used]) for name, view in views.items()}
    return stored, None if held_out.labels is None else torch.zeros(count, dtype=torch.int64)
