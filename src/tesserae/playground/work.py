"""What the playground computes: which models and pictures it has, masks of parts, painted codes and layouts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.conditions import Label
from tesserae.data.decoding import decode
from tesserae.data.layouts import write_layout
from tesserae.data.pictures import Pictures
from tesserae.data.sources import check_prepared
from tesserae.data.values import NO_RANGES, Ranges, Rejected
from tesserae.data.views import Classes, View, view_of
from tesserae.errors import TesseraeError, writing
from tesserae.files import find_root
from tesserae.models.vqgan import VQGAN
from tesserae.origins import OriginError, check_decoders
from tesserae.params import SampleParams, load_params
from tesserae.sampling.sampler import Sampler
from tesserae.stage import stage_block

PARTS = ("upper half", "lower half", "left half", "right half", "all but the middle", "nothing")


@dataclass
class Models:
    """What the panels play with. sampler is None where no transformer is trained yet; `absent` then says so.

    class_names: by label, {None: "any"} where the transformer has no classes. size: pixels a side; fit: how other
    pictures are brought to it; filters: where the sliders start. root: of the project, and target: of the
    transformer's parameters.
    """

    vqgan: VQGAN
    sampler: Sampler | None
    class_names: dict[int | None, str]
    held_out: Pictures
    size: int
    fit: str
    filters: SampleParams
    absent: str = ""
    root: Path = Path()
    target: str = "layout"

    @property
    def shape(self) -> tuple[int, int]:
        """(h,w) of a code map."""
        return (self.size // self.vqgan.config.downsampling,) * 2

    @property
    def ranges(self) -> Ranges:
        """The scale of the set's pictures, where they have more than 8 bits."""
        return view_of(self.vqgan.config).ranges

    @property
    def condition_views(self) -> dict[str, View]:
        """What the VQGANs of the transformer's conditions read, by name."""
        return self.sampler.condition_views if self.sampler else {}

    @property
    def paintable(self) -> str | None:
        """The condition that one can paint: a map of classes, where it is the only map."""
        names = [name for name, view in self.condition_views.items() if isinstance(view, Classes)]
        return names[0] if names and len(self.condition_views) == 1 else None


def load_models(target: str = "class", params_file: str = "params.yaml",
                overrides: Mapping[str, Any] | None = None) -> Models:
    """What transformer.<target> of the parameters needs, from models/ and prepared/ of this repository.

    Raises TesseraeError where the VQGAN or the pictures are missing, or where what is there does not belong together;
    without a transformer, or without the VQGANs of its conditions, one can still look at codes. overrides: values
    that replace the file's, see `load_params`.
    """
    root = find_root()
    params = load_params(root / params_file, overrides)
    name, filters = stage_block(params, "transformer", target).vqgan, stage_block(params, "sample", target)
    check_prepared(root / "prepared", params)
    held_out = Pictures.load(root / "prepared", "validation")
    vqgan = VQGAN.from_pretrained(root / "models" / f"vqgan-{name}")
    sampler, absent = None, ""
    try:
        sampler = Sampler.from_pretrained(root / "models" / f"transformer-{target}", "cpu", name)
        check_decoders(target, sampler.transformer, sampler.vqgans, held_out)
    except OriginError:
        raise
    except TesseraeError as error:
        absent = str(error)
    names: dict[int | None, str] = {None: "any"}
    for condition in sampler.conditions if sampler else []:
        if isinstance(condition, Label):  # pictures without classes have no names for them
            names = dict(enumerate(held_out.class_names or [f"class {label}" for label in range(condition.vocab)]))
    return Models(vqgan, sampler, names, held_out, held_out.size, params.prepare.fit, filters, absent, root, target)


def raw_conditions(models: Models, picture: Tensor, number: int | None) -> dict[str, Tensor]:
    """The conditions of a picture (3,H,W) uint8 in their views' raw form, (1,c,H,W) by name.

    Those of held-out picture `number`, or computed from the picture where that is None. Raises TesseraeError where a
    condition cannot be computed from a picture.
    """
    found = {}
    for name, view in models.condition_views.items():
        raw = view.of_picture(picture[None]) if number is None else view.raw(models.held_out, [number])
        if raw is None:
            raise TesseraeError(f"The {name} of your own picture is not known: take a held-out picture, or paint "
                                "one.")
        found[name] = raw
    return found


def save_layout(models: Models, layout: Tensor) -> Path:
    """Write a painted layout, (H,W) of classes, as a PNG of its indices and colours; the path, from the root.

    The file is new: painted/<target>-001.png, or the next number. Raises TesseraeError where it cannot be written.
    """
    folder = models.root / "painted"
    taken = {path.name for path in folder.glob("*.png")}
    names = (f"{models.target}-{number:03d}.png" for number in itertools.count(1))
    name = next(name for name in names if name not in taken)
    with writing(folder / name):
        folder.mkdir(exist_ok=True)
        write_layout(folder / name, layout, models.condition_views[models.paintable].colours)
    return Path("painted", name)


def encode(models: Models, picture: Tensor) -> Tensor:
    """A picture's codes, (3,H,W) uint8 -> (h,w) int64."""
    return models.vqgan.encode(to_unit(picture[None]))[0]


def kept_codes(part: str, shape: tuple[int, int]) -> Tensor:
    """Which codes one of PARTS keeps: (h,w) bool."""
    rows, columns = (torch.arange(side) for side in shape)
    upper, left = rows[:, None] < shape[0] // 2, columns[None] < shape[1] // 2
    middle = [(side - 1) / 2 - positions for positions, side in zip((rows[:, None], columns[None]), shape)]
    central = (middle[0].abs() < shape[0] / 4) & (middle[1].abs() < shape[1] / 4)
    masks = dict(zip(PARTS, (upper, ~upper, left, ~left, ~central, torch.zeros(1, 1, dtype=torch.bool))))
    return masks[part].expand(shape)


def kept_pixels(models: Models, part: str) -> Tensor:
    """Which pixels of a picture of the set one of PARTS keeps: (H,W) bool."""
    f = models.vqgan.config.downsampling
    return repeat(kept_codes(part, models.shape), "h w -> (h f) (w g)", f=f, g=f)


def paint(codes: Tensor, row: int, column: int, code: int, brush: int = 1) -> Tensor:
    """A map (h,w) with a square of brush x brush codes around a position replaced, cut off at the map's edges."""
    reach = (brush - 1) // 2
    painted = codes.clone()
    painted[max(0, row - reach):row - reach + brush, max(0, column - reach):column - reach + brush] = code
    return painted


def stroke(layout: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float,
           value: int) -> None:
    """Paint a round brush's stroke of a class into a layout (H,W), from one (x,y) to another, in pixels."""
    y, x = np.mgrid[:layout.shape[0], :layout.shape[1]] + 0.5
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = along.clip(0, 1)
    near = np.square(x - start[0] - along * dx) + np.square(y - start[1] - along * dy) <= radius * radius
    layout[near] = value


def read_picture(content: bytes, size: int, fit: str, ranges: Ranges = NO_RANGES) -> Tensor:
    """A file's bytes -> (3,size,size) uint8, as the pictures of the set are prepared, with their scale.

    Raises TesseraeError.
    """
    found = decode(bytes(content), size, fit, 1)
    if isinstance(found, Rejected):
        raise TesseraeError(f"The file is refused ({found}): take a JPEG, PNG or WebP picture.")
    return torch.from_numpy(np.array(found.shown(ranges))).permute(2, 0, 1)
