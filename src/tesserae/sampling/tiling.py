"""Large code maps to pictures and back, in overlapping tiles where the whole is too much for the memory.

GroupNorm and self-attention read the whole of their input, so a tile differs a little from the same part of a larger
one. Tiles of a map are therefore all of one size, and where they overlap one fades into the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from math import ceil

import torch
from einops import rearrange
from torch import Tensor

from tesserae.errors import TesseraeError
from tesserae.models.vqgan import VQGAN

TILE, OVERLAP = 32, 4  # codes: of 8 to 64, LPIPS of scenes of 512 pixels was best at 32, and no seam showed from 2 on
Progress = Callable[[int, int], None]


@torch.no_grad()
def decode_map(vqgan: VQGAN, codes: Tensor, tile: int = TILE, overlap: int = OVERLAP,
               progress: Progress | None = None) -> Tensor:
    """Code maps -> pictures of any size: (H,W) or (B,H,W) int64 -> (B,C,f H,f W) float32 as `VQGAN.decode`'s.

    Maps of at most tile x tile codes are decoded whole; larger ones in tiles of that size, whose neighbours share at
    least `overlap` rows or columns of codes, where one fades into the other in equal steps. One tile at a time is
    decoded on the network's device, and the pictures gather on the codes': memory beside theirs is bounded by the
    tile. progress(done, total) counts tiles. Raises TesseraeError for a tile or an overlap that does not fit, and for
    codes that the codebook does not have.
    """
    maps = codes if codes.ndim == 3 else rearrange(codes, "h w -> 1 h w")
    device, f = next(vqgan.parameters()).device, vqgan.config.downsampling
    rows, cols = _tiles(maps.shape[1:], tile, overlap)
    fades = [_fades(axis, f, codes.device) for axis in (rows, cols)]
    pictures = torch.zeros(len(maps), vqgan.config.out_channels, f * maps.shape[1], f * maps.shape[2],
                           device=codes.device)
    tiles = product(range(len(maps)), zip(rows, fades[0]), zip(cols, fades[1]))
    for number, (row, down), (col, right) in _counted(tiles, progress):
        part = vqgan.decode(maps[number:number + 1, row, col].to(device))[0].to(codes.device)  # (C,f h,f w)
        pictures[number, :, _pixels(row, f), _pixels(col, f)] += part * down[:, None] * right
    if vqgan.config.colours:
        return pictures
    return pictures.clamp_(-1, 1)  # weights that are rounded may lead a little past it


@torch.no_grad()
def encode_map(vqgan: VQGAN, images: Tensor, tile: int = TILE, overlap: int = OVERLAP,
               progress: Progress | None = None) -> Tensor:
    """Pictures of any size -> code maps: (C,H,W) or (B,C,H,W) in [-1,1], f divides H and W -> (B,H/f,W/f) int64.

    Tiles as for `decode_map`. Codes cannot be blended: where tiles overlap, each gives the half that is further
    from its own edge. Codes are on the device of the pictures. Raises TesseraeError for a tile or an overlap that
    does not fit, and for sizes that f does not divide.
    """
    batch = images if images.ndim == 4 else images[None]
    device, f = next(vqgan.parameters()).device, vqgan.config.downsampling
    shape = vqgan.map_shape(batch)
    rows, cols = _tiles(shape, tile, overlap)
    codes = torch.zeros(len(batch), *shape, dtype=torch.int64, device=images.device)
    tiles = product(range(len(batch)), zip(rows, _interiors(rows)), zip(cols, _interiors(cols)))
    for number, (row, inner), (col, between) in _counted(tiles, progress):
        part = batch[number:number + 1, :, _pixels(row, f), _pixels(col, f)].to(device)
        found = vqgan.encode(part)[0].to(images.device)  # (h,w)
        codes[number, inner, between] = found[inner.start - row.start:inner.stop - row.start,
                                              between.start - col.start:between.stop - col.start]
    return codes


def _counted(tiles: Iterable, progress: Progress | None) -> Iterator[tuple]:
    every = list(tiles)
    for done, tile in enumerate(every, 1):
        yield tile
        if progress:
            progress(done, len(every))


def _tiles(shape: tuple[int, int], tile: int, overlap: int) -> tuple[list[slice], list[slice]]:
    """The rows and the columns that tiles span."""
    if tile < 1 or not 0 <= overlap < tile:
        raise TesseraeError(f"a tile of {tile} codes with an overlap of {overlap} is not allowed; a tile has at "
                            "least 1 code a side, and the overlap is at least 0 and less than the tile.")
    whole = shape[0] * shape[1] <= tile * tile
    return tuple([slice(0, size)] if whole else _spans(size, tile, overlap) for size in shape)


def _spans(size: int, tile: int, overlap: int) -> list[slice]:
    """As few tiles as cover an axis with the overlap, all of one size and evenly spread."""
    if size <= tile:
        return [slice(0, size)]
    count = ceil((size - overlap) / (tile - overlap))
    starts = [round(number * (size - tile) / (count - 1)) for number in range(count)]
    return [slice(start, start + tile) for start in starts]


def _fades(spans: list[slice], f: int, device: torch.device) -> list[Tensor]:
    """The weights of each tile's pixels along an axis, (f tile,): they sum to 1 over the tiles at every pixel."""
    weights = torch.zeros(len(spans), f * spans[-1].stop, device=device)
    for number, span in enumerate(spans):
        weight = weights[number, _pixels(span, f)]
        weight += 1
        centre = torch.arange(len(weight), device=device) + 0.5
        if number:
            weight *= (centre / (f * (spans[number - 1].stop - span.start))).clamp(max=1)
        if number + 1 < len(spans):
            weight *= ((len(weight) - centre) / (f * (span.stop - spans[number + 1].start))).clamp(max=1)
    weights /= weights.sum(0)  # not 1 where three tiles meet
    return [weights[number, _pixels(span, f)] for number, span in enumerate(spans)]


def _interiors(spans: list[slice]) -> list[slice]:
    """What is kept of each tile along an axis: up to the middle of what it shares with its neighbours."""
    cuts = [(span.stop + following.start) // 2 for span, following in pairwise(spans)]
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, spans[-1].stop])]


def _pixels(codes: slice, f: int) -> slice:
    return slice(f * codes.start, f * codes.stop)
