"""What single codes look like: decoded alone, decoded in a picture, and the real patches they fit best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.pictures import spread
from tesserae.data.views import Viewed, view_of
from tesserae.evaluation.codebook import MAPS_AT_ONCE, find_pairs
from tesserae.evaluation.distributions import exact
from tesserae.models.vqgan import VQGAN

_FAR = 1e6  # added to the distance of positions that have another code, so that they come last
PICTURES_AT_ONCE = 64  # whole pictures that patches are cut from together
SEARCHED = 16  # pictures with a code, among which its patches are searched


@dataclass
class CodePatches:
    """C codes in pictures, each with its surroundings of one code on every side: s = 3f.

    alone: in a map of nothing else (C,3,s,s); context: in the picture that fits it best (C,3,s,s), both
    decoded, in [-1,1]; real: the patches of real pictures that fit best (C,P,3,s,s) uint8; chosen (C,P):
    whether the encoder gives these patches that code.
    """

    alone: Tensor
    context: Tensor
    real: Tensor
    chosen: Tensor


@torch.no_grad()
def code_patches(model: VQGAN, pictures: Viewed, indices: Tensor, codes: Sequence[int], patches: int,
            batch_size: int) -> CodePatches:
    """The patches of some codes; indices (N,h,w) are the maps of `pictures`.

    For the context, the code is put at its best position even where the encoder chose another one there. Patches are
    searched in SEARCHED pictures a code, or more where several codes share pictures.
    """
    f = model.config.downsampling
    among = pictures_with(indices, codes, max(SEARCHED, patches))
    positions = nearest_patches(model, pictures, indices, codes, patches, batch_size, among)
    picture, row, column = positions.picture[:, 0], positions.row[:, 0], positions.column[:, 0]  # (C,)
    maps = indices[picture].long()
    maps[torch.arange(len(maps)), row, column] = torch.as_tensor(list(codes))
    parts = zip(*(each.split(batch_size) for each in (maps, row, column)))
    context = torch.cat([crop_patches(decode_patches(model, part, edge=0, batch_size=batch_size), *where, f)
                         for part, *where in parts])
    flat = (each.flatten() for each in (positions.picture, positions.row, positions.column))
    return CodePatches(decode_patches(model, uniform_maps(codes), batch_size=batch_size),
                   context, real_patches(pictures, *flat, f).unflatten(0, positions.picture.shape), positions.chosen)


def real_patches(pictures: Viewed, picture: Tensor, row: Tensor, column: Tensor, factor: int,
                 around: int = 1) -> Tensor:
    """Cut the positions (B,) of single codes out of the pictures: (B,3,s,s) uint8, see `crop_patches`."""
    parts = zip(*(each.split(PICTURES_AT_ONCE) for each in (picture, row, column)))
    return torch.cat([crop_patches(pictures.batch(chosen.tolist()), *positions, factor, around)
                      for chosen, *positions in parts])


@dataclass
class PatchPositions:
    """The positions that a code fits best, at most one a picture: (codes, count) each.

    picture, row, column: where; chosen: whether the encoder chooses that code there. Positions where it does come
    first, then the nearest others; within both by the distance ||z_hat - z_k||.
    """

    picture: Tensor
    row: Tensor
    column: Tensor
    distance: Tensor
    chosen: Tensor


def pair_patches(pictures: Viewed, indices: Tensor, pairs: Sequence[tuple[int, int]], direction: str,
                 count: int, factor: int) -> Tensor:
    """Real positions of pairs of codes, with two codes around the first: (len(pairs),count,3,5f,5f) uint8.

    See `codebook.find_pairs`. Where there are fewer positions the rest is white.
    """
    positions = find_pairs(indices, pairs, direction, count)  # (P,count,3)
    picture, row, column = positions.clamp_min(0).flatten(0, 1).unbind(-1)
    patches = real_patches(pictures, picture, row, column, factor, around=2).unflatten(0, positions.shape[:2])
    return patches.masked_fill((positions[..., 0] < 0)[..., None, None, None], 255)


def pictures_with(indices: Tensor, codes: Sequence[int], count: int) -> Tensor:
    """Numbers (M,) of pictures that have the codes, ascending: `count` for each code, fewer where there are fewer.

    indices: maps (N,h,w). The rarest codes choose first, from all over the set, so that few pictures serve many
    codes. For a code in no map there are `count` pictures from all over the set.
    """
    has_code = torch.cat([torch.stack([(part == code).flatten(1).any(1) for code in codes])
                      for part in indices.split(MAPS_AT_ONCE)], 1)  # (C,N)
    chosen = torch.zeros(len(indices), dtype=torch.bool)
    for holders in has_code[has_code.sum(1).argsort(stable=True)]:
        missing = count - int((holders & chosen).sum())
        others = (holders & ~chosen if holders.any() else ~chosen).nonzero()[:, 0]
        if missing > 0 and len(others):
            chosen[others[torch.tensor(spread(missing, len(others)))]] = True
    return chosen.nonzero()[:, 0]


@torch.no_grad()
def nearest_patches(model: VQGAN, pictures: Viewed, indices: Tensor, codes: Sequence[int], count: int,
                    batch_size: int, among: Tensor | None = None) -> PatchPositions:
    """The positions of real pictures that are nearest to a code, for each of `codes`.

    indices: the maps (N,h,w) of the same pictures; among: numbers of those that are searched, all without it.
    Memory holds one batch and the best so far.
    """
    device, width = next(model.parameters()).device, indices.shape[-1]
    wanted = torch.as_tensor(list(codes), device=device)
    vectors = model.codebook[wanted].float()  # (C,n_z)
    best: dict[str, Tensor] = {}
    among = torch.arange(len(pictures)) if among is None else among
    for chosen in among.split(batch_size):
        z_hat = rearrange(model.latents(pictures.network_input(chosen.tolist()).to(device)), "b c h w -> b (h w) c")
        distances = torch.cdist(vectors, z_hat.float())  # (B,C,hw)
        maps = rearrange(indices[chosen].to(device), "b h w -> b 1 (h w)")
        others = maps != wanted[:, None]  # (B,C,hw)
        order, position = (exact(distances) + exact(others) * _FAR).min(-1)  # (B,C)
        position = position.to(device)
        distance = distances.gather(-1, position[..., None])[..., 0]
        picture = chosen[:, None].expand_as(position)
        found = {"order": order, "position": position, "distance": distance, "picture": picture}
        part = {name: value.T.cpu() for name, value in found.items()}  # (C,B)
        best = {name: torch.cat([best[name], value], 1) if best else value for name, value in part.items()}
        keep = best["order"].sort(dim=1, stable=True).indices[:, :count]
        best = {name: value.gather(1, keep) for name, value in best.items()}
    return PatchPositions(best["picture"], best["position"] // width, best["position"] % width, best["distance"],
                   best["order"] < _FAR)


def crop_patches(images: Tensor, rows: Tensor, columns: Tensor, factor: int, around: int = 1) -> Tensor:
    """Cut the patch of one code and `around` codes on each side from each picture.

    images (B,C,H,W), rows and columns (B,) of codes, factor f -> (B,C,s,s), s = (2 around + 1) f. What lies
    outside a picture repeats its edge, so the code's own patch is always in the middle.
    """
    reach = around * factor
    padded = torch.nn.functional.pad(images.float(), (reach,) * 4, mode="replicate").to(images.dtype)
    side = factor + 2 * reach
    return torch.stack([picture[:, row * factor:row * factor + side, column * factor:column * factor + side]
                        for picture, row, column in zip(padded, rows.tolist(), columns.tolist())])


def mean_patches(pictures: Viewed, indices: Tensor, codebook_size: int, batch_size: int,
                 device: torch.device | str = "cpu") -> Tensor:
    """The mean of all real patches that are given a code, (K,3,f,f) in [-1,1]; grey, 0, for codes never given.

    indices: the maps (N,h,w) of the same pictures; device: where the sums are made. The result is on the CPU.
    """
    f = pictures.size // indices.shape[-1]
    sums = torch.zeros(codebook_size, 3 * f * f, device=device)
    counts = torch.zeros(codebook_size, device=device)
    for start in range(0, len(pictures), batch_size):
        chosen = range(start, min(start + batch_size, len(pictures)))
        images = to_unit(pictures.batch(chosen).to(device))
        patches = rearrange(images, "b c (h f) (w g) -> (b h w) (c f g)", f=f, g=f)
        codes = indices[chosen.start:chosen.stop].flatten().long().to(device)
        sums.index_add_(0, codes, patches)
        counts += torch.bincount(codes, minlength=codebook_size)
    return rearrange(sums / counts.clamp_min(1)[:, None], "k (c f g) -> k c f g", c=3, f=f).cpu()


def mosaic(patches: Tensor, indices: Tensor) -> Tensor:
    """Each code of maps (B,h,w) replaced by its patch of (K,3,f,f): (B,3,f h,f w)."""
    return rearrange(patches[indices.long()], "b h w c f g -> b c (h f) (w g)")


@torch.no_grad()
def decode_patches(model: VQGAN, maps: Tensor, edge: int = 1, batch_size: int = 64) -> Tensor:
    """Decode small maps (B,s,s), and cut off the `edge` codes next to their borders, which look different.

    -> (B,3,t,t) in [-1,1], t = (s - 2 edge) f.
    """
    device, cut = next(model.parameters()).device, edge * model.config.downsampling
    view = view_of(model.config)
    decoded = torch.cat([view.rendered(model.decode(part.to(device))).cpu() for part in maps.split(batch_size)])
    return decoded[:, :, cut:decoded.shape[2] - cut, cut:decoded.shape[3] - cut]


def uniform_maps(codes: Sequence[int], side: int = 5) -> Tensor:
    """Each code alone: (len(codes),side,side) filled with it."""
    return torch.as_tensor(list(codes))[:, None, None].repeat(1, side, side)
