"""What the playground computes: pictures drawn, completed, taken apart into codes and painted over."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from einops import repeat
from PIL import Image
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.decode import Rejected, decode
from tesserae.data.pictures import Pictures
from tesserae.data.raw import Entry
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.params import SampleParams, load_params
from tesserae.sampling.sampler import sample
from tesserae.stage import find_root, stage_block

PARTS = ("upper half", "lower half", "left half", "right half", "all but the middle", "nothing")


@dataclass
class Models:
    """What the panels play with. transformer is None where none is trained yet; `absent` then says so.

    size: pixels a side; fit: how other pictures are brought to it; filters: where the sliders start.
    """

    vqgan: VQGAN
    transformer: LatentTransformer | None
    class_names: list[str]
    held_out: Pictures
    size: int
    fit: str
    filters: SampleParams
    absent: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(h,w) of a code map."""
        return (self.size // self.vqgan.config.downsampling,) * 2


def load_models(target: str = "class", params_file: str = "params.yaml") -> Models:
    """What transformer.<target> of the parameters needs, from models/ and prepared/ of this repository.

    Raises TesseraeError where the VQGAN or the pictures are missing; without a transformer one can still look
    at codes.
    """
    root = find_root()
    params = load_params(root / params_file)
    name, filters = stage_block(params, "transformer", target).vqgan, stage_block(params, "sample", target)
    held_out = Pictures.load(root / "prepared", "validation")
    vqgan = VQGAN.from_pretrained(root / "models" / f"vqgan-{name}")
    transformer, absent = None, ""
    try:
        transformer = LatentTransformer.from_pretrained(root / "models" / f"transformer-{target}")
    except TesseraeError as error:
        absent = str(error)
    names = held_out.class_names if transformer and transformer.config.prefix_vocab > 1 else ["any"]
    return Models(vqgan, transformer, names, held_out, held_out.size, params.prepare.fit, filters, absent)


@torch.no_grad()
def draw(models: Models, label: int, count: int, temperature: float, top_k: int, top_p: float,
         seed: int) -> Tensor:
    """New pictures of a class, (count,3,H,W) in [-1,1]."""
    prefix = torch.full((count, 1), label, dtype=torch.int64)
    codes = sample(needed(models), prefix, models.shape, temperature, top_k, top_p, seed)
    return models.vqgan.decode(codes)


@torch.no_grad()
def complete(models: Models, picture: Tensor, part: str, label: int, count: int, temperature: float, top_k: int,
             top_p: float, seed: int) -> tuple[Tensor, Tensor]:
    """Keep the codes of one part of a picture (3,H,W) uint8 and draw the others.

    -> the picture with what is not given in grey (3,H,W) in [-1,1], and its completions (count,3,H,W).
    """
    known = given_mask(part, models.shape)
    codes = repeat(encode(models, picture), "h w -> b h w", b=count)
    prefix = torch.full((count, 1), label, dtype=torch.int64)
    made = sample(needed(models), prefix, models.shape, temperature, top_k, top_p, seed,
                  given=(known.expand_as(codes), codes))
    f = models.vqgan.config.downsampling
    shown = repeat(known, "h w -> (h f) (w g)", f=f, g=f)
    return torch.where(shown, to_unit(picture), 0.6), models.vqgan.decode(made)


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


def read_picture(content: bytes, size: int, fit: str) -> Tensor:
    """A file's bytes -> (3,size,size) uint8, as the pictures of the set are prepared. Raises
    TesseraeError."""
    found = decode(Entry("the file", lambda: bytes(content)), size, fit, 1)
    if isinstance(found, Rejected):
        raise TesseraeError(f"The file is refused ({found}): take a JPEG, PNG or WebP picture.")
    return torch.from_numpy(np.array(Image.open(io.BytesIO(found.image)))).permute(2, 0, 1)


def needed(models: Models) -> LatentTransformer:
    """The transformer, or a TesseraeError that says what to run for one."""
    if models.transformer is None:
        raise TesseraeError(models.absent)
    return models.transformer
