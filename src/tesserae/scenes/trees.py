"""Trees, in rows from far to near."""

from __future__ import annotations

import numpy as np

from tesserae.scenes.ground import haze_colour, hazed, wooded
from tesserae.scenes.maths import cos, hypot, power, sin
from tesserae.scenes.noise import Noise, fbm, smoothstep
from tesserae.scenes.relief import relief
from tesserae.scenes.view import FOREST, Canvas, View, blend
from tesserae.scenes.world import World


def draw_trees(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Paint every row over what lies behind it."""
    if not world.tree_rows:
        return
    haze = haze_colour(world, view)
    for trees in _planted(world, noise, view):
        for shift in (-1, 1, 0):
            _paint(world, noise, view, canvas, trees, shift, haze)


def _planted(world: World, noise: Noise, view: View) -> list[dict[str, np.ndarray]]:
    """The trees, row by row from far to near, one in each cell across.

    `cell`: (W,) which tree of the row stands in each column of the picture; all else: (n,), one a tree.
    """
    spacing = world.tree_height * (0.36 + 0.30 * world.broadleaf)
    distances = np.geomspace(world.tree_far, world.tree_near, world.tree_rows, dtype=np.float32)
    cells = np.floor(view.across * distances[:, None] / spacing).astype(int) + 1  # (rows,W)
    numbers = [np.arange(row[0] - 1, row[-1] + 2) for row in cells]
    lengths = [len(row) for row in numbers]
    row, number = np.repeat(np.arange(len(cells)), lengths), np.concatenate(numbers)

    def lot(which: int) -> np.ndarray:  # in [-1, 1], the same tree at any resolution
        return noise.lattice[(row * 7 + which) % 256, (number * 5 + row * 41) % 256]

    z = distances[row] * (1 + 0.08 * lot(0))
    x = (number - 0.5 + 0.38 * lot(1)).astype(np.float32) * spacing
    ground, dx, dz = relief(world, noise, x, z, 6)
    there = wooded(world, noise, x, z) + 0.5 * lot(3) > 0
    there &= ground < min(0.72 * world.snow_line, 1.2) * (0.85 + 0.3 * lot(3))
    there &= hypot(dx, dz) < 0.9
    if world.shore:
        there &= ground > 0.012
    trees = {
        "x": x / z, "z": z, "base": (ground - world.camera) / z, "there": there,
        "tall": world.tree_height * (0.8 + 0.4 * lot(2)) / z, "leafy": 0.5 + 0.5 * lot(4) < world.broadleaf,
        "tone": lot(5), "seed": 50 + 50 * lot(6),
    }
    ends = np.cumsum(lengths)
    return [
        {"cell": cells[k] - numbers[k][0]} | {name: value[end - lengths[k]:end] for name, value in trees.items()}
        for k, end in enumerate(ends)
    ]


def _paint(world: World, noise: Noise, view: View, canvas: Canvas, trees: dict, shift: int,
           haze: np.ndarray) -> None:
    """Paint the trees whose cell lies `shift` cells beside each column's own."""
    which = trees["cell"] + shift
    reach = np.where(trees["leafy"], 0.36, 0.2) * trees["tall"]
    shown = trees["there"][which] & (np.abs(view.across - trees["x"][which]) < reach[which])
    columns = np.nonzero(shown)[0]
    if not len(columns):
        return
    which = which[columns]
    base, tall = trees["base"][which], trees["tall"][which]
    first = int(np.clip((view.up[0] - (base + tall).max()) / view.pixel - 1, 0, len(view.up)))
    last = int(np.clip((view.up[0] - base.min()) / view.pixel + 2, 0, len(view.up)))
    if first >= last:
        return
    part = np.ix_(np.arange(first, last), columns)
    t = (view.up[first:last, None] - base) / tall  # 0 at the foot, 1 at the top
    s = (view.across[columns] - trees["x"][which]) / tall
    s = np.broadcast_to(s, t.shape)
    sharp = tall / view.pixel  # pixels from foot to top
    seed, leafy = trees["seed"][which], trees["leafy"][which]
    if leafy.all():
        inside, shade = _broadleaf(world, noise, s, t, seed, sharp)
    else:
        inside, shade = _conifer(world, noise, s, t, seed, sharp)
        if leafy.any():
            other, light = _broadleaf(world, noise, s, t, seed, sharp)
            inside, shade = np.where(leafy, other, inside), np.where(leafy, light, shade)
    z = trees["z"][which]
    inside = inside * (canvas.distance[part] > z * 0.985)
    albedo = _leaf_colour(world, trees["tone"][which], leafy)[:, None, :]  # (3,1,n)
    sun, ambient = (np.asarray(c, np.float32)[:, None, None] for c in (world.light.sun, world.light.ambient))
    colour = albedo * (sun * shade + ambient * (0.3 + 0.6 * np.clip(t, 0, 1)))
    colour = hazed(world, colour, z, haze[:, None, columns])
    place = (slice(None), *part)
    canvas.colour[place] = blend(canvas.colour[place], colour, inside)
    solid = inside > 0.5
    canvas.segment[part] = np.where(solid, FOREST, canvas.segment[part])
    canvas.distance[part] = np.where(solid, z, canvas.distance[part])


def _conifer(world: World, noise: Noise, s, t, seed, sharp):
    """(inside (h,n), light (h,n)) of a fir: a cone of drooping whorls."""
    layers = 8 + seed % 5
    fine = sharp.max() > 20
    ragged = fbm(noise, s * 30 + seed, t * 34 + seed, 2, 0.7) if fine else 0.0
    phase = t * layers + np.abs(s) * 9 + seed + 0.35 * ragged
    whorl = phase - np.floor(phase)
    wide = 0.155 + 0.035 * sin(seed * 7)
    width = wide * power(np.clip(1.03 - t, 0, 1), 0.85) * (1.15 - 0.6 * whorl) + 0.016 * ragged
    width = np.where(t < 0.06, 0.018, width) * (t >= -0.02)
    inside = np.clip((width - np.abs(s)) * sharp + 0.5, 0, 1) * (t < 1.0)
    right, above, ahead = world.light.direction
    side = s / np.maximum(width, 1e-3)
    light = np.clip(0.28 + 0.42 * side * right - 0.25 * ahead + 0.2 * above, 0.03, 1)
    return inside, light * np.clip(0.35 + 0.9 * (1 - whorl) + 0.35 * ragged, 0.1, 1.6)


def _broadleaf(world: World, noise: Noise, s, t, seed, sharp):
    """(inside, light) of a round crown on a trunk."""
    wide, tall = 0.27 + 0.04 * sin(seed * 5), 0.39 + 0.03 * cos(seed * 3)
    nx, ny = s / wide, (t - 0.6) / tall
    lumps = noise(s * 8 + seed, t * 8 + seed)
    leaves = fbm(noise, s * 22 + seed, t * 22, 3, 0.75) if sharp.max() > 20 else 0.0
    radius = np.sqrt(nx * nx + ny * ny) + 0.22 * lumps + 0.11 * leaves
    crown = np.clip((1 - radius) * 0.25 * sharp + 0.5, 0, 1)
    trunk = np.clip((0.02 + 0.01 * (0.3 - t) - np.abs(s)) * sharp + 0.5, 0, 1) * (t < 0.5) * (t > -0.01)
    right, above, ahead = world.light.direction
    depth = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
    light = 0.28 + 0.42 * (nx * right + ny * above - depth * ahead) - 0.45 * lumps + 0.30 * leaves
    return np.maximum(crown, trunk), np.where(crown > 0.1, np.clip(light, 0.03, 1.2), 0.12)


def _leaf_colour(world: World, tone: np.ndarray, leafy: np.ndarray) -> np.ndarray:
    """Albedo of each tree, (3,n)."""
    fir = np.array([[0.032], [0.070], [0.030]], np.float32) * (1 + 0.35 * tone)
    green = np.array([[0.068], [0.125], [0.022]], np.float32) * (1 + 0.4 * tone)
    gold = np.stack([0.34 + 0.08 * tone, 0.15 + 0.12 * tone, 0.015 + 0 * tone])
    turned = smoothstep(0.0, 0.5, world.autumn + 0.4 * tone) if world.autumn else 0.0
    return np.where(leafy, blend(green, gold, turned), fir).astype(np.float32)
