"""Trees, in rows from far to near."""

from __future__ import annotations

import numpy as np

from tesserae.data.scenes_ground import haze_colour, hazed
from tesserae.data.scenes_noise import SIDE, Noise, smoothstep
from tesserae.data.scenes_relief import relief
from tesserae.data.scenes_view import FOREST, Canvas, View, blend
from tesserae.data.scenes_world import World


def draw_trees(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Paint every row over what lies behind it."""
    if not world.tree_rows:
        return
    haze = haze_colour(world, view)
    for row, z in enumerate(np.geomspace(world.tree_far, world.tree_near, world.tree_rows)):
        trees = _plant(world, noise, view, row, float(z))
        for shift in (-1, 1, 0):
            _paint(world, noise, view, canvas, trees, shift, haze)


def _plant(world: World, noise: Noise, view: View, row: int, z: float) -> dict[str, np.ndarray]:
    """The trees of one row, one in each cell across; `cell`: (W,) which of them stands in each column."""
    spacing = world.tree_height * (0.42 + 0.25 * world.broadleaf)
    cells = np.floor(view.across * z / spacing).astype(int)
    first = cells[0] - 1
    numbers = np.arange(first, cells[-1] + 2)
    draws = noise._cells[:, 0].reshape(SIDE, SIDE)

    def lot(which: int) -> np.ndarray:  # white noise in [-1, 1], the same tree at any resolution
        return draws[(row * 7 + which) % SIDE, (numbers * 5 + row * 41) % SIDE]

    away = z * (1 + 0.10 * lot(0))
    x = (numbers + 0.5 + 0.38 * lot(1)) * spacing
    ground, dx, dz = relief(world, noise, x.astype(np.float32), away.astype(np.float32), 6)
    tall = world.tree_height * (0.85 + 0.35 * lot(2))
    clump = noise(x * 0.9 + 30, away * 0.9 + 60)
    clearing = np.exp(-(((x / away - world.clearing) / 0.2) ** 2)) if world.biome == "forest" else 0
    there = (clump + 0.5 * lot(3) - 1.6 * clearing > (-0.75 if world.biome == "forest" else -0.1))
    if world.shore:
        there &= ground > 0.012
    there &= ground < 0.75 * min(world.snow_line, 1.4)
    return {
        "cell": cells - first, "x": x / away, "z": away, "base": (ground - world.camera) / away, "tall": tall / away,
        "there": there & (tall > 0), "leafy": 0.5 + 0.5 * lot(4) < world.broadleaf,
        "tone": lot(5), "seed": 50 + 50 * lot(6),
    }


def _paint(world: World, noise: Noise, view: View, canvas: Canvas, trees: dict, shift: int,
           haze: np.ndarray) -> None:
    """Paint the trees whose cell lies `shift` cells beside each column's own."""
    which = trees["cell"] + shift
    shown = trees["there"][which]
    if not shown.any():
        return
    base, tall = trees["base"][which], trees["tall"][which]
    top, bottom = (base + tall)[shown].max(), base[shown].min()
    first = int(np.clip((view.up[0] - top) / view.pixel - 1, 0, len(view.up)))
    last = int(np.clip((view.up[0] - bottom) / view.pixel + 2, 0, len(view.up)))
    if first >= last:
        return
    columns = np.nonzero(shown)[0]
    which, base, tall = which[columns], base[columns], tall[columns]
    part = np.ix_(np.arange(first, last), columns)
    t = (view.up[first:last, None] - base) / tall  # 0 at the foot, 1 at the top
    s = (view.across[columns] - trees["x"][which]) / tall
    s = np.broadcast_to(s, t.shape)
    sharp = tall / view.pixel  # pixels from foot to top
    seed, leafy = trees["seed"][which], trees["leafy"][which]
    inside, shade = _conifer(world, noise, s, t, seed, sharp)
    if leafy.any():
        other, light = _broadleaf(world, noise, s, t, seed, sharp)
        inside, shade = np.where(leafy, other, inside), np.where(leafy, light, shade)
    z = trees["z"][which]
    inside = inside * (canvas.distance[part] > z * 0.985)
    tone = trees["tone"][which]
    albedo = _leaf_colour(world, tone, leafy)[:, None, :]  # (3,1,W)
    sun, ambient = (np.asarray(c, np.float32)[:, None, None] for c in (world.light.sun, world.light.ambient))
    colour = albedo * (sun * shade + ambient * (0.35 + 0.5 * np.clip(t, 0, 1)))
    colour = hazed(world, colour, z, haze[:, None, columns])
    place = (slice(None), *part)
    canvas.colour[place] = blend(canvas.colour[place], colour, inside)
    solid = inside > 0.5
    canvas.segment[part] = np.where(solid, FOREST, canvas.segment[part])
    canvas.distance[part] = np.where(solid, z, canvas.distance[part])


def _conifer(world: World, noise: Noise, s, t, seed, sharp):
    """(inside (h,W), light (h,W)) of a fir: a cone of drooping whorls."""
    layers = 9 + seed % 5
    ragged = noise(s * 26 + seed, t * 30) * 0.05 if sharp.max() > 14 else 0.0
    phase = t * layers + np.abs(s) * 7 + seed + ragged * 6
    whorl = phase - np.floor(phase)
    width = (0.15 + 0.04 * np.sin(seed * 7)) * np.clip(1.02 - t, 0, 1) ** 0.9 * (1.12 - 0.55 * whorl) + ragged * 0.3
    width = np.where(t < 0.06, 0.018, width) * (t >= -0.02)
    inside = np.clip((width - np.abs(s)) * sharp + 0.5, 0, 1) * (t < 1.0)
    right, above, ahead = world.light.direction
    side = s / np.maximum(width, 1e-3)
    light = np.clip(0.30 + 0.35 * side * right - 0.25 * ahead + 0.25 * above, 0.03, 1) * (0.45 + 0.75 * (1 - whorl))
    return inside, light


def _broadleaf(world: World, noise: Noise, s, t, seed, sharp):
    """(inside, light) of a round crown on a trunk."""
    wide = 0.30 + 0.05 * np.sin(seed * 5)
    nx, ny = s / wide, (t - 0.6) / 0.40
    lumps = noise(s * 9 + seed, t * 9 + seed)
    leaves = noise(s * 31 + seed, t * 31) if sharp.max() > 14 else 0.0
    radius = np.sqrt(nx * nx + ny * ny) + 0.28 * lumps + 0.10 * leaves
    crown = np.clip((1 - radius) * 0.3 * sharp + 0.5, 0, 1)
    trunk = np.clip((0.022 - np.abs(s)) * sharp + 0.5, 0, 1) * (t < 0.5) * (t > -0.01)
    right, above, ahead = world.light.direction
    depth = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0, 1))
    light = np.clip(0.25 + 0.5 * (nx * right + ny * above - depth * ahead) - 0.35 * lumps + 0.3 * leaves, 0.03, 1.1)
    light = np.where(crown > 0.1, light, 0.12)
    return np.maximum(crown, trunk), light


def _leaf_colour(world: World, tone: np.ndarray, leafy: np.ndarray) -> np.ndarray:
    """Albedo of each tree, (3,n)."""
    fir = np.array([[0.035], [0.075], [0.030]], np.float32) * (1 + 0.35 * tone)
    green = np.array([[0.075], [0.13], [0.025]], np.float32) * (1 + 0.35 * tone)
    gold = np.stack([0.36 + 0.1 * tone, 0.17 + 0.13 * tone, 0.02 + 0 * tone])
    turned = smoothstep(0.0, 0.5, world.autumn + 0.4 * tone)
    return np.where(leafy, blend(green, gold, turned), fir).astype(np.float32)
