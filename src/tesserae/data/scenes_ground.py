"""What covers the ground, and how light falls on it."""

from __future__ import annotations

import numpy as np

from tesserae.data.scenes_noise import Noise, fade, fbm, smoothstep
from tesserae.data.scenes_relief import relief, undergrowth
from tesserae.data.scenes_sky import clear_sky
from tesserae.data.scenes_view import FOREST, GRASS, MOUNTAIN, SAND, SNOW, WATER, Canvas, View, blend
from tesserae.data.scenes_world import World

FLOWERS = ((0.9, 0.85, 0.75), (0.85, 0.65, 0.05), (0.75, 0.15, 0.10), (0.45, 0.20, 0.65))


def draw_ground(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Colour and name every pixel that sees ground; water gets its name here and its colour later."""
    rows, columns = np.nonzero(np.isfinite(canvas.distance))
    z = canvas.distance[rows, columns]
    x = view.across[columns] * z
    y, dx, dz = relief(world, noise, x, z, 10, view.pixel)
    wet = y < 0 if world.shore else np.zeros(len(z), bool)
    pixels = 1 / (view.pixel * z)
    albedo, segment, dx, dz = _cover(world, noise, x, y, z, dx, dz, pixels)
    colour = _lit(world, albedo, dx, dz)
    colour = hazed(world, colour, z, haze_colour(world, view)[:, columns])
    canvas.colour[:, rows, columns] = colour
    canvas.segment[rows, columns] = np.where(wet, WATER, segment)


def haze_colour(world: World, view: View) -> np.ndarray:
    """What distance turns into, (3,W): the sky just above the horizon."""
    return clear_sky(world, view.across, np.array([0.03], np.float32))[:, 0] * 0.92


def hazed(world: World, colour: np.ndarray, z: np.ndarray, haze: np.ndarray) -> np.ndarray:
    """Aerial perspective: colour (3,...) at distance z (...) drowns in haze (3,...)."""
    share = 1 - np.exp(-np.maximum(z - 0.5, 0) / world.haze)
    return blend(colour, haze, share)


def _lit(world: World, albedo: np.ndarray, dx: np.ndarray, dz: np.ndarray) -> np.ndarray:
    """Sun and sky on a surface with those slopes: albedo (3,n) -> colour (3,n)."""
    right, above, ahead = world.light.direction
    length = 1 / np.sqrt(1 + dx * dx + dz * dz)
    facing = np.clip((above - right * dx - ahead * dz) * length, 0, 1)
    open_sky = 0.45 + 0.55 * length
    sun, ambient = (np.asarray(c, np.float32)[:, None] for c in (world.light.sun, world.light.ambient))
    return albedo * (sun * facing + ambient * open_sky)


def _cover(world: World, noise: Noise, x, y, z, dx, dz, pixels):
    """(albedo (3,n), segment (n,), dx, dz): which ground it is, with its small relief added to the slopes."""
    patches = undergrowth(noise, x, z, pixels)
    flat = 1 / np.sqrt(1 + dx * dx + dz * dz)
    if world.biome == "desert":
        return _desert(world, noise, x, y, z, dx, dz, pixels, patches, flat)
    rock = _rgb(world.rock) * (0.6 + 0.8 * patches)
    grass = _grass(world, noise, x, z, pixels, patches)
    bump, bx, bz = _canopy(noise, x, z, pixels)
    wood = _rgb((0.030, 0.060, 0.020)) * (0.6 + 0.8 * bump)
    wild = noise(x * 0.6 + 11, z * 0.6 + 5)
    timber = smoothstep(0.05, 0.25, y + 0.15 * wild + 0.02 * z - 0.1) \
        * (1 - smoothstep(0.6, 0.95, (y + 0.25 * (patches - 0.5)) / min(world.snow_line, 1.4)))
    timber = timber * smoothstep(0.55, 0.75, flat + 0.15 * wild)
    timber = timber * smoothstep(2.0, 3.5, z)
    green = smoothstep(0.62, 0.8, flat + 0.1 * (patches - 0.5)) * (1 - smoothstep(0.7, 1.1, y / world.snow_line))
    line = world.snow_line + 0.5 * (patches - 0.5) + 0.25 * wild
    white = smoothstep(-0.12, 0.25, y - line) * smoothstep(0.48, 0.66, flat + 0.2 * (patches - 0.5))
    sandy = np.zeros_like(y)
    if world.biome == "coast":
        sandy = (1 - smoothstep(0.05, 0.14, y + 0.1 * (patches - 0.5))) * (z < 1.6) + \
            (1 - smoothstep(0.02, 0.06, y)) * (z >= 1.6)
    elif world.shore:
        sandy = 1 - smoothstep(0.004, 0.03, y + 0.02 * (patches - 0.5))
    albedo = blend(rock, grass, green)
    albedo = blend(albedo, wood, timber)
    damp = np.clip(1 - y / 0.03, 0, 1) if world.shore else 0
    albedo = blend(albedo, _rgb(world.sand) * (0.85 + 0.3 * patches) * (1 - 0.45 * damp), sandy)
    albedo = blend(albedo, _rgb((0.86, 0.89, 0.95)), white)
    segment = np.full(len(z), MOUNTAIN, np.uint8)
    for name, share in ((GRASS, green), (FOREST, timber), (SAND, sandy), (SNOW, white)):
        segment[share > 0.5] = name
    rough = timber * (1 - white) * (1 - sandy)
    calm = 1 - 0.5 * white
    return albedo, segment, (dx + rough * bx) * calm, (dz + rough * bz) * calm


def _desert(world: World, noise: Noise, x, y, z, dx, dz, pixels, patches, flat):
    stone = smoothstep(0.0, 0.12, y - world.hills * 1.15) * (z > world.range_near - 0.5) if world.peaks else 0 * z
    bands = 0.5 + 0.5 * np.sin(y * 38 + 3 * patches)
    rock = _rgb(world.rock) * (0.65 + 0.45 * bands + 0.3 * (patches - 0.5))
    turn = world.valley * 1.2 + 0.5
    along = (np.cos(turn) * z + np.sin(turn) * x) * 30 + 5 * noise(x * 3, z * 3)
    ripples = np.cos(along) * fade(pixels / 14) * smoothstep(0.8, 0.95, flat)
    sand = _rgb(world.sand) * (0.9 + 0.2 * patches)
    segment = np.where(stone > 0.5, MOUNTAIN, SAND).astype(np.uint8)
    return blend(sand, rock, stone), segment, dx + 0.10 * ripples * np.sin(turn), dz + 0.10 * ripples * np.cos(turn)


def _grass(world: World, noise: Noise, x, z, pixels, patches):
    blades = noise(x * 60, z * 14) * fade(pixels / 30) + 0.7 * noise(x * 21 + 5, z * 7) * fade(pixels / 10)
    tone = np.clip(0.55 + 0.75 * patches + 0.25 * blades, 0.15, 2)
    albedo = _rgb(world.grass) * tone
    dry = smoothstep(0.5, 0.9, patches)
    albedo = blend(albedo, _rgb((0.24, 0.20, 0.07)) * tone, 0.5 * dry)
    if world.flowers > 0.15:
        albedo = _flowers(world, noise, albedo, x, z, pixels)
    return albedo


def _flowers(world: World, noise: Noise, albedo, x, z, pixels):
    """Dots of a few colours in drifts: at most one in each cell of the ground."""
    size = 0.016
    cx, cz = np.floor(x / size), np.floor(z / (3 * size))
    chance, which = noise(cx * 0.731 + 0.5, cz * 0.917 + 0.5), noise(cx * 0.577 + 90.5, cz * 0.611 + 0.5)
    drift = fbm(noise, x * 1.1 + 60, z * 1.1 + 10, 3)
    away = np.hypot(x / size - cx - 0.5, z / (3 * size) - cz - 0.5)
    there = smoothstep(0.05, 0.3, chance + drift * 0.8 + world.flowers * 0.6 - 0.75)
    petals = there * np.clip((0.42 - away) * size * pixels * 0.8 + 0.4, 0, 1) * fade(size * pixels * 1.6)
    first = int(world.places[9, 0]) % 4
    colours = np.array([FLOWERS[first], FLOWERS[(first + 1) % 4]], np.float32).T[:, (which > 0.1).astype(int)]
    return blend(albedo, colours, petals)


def _canopy(noise: Noise, x, z, pixels):
    """Crowns seen from afar: (brightness in [0, 1], slopes)."""
    a, ax, az = noise.gradient(x * 9 + 3, z * 9 + 8)
    b, bx, bz = noise.gradient(x * 23, z * 23)
    fa, fb = fade(pixels / 9), fade(pixels / 23)
    return 0.5 + 0.3 * a * fa + 0.2 * b * fb, 0.5 * ax * fa + 0.5 * bx * fb, 0.5 * az * fa + 0.5 * bz * fb


def _rgb(colour) -> np.ndarray:
    return np.asarray(colour, np.float32)[:, None]
