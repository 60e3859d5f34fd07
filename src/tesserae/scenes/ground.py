"""What covers the ground, and how light falls on it."""

from __future__ import annotations

import math

import numpy as np
from einops import rearrange, repeat

from tesserae.scenes.maths import cos, exp, hypot, log2, power
from tesserae.scenes.noise import Noise, fade, fbm, smoothstep
from tesserae.scenes.relief import first_hits, relief
from tesserae.scenes.sky import clear_sky
from tesserae.scenes.view import FOREST, GRASS, MOUNTAIN, SAND, SNOW, WATER, Canvas, View, blend
from tesserae.scenes.world import World

CLOSE = 1.06  # ratio of distances within which points of a pixel count as one surface
FLOWERS = ((0.85, 0.82, 0.75), (0.80, 0.58, 0.04), (0.70, 0.10, 0.06), (0.40, 0.18, 0.60))


def draw_ground(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Paint the ground over the sky; water gets its name here and its colour later.

    Outlines are hard, so the ground is found at four points of each pixel. Where these lie close together one
    is painted for all; elsewhere the pixel is the mean of its four, and its name and distance are the first's.
    """
    height, width = canvas.segment.shape
    fine = View.of(world, 2 * height, 2 * width)
    four = rearrange(first_hits(world, noise, fine), "(h a) (w b) -> h w (a b)", a=2, b=2)
    nearest, farthest = four.min(-1), four.max(-1)
    mixed = np.isfinite(nearest) & ~(farthest < CLOSE * nearest)
    haze = haze_colour(world, view)

    rows, columns = np.nonzero(farthest < CLOSE * nearest)
    z = four[rows, columns].mean(-1)
    colour, segment = _paint(world, noise, view, haze[:, columns], view.across[columns] * z, z)
    canvas.colour[:, rows, columns], canvas.segment[rows, columns] = colour, segment
    canvas.distance[rows, columns] = z

    rows, columns = np.nonzero(mixed)
    z = four[rows, columns]  # (n,4)
    which, corner = np.nonzero(np.isfinite(z))
    across = fine.across[2 * columns[which] + corner % 2]
    seen = z[which, corner]
    colours = repeat(canvas.colour[:, rows, columns], "c n -> c n 4").copy()
    segments = repeat(canvas.segment[rows, columns], "n -> n 4").copy()
    colours[:, which, corner], segments[which, corner] = _paint(
        world, noise, view, haze[:, columns[which]], across * seen, seen)
    canvas.colour[:, rows, columns] = colours.mean(-1)
    canvas.segment[rows, columns], canvas.distance[rows, columns] = segments[:, 0], z[:, 0]


def _paint(world: World, noise: Noise, view: View, haze, x, z) -> tuple[np.ndarray, np.ndarray]:
    """(colour (3,n), segment (n,)) of the ground at points (n,), seen through haze (3,n)."""
    pixel = 0.7 * view.pixel  # rather crisp than calm
    y, dx, dz = relief(world, noise, x, z, 9, pixel)
    cover = _desert if world.biome == "desert" else _green
    albedo, segment, dx, dz = cover(world, noise, x, y, z, dx, dz, 1 / (pixel * z))
    colour = hazed(world, _lit(world, albedo, dx, dz), z, haze)
    return colour, np.where(y < 0, WATER, segment) if world.shore else segment


def haze_colour(world: World, view: View) -> np.ndarray:
    """What distance turns into, (3,W): the sky just above the horizon."""
    sky = clear_sky(world, view.across, np.array([0.04], np.float32))[:, 0]
    return sky * (0.62 if world.light.hour == "sunset" else 0.88)


def hazed(world: World, colour: np.ndarray, z: np.ndarray, haze: np.ndarray) -> np.ndarray:
    """Aerial perspective: colour (3,...) at distance z (...) drowns in haze (3,...)."""
    return blend(colour, haze, 1 - exp(-np.maximum(z - 0.5, 0) / world.haze))


def _lit(world: World, albedo: np.ndarray, dx: np.ndarray, dz: np.ndarray) -> np.ndarray:
    """Sun and sky on a surface with those slopes: albedo (3,n) -> colour (3,n)."""
    right, above, ahead = world.light.direction
    length = 1 / np.sqrt(1 + dx * dx + dz * dz)
    facing = np.clip((above - right * dx - ahead * dz) * length, 0, 1)
    open_sky = 0.4 + 0.6 * length
    sun, ambient = (np.asarray(c, np.float32)[:, None] for c in (world.light.sun, world.light.ambient))
    return albedo * (sun * facing + ambient * open_sky)


def _green(world: World, noise: Noise, x, y, z, dx, dz, pixels):
    """(albedo (3,n), segment (n,), dx, dz): meadow, wood, rock, snow and shore, with their small relief."""
    patches = 0.5 + 0.5 * fbm(noise, x * 1.3 + 40, z * 1.3 + 80, 5, 0.55, pixels / 1.3)
    flat = 1 / np.sqrt(1 + dx * dx + dz * dz)
    wild = noise(x * 0.6 + 11, z * 0.6 + 5)
    line = world.snow_line + 0.6 * (patches - 0.5) + 0.3 * wild
    trees = min(0.72 * world.snow_line, 1.2)
    timber = smoothstep(1.6, 2.6, z) * smoothstep(0.05, 0.2, y + 0.15 * wild + 0.03 * z - 0.1)
    timber = timber * (1 - smoothstep(0.75, 1.05, (y + 0.5 * (patches - 0.5)) / trees))
    timber = timber * smoothstep(0.5, 0.7, flat + 0.15 * wild)
    green = smoothstep(0.60, 0.78, flat + 0.15 * (patches - 0.5)) * (1 - smoothstep(0.85, 1.2, y / trees))
    white = smoothstep(-0.1, 0.3, y - line) * smoothstep(0.40, 0.60, flat + 0.25 * (patches - 0.5))
    sandy = _shore(world, y, z, patches)
    crowns, bx, bz = _canopy(noise, x, z, pixels)
    albedo = _rgb(world.rock) * (0.55 + 0.9 * patches)
    albedo = blend(albedo, _grass(world, noise, x, y, z, pixels, patches), green)
    albedo = blend(albedo, _rgb((0.028, 0.052, 0.018)) * (0.5 + crowns), timber)
    damp = np.clip(1 - y / 0.03, 0, 1) if world.shore else 0
    grains = 0.85 + 0.3 * patches + 0.12 * noise(x * 70, z * 25) * fade(pixels / 70)
    albedo = blend(albedo, _rgb(world.sand) * grains * (1 - 0.5 * damp), sandy)
    albedo = blend(albedo, _rgb((0.84, 0.88, 0.95)), white)
    segment = np.full(len(z), MOUNTAIN, np.uint8)
    for name, share in ((GRASS, green), (FOREST, timber), (SAND, sandy), (SNOW, white)):
        segment[share > 0.5] = name
    rough = timber * (1 - white) * (1 - sandy)
    calm = 1 - 0.35 * white
    return albedo, segment, (dx + rough * bx) * calm, (dz + rough * bz) * calm


def _shore(world: World, y, z, patches):
    """Where sand lies at the water, (n,)."""
    if world.biome == "coast":
        beach = 1 - smoothstep(0.09, 0.15, y + 0.1 * (patches - 0.5))
        strip = 1 - smoothstep(0.01, 0.03, y + 0.04 * (patches - 0.5))
        return np.where(z < 1.4, beach, strip)
    if world.shore:
        return 1 - smoothstep(0.002, 0.014, y + 0.02 * (patches - 0.5))
    return np.zeros_like(y)


def _desert(world: World, noise: Noise, x, y, z, dx, dz, pixels):
    """The same for sand and table mountains."""
    patches = 0.5 + 0.5 * fbm(noise, x * 0.9 + 40, z * 0.9 + 80, 4, 0.5, pixels / 0.9)
    flat = 1 / np.sqrt(1 + dx * dx + dz * dz)
    stone = np.zeros_like(z)
    if world.peaks:
        foot = y - 0.9 * world.hills + 0.3 * (patches - 0.5) + 0.12 * noise(x * 2.5, z * 2.5)
        stone = smoothstep(0.15, 0.3, foot) * (z > world.range_near - 0.3)
    bands = noise(y * 16 + 0.8 * patches, np.full_like(y, 3.5)) + 0.6 * noise(y * 41, np.full_like(y, 9.5))
    rock = _rgb(world.rock) * (0.95 + 0.35 * bands + 0.5 * (patches - 0.5))
    turn = float(world.valley * 1.6 + 0.9)
    along = (math.cos(turn) * z + math.sin(turn) * x) * 34 + 4 * noise(x * 2, z * 2) + 2 * noise(x * 6, z * 6)
    ripples = 0.13 * cos(along) * fade(pixels / 18) * smoothstep(0.7, 0.9, flat)
    grains = 0.9 + 0.2 * patches + 0.08 * noise(x * 90, z * 40) * fade(pixels / 90)
    segment = np.where(stone > 0.5, MOUNTAIN, SAND).astype(np.uint8)
    albedo = blend(_rgb(world.sand) * grains, rock, stone)
    return albedo, segment, dx + ripples * math.sin(turn), dz + ripples * math.cos(turn)


def _grass(world: World, noise: Noise, x, y, z, pixels, patches):
    """Meadow: patches, tufts, blades that stand upright in the picture, flowers."""
    tufts = fbm(noise, x * 9, z * 9, 4, 0.7, pixels / 9)
    across, up = x / z, (y - world.camera) / z  # in the picture, so that blades stand upright there
    blades = fbm(noise, across * 85, up * 30, 3, 0.8, pixels * z / 85) * exp(-0.8 * z)
    tone = np.clip(0.45 + 0.75 * patches + 0.10 * tufts + 0.32 * blades, 0.12, 2)
    tone = tone * (1 - 0.45 * smoothstep(-0.2, 0.5, wooded(world, noise, x, z))) if world.tree_rows else tone
    albedo = _rgb(world.grass) * tone
    albedo = blend(albedo, _rgb((0.20, 0.18, 0.06)) * tone, 0.6 * smoothstep(0.45, 0.9, patches + 0.1 * tufts))
    return _flowers(world, noise, albedo, x, z, pixels) if world.flowers > 0.1 else albedo


def wooded(world: World, noise: Noise, x, z):
    """Where trees stand: the more above 0, the denser. A forest leaves a clearing before the viewer."""
    wanted = noise(x * 0.8 + 30, z * 0.8 + 60) + {"forest": 0.5, "mountain": 0.1, "lake": 0.45}.get(world.biome, 0.0)
    if world.biome == "forest":
        aside = (x / z - world.clearing) / (0.10 + 0.05 * noise(z * 1.5, 0 * x + 7))
        wanted = wanted + 0.3 * z - 2.5 * exp(-aside * aside) * smoothstep(-4.0, -2.0, -z)
    return wanted * smoothstep(0.7 * world.tree_near, world.tree_near, z)


def _flowers(world: World, noise: Noise, albedo, x, z, pixels):
    """Dots of two colours in drifts, one at most in a cell; cells grow with distance, so dots stay small."""
    size = 0.011 * power(2.0, np.floor(log2(np.maximum(z, 0.05))))
    u, w = x / size, z / (4 * size)
    cx, cz = np.floor(u), np.floor(w)
    chance, which, ax, az = (noise.white(cx, cz, lot) for lot in range(4))
    drift = fbm(noise, x * 1.1 + 60, z * 1.1 + 10, 3)
    away = hypot(u - cx - 0.5 - 0.26 * ax, w - cz - 0.5 - 0.26 * az)
    there = smoothstep(0.05, 0.25, 0.6 * chance + 0.9 * drift + 0.7 * world.flowers - 0.7)
    petals = there * np.clip((0.24 - away) * size * pixels + 0.4, 0, 1) * fade(size * pixels) * (z < 6)
    first = int(world.places[9, 0]) % 4
    colours = np.array([FLOWERS[first], FLOWERS[(first + 1) % 4]], np.float32).T[:, (which > 0.2).astype(int)]
    return blend(albedo, colours * (0.8 + 0.3 * ax), petals)


def _canopy(noise: Noise, x, z, pixels):
    """Crowns seen from afar: (brightness in [0, 1], slopes)."""
    a, ax, az = noise.gradient(x * 8 + 3, z * 5 + 8)
    b, bx, bz = noise.gradient(x * 20, z * 12)
    fa, fb = 0.7 * fade(pixels / 8), 0.7 * fade(pixels / 20)
    return 0.5 + 0.4 * a * fa + 0.3 * b * fb, ax * fa + bx * fb, az * fa + bz * fb


def _rgb(colour) -> np.ndarray:
    return np.asarray(colour, np.float32)[:, None]
