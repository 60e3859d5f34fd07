"""What the playground computes: pictures drawn, completed, taken apart into codes and painted over."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from einops import repeat
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.conditions import Codes, Label, conditions_of
from tesserae.data.decode import Rejected, decode
from tesserae.data.layouts import write_layout
from tesserae.data.pictures import Pictures
from tesserae.data.raw import Entry
from tesserae.data.scales import NO_RANGES, Ranges
from tesserae.data.sources import check_prepared
from tesserae.data.views import Classes, View, view_of
from tesserae.errors import TesseraeError, writing
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_decoders
from tesserae.params import SampleParams, load_params
from tesserae.sampling.autoregressive import SampleOptions
from tesserae.sampling.conditional import SampleRequest, sample_codes
from tesserae.sampling.tiling import decode_map, encode_map
from tesserae.stage import find_root, stage_block

PARTS = ("upper half", "lower half", "left half", "right half", "all but the middle", "nothing")
Maps = Mapping[str, Tensor]  # by condition, the codes of one picture's map (1,h,w)


@dataclass
class Models:
    """What the panels play with. transformer is None where none is trained yet; `absent` then says so.

    readers: the VQGANs whose codes are its conditions. size: pixels a side; fit: how other pictures are brought
    to it; filters: where the sliders start. root: of the project, and target: of the transformer's parameters.
    """

    vqgan: VQGAN
    transformer: LatentTransformer | None
    class_names: list[str]
    held_out: Pictures
    size: int
    fit: str
    filters: SampleParams
    absent: str = ""
    readers: dict[str, VQGAN] = field(default_factory=dict)
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

    def view(self, name: str) -> View:
        """What the VQGAN of a condition sees."""
        return view_of(self.readers[name].config)

    @property
    def painted(self) -> str | None:
        """The condition that one can paint: a map of classes, where it is the only map."""
        names = [name for name in self.readers if isinstance(self.view(name), Classes)]
        return names[0] if names and len(self.readers) == 1 else None


def load_models(target: str = "class", params_file: str = "params.yaml") -> Models:
    """What transformer.<target> of the parameters needs, from models/ and prepared/ of this repository.

    Raises TesseraeError where the VQGAN or the pictures are missing, or where what is there does not belong together;
    without a transformer, or without the VQGANs of its conditions, one can still look at codes.
    """
    root = find_root()
    params = load_params(root / params_file)
    name, filters = stage_block(params, "transformer", target).vqgan, stage_block(params, "sample", target)
    check_prepared(root / "prepared", params)
    held_out = Pictures.load(root / "prepared", "validation")
    vqgan = VQGAN.from_pretrained(root / "models" / f"vqgan-{name}")
    transformer, absent, readers, names = None, "", {}, ["any"]
    try:
        transformer = LatentTransformer.from_pretrained(root / "models" / f"transformer-{target}")
        conditions = conditions_of(transformer.config.conditions)
        readers = {condition.name: VQGAN.from_pretrained(root / "models" / f"vqgan-{condition.name}")
                   for condition in conditions if isinstance(condition, Codes)}
    except TesseraeError as error:
        transformer, absent = None, str(error)
    else:
        check_decoders(target, transformer, {name: vqgan, **readers}, held_out)
        for condition in conditions:
            if isinstance(condition, Label):  # pictures without classes have no names for them
                names = held_out.class_names or [f"class {label}" for label in range(condition.vocab)]
    return Models(vqgan, transformer, names, held_out, held_out.size, params.prepare.fit, filters, absent, readers,
                  root, target)


@torch.no_grad()
def draw(models: Models, label: int, count: int, temperature: float, top_k: int, top_p: float, seed: int,
         maps: Maps | None = None, shape: tuple[int, int] | None = None, progress=None) -> Tensor:
    """New pictures of a class, (count,3,H,W) in [-1,1]; maps: the transformer's other conditions, where it has any.

    shape: (h,w) codes of the pictures, as large as the maps; None: of the set's pictures.
    """
    options = SampleOptions(temperature, top_k, top_p, seed)
    codes = sample_codes(needed(models), _request(label, count, maps), shape or models.shape, options,
                         progress=progress)
    return _look(models, codes)


@torch.no_grad()
def complete(models: Models, picture: Tensor, part: str, label: int, count: int, temperature: float, top_k: int,
             top_p: float, seed: int, maps: Maps | None = None) -> tuple[Tensor, Tensor]:
    """Keep the codes of one part of a picture (3,H,W) uint8 and draw the others.

    -> the picture with what is not given in grey (3,H,W) in [-1,1], and its completions (count,3,H,W).
    """
    known = given_mask(part, models.shape)
    codes = repeat(encode(models, picture), "h w -> b h w", b=count)
    made = sample_codes(needed(models), _request(label, count, maps), models.shape,
                        SampleOptions(temperature, top_k, top_p, seed), given=(known.expand_as(codes), codes))
    return given_part(models, picture, part), _look(models, made)


def given_part(models: Models, picture: Tensor, part: str) -> Tensor:
    """A picture (3,H,W) uint8 with what is not given in grey, (3,H,W) in [-1,1]."""
    f = models.vqgan.config.downsampling
    shown = repeat(given_mask(part, models.shape), "h w -> (h f) (w g)", f=f, g=f)
    return torch.where(shown, to_unit(picture), 0.6)


@torch.no_grad()
def condition_maps(models: Models, picture: Tensor, number: int | None) -> dict[str, Tensor]:
    """The conditions of a picture (3,H,W) uint8: held-out picture `number`'s, or computed from it where None.

    Raises TesseraeError where one is not known of a picture from outside.
    """
    seen = _conditions_seen(models, picture, number)
    return {name: models.readers[name].encode(each) for name, each in seen.items()}


def condition_pictures(models: Models, picture: Tensor, number: int | None) -> Tensor:
    """A picture and its conditions, as these are looked at: (1+M,3,H,W) in [-1,1]. Raises as `condition_maps`."""
    seen = _conditions_seen(models, picture, number)
    return torch.cat([to_unit(picture)[None], *(models.view(name).drawn(each) for name, each in seen.items())])


def _conditions_seen(models: Models, picture: Tensor, number: int | None) -> dict[str, Tensor]:
    found = {}
    for name in models.readers:
        view = models.view(name)
        stored = view.of_picture(picture[None]) if number is None else view.stored(models.held_out, [number])
        if stored is None:
            raise TesseraeError(f"The {name} of your own picture is not known: take a held-out picture, or paint "
                                "one.")
        found[name] = view.seen(stored)
    return found


@torch.no_grad()
def painted_maps(models: Models, layout: Tensor) -> dict[str, Tensor]:
    """A painted layout, (H,W) int64 of classes, as the transformer's condition."""
    seen = models.view(models.painted).seen(layout[None, None])
    return {models.painted: encode_map(models.readers[models.painted], seen)}


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
        write_layout(folder / name, layout, models.view(models.painted).colours)
    return Path("painted", name)


def encode(models: Models, picture: Tensor) -> Tensor:
    """A picture's codes, (3,H,W) uint8 -> (h,w) int64."""
    return models.vqgan.encode(to_unit(picture[None]))[0]


def given_mask(part: str, shape: tuple[int, int]) -> Tensor:
    """Which codes one of PARTS gives: (h,w) bool."""
    rows, columns = (torch.arange(side) for side in shape)
    upper, left = rows[:, None] < shape[0] // 2, columns[None] < shape[1] // 2
    middle = [(side - 1) / 2 - places for places, side in zip((rows[:, None], columns[None]), shape)]
    central = (middle[0].abs() < shape[0] / 4) & (middle[1].abs() < shape[1] / 4)
    masks = dict(zip(PARTS, (upper, ~upper, left, ~left, ~central, torch.zeros(1, 1, dtype=torch.bool))))
    return masks[part].expand(shape)


def paint(codes: Tensor, row: int, column: int, code: int, brush: int = 1) -> Tensor:
    """A map (h,w) with a square of brush x brush codes around a place replaced; what lies outside is cut
    off."""
    reach = (brush - 1) // 2
    painted = codes.clone()
    painted[max(0, row - reach):row - reach + brush, max(0, column - reach):column - reach + brush] = code
    return painted


def stroke(layout: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float,
           value: int) -> None:
    """Draw a round brush's stroke of a class into a layout (H,W), from one (x,y) to another, in pixels."""
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
    found = decode(Entry("the file", lambda: bytes(content)), size, fit, 1)
    if isinstance(found, Rejected):
        raise TesseraeError(f"The file is refused ({found}): take a JPEG, PNG or WebP picture.")
    return torch.from_numpy(np.array(found.shown(ranges))).permute(2, 0, 1)


def needed(models: Models) -> LatentTransformer:
    """The transformer, or a TesseraeError that says what to run for one."""
    if models.transformer is None:
        raise TesseraeError(models.absent)
    return models.transformer


def _request(label: int, count: int, maps: Maps | None) -> SampleRequest:
    labels = torch.full((count,), label, dtype=torch.int64)
    return SampleRequest(count, labels, {name: part.expand(count, -1, -1) for name, part in (maps or {}).items()})


def _look(models: Models, codes: Tensor) -> Tensor:
    return view_of(models.vqgan.config).drawn(decode_map(models.vqgan, codes))
