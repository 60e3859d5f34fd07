"""Water: what it mirrors, its ripples, the glitter of the light."""

from __future__ import annotations

import numpy as np

from tesserae.scenes.ground import haze_colour, hazed
from tesserae.scenes.maths import arctan, exp, sin
from tesserae.scenes.noise import Noise, fade, fbm, smoothstep
from tesserae.scenes.relief import relief
from tesserae.scenes.sky import clear_sky
from tesserae.scenes.view import WATER, Canvas, View, blend
from tesserae.scenes.world import World


def draw_water(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Colour every pixel named water from the finished picture above it."""
    water = canvas.segment == WATER
    if not water.any():
        return
    rows, columns = np.nonzero(water)
    z = canvas.distance[rows, columns]
    x = view.across[columns] * z
    pixels = 1 / (view.pixel * z)
    down = -view.up[rows]
    paint = _sea if world.biome == "coast" else _still
    colour, swell = paint(world, noise, view, canvas, _waterlines(water), (rows, columns), (x, z), pixels)
    colour = colour + _glitter(world, noise, view, x, z, columns, down, pixels, swell)
    if world.biome == "coast":
        colour = _foam(world, noise, colour, x, z, pixels)
    canvas.colour[:, rows, columns] = hazed(world, colour, z * 0.5, haze_colour(world, view)[:, columns])


def _waterlines(water: np.ndarray) -> np.ndarray:
    """For each pixel the row where the water that it belongs to begins, above it; (H,W)."""
    begins = water.copy()
    begins[1:] &= ~water[:-1]
    rows = np.arange(len(water))[:, None]
    return np.maximum.accumulate(np.where(begins, rows, 0), axis=0)


def _still(world: World, noise: Noise, view: View, canvas: Canvas, shore, place, ground, pixels):
    """A lake mirrors the picture above its far shore, rows `shore`, in patches of calm and of ripples."""
    (rows, columns), (x, z) = place, ground
    height, width = canvas.segment.shape
    ox, oz = world.places[10]
    swell = fbm(noise, x * 1.0 + ox, z * 2.5 + oz, 3, pixels=pixels / 4)
    chop = fbm(noise, x * 5 + oz, z * 15 + ox, 3, 0.6, pixels=pixels / 15)
    breeze = smoothstep(-0.3, 0.6, noise(x * 0.25 + oz, z * 0.5 + ox))
    near = np.clip((rows - shore[rows, columns]) / height, 0, 1)
    strength = (0.004 + 0.03 * near) * (0.4 + breeze) * height
    aside = np.clip(columns + 0.25 * chop * strength, 0, width - 1).astype(np.intp)
    line = shore[rows, aside]
    mirrored = 2 * line - rows - 1 + (swell + 0.8 * chop) * strength
    source = np.clip(mirrored, 0, np.maximum(line - 1, 0)).astype(np.intp)
    mirror = canvas.colour[:, source, aside]
    beyond = mirrored < 0
    if beyond.any():
        high = (view.up[0] - mirrored[beyond] * view.pixel).astype(np.float32)
        mirror[:, beyond] = _sky_at(world, view.across[aside[beyond]], high)
    light = np.asarray(world.light.ambient, np.float32) + 0.25 * np.asarray(world.light.sun, np.float32)
    body = (np.array((0.012, 0.05, 0.06), np.float32) * light)[:, None]
    fresnel = 0.06 + 0.90 * exp(2.6 * view.up[rows])
    return blend(body, mirror, fresnel), swell


def _sea(world: World, noise: Noise, view: View, canvas: Canvas, shore, place, ground, pixels):
    """The sea mirrors the sky where its waves lean to, and shows its own blue, paler over the shoal."""
    (rows, columns), (x, z) = place, ground
    ox, oz = world.places[10]
    swell = fbm(noise, x * 0.8 + ox, z * 4.0 + oz, 3, 0.6, pixels=pixels / 6)
    chop = fbm(noise, x * 5 + oz, z * 22 + ox, 4, 0.65, pixels=pixels / 20)
    lean = 0.5 * swell + 0.5 * chop
    up = np.clip(-view.up[rows] * 0.8 + 0.10 + 0.28 * lean, 0.02, 1.3)
    mirror = _sky_at(world, view.across[columns], up.astype(np.float32))
    mirror = _shadowed(canvas, mirror, shore, rows, columns, lean)
    light = np.asarray(world.light.ambient, np.float32) + 0.3 * np.asarray(world.light.sun, np.float32)
    shoal = exp(-np.maximum(-relief(world, noise, x, z, 2)[0], 0) / 0.035)
    deep, pale = np.array((0.006, 0.06, 0.11), np.float32), np.array((0.06, 0.34, 0.34), np.float32)
    body = blend((deep * light)[:, None], (pale * light)[:, None], shoal * 0.85)
    fresnel = 0.03 + 0.80 * exp(7 * view.up[rows]) * np.clip(1 - 0.5 * lean, 0.3, 1.3)
    return blend(body, mirror, np.clip(fresnel, 0, 1)) * (1 + 0.25 * lean), swell


def _shadowed(canvas: Canvas, mirror, shore, rows, columns, lean):
    """Where land stands above the waterline, the sea below it mirrors the land."""
    height = canvas.segment.shape[0]
    line = shore[rows, columns]
    mirrored = 2 * line - rows - 1 + 0.02 * height * lean
    source = np.clip(mirrored, 0, np.maximum(line - 1, 0)).astype(np.intp)
    solid = np.isfinite(canvas.distance) & (canvas.segment != WATER)
    land = solid[source, columns] & (mirrored > 0)
    return np.where(land, canvas.colour[:, source, columns], mirror)


def _sky_at(world: World, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The clear sky in single directions, (3,n), from a table."""
    a, e = np.linspace(-2, 2, 65, dtype=np.float32), np.linspace(-0.1, 1.4, 96, dtype=np.float32)
    table = clear_sky(world, a, e)
    i = np.clip((up + 0.1) / 1.5 * 95, 0, 95).astype(np.intp)
    j = np.clip((across + 2) / 4 * 64, 0, 64).astype(np.intp)
    return table[:, i, j]


def _glitter(world: World, noise: Noise, view: View, x, z, columns, down, pixels, swell):
    """The light's path on the water: sparks where a ripple turns to it."""
    light = world.light
    if abs(light.azimuth) > 0.8:
        return np.zeros((3, 1), np.float32)
    off = arctan(view.across[columns]) - light.azimuth
    width = 0.035 + 0.22 * down
    path = exp(-(off * off) / (2 * width * width))
    sparks = noise(x * 40, z * 90) * fade(pixels / 30) + noise(x * 14 + 4, z * 38) * fade(pixels / 12)
    bright = path * (0.12 + 1.5 * smoothstep(0.1, 0.9, sparks + 0.6 * swell))
    gain = 0.8 if light.hour != "night" else 1.2
    return np.asarray(light.sun, np.float32)[:, None] * bright * gain * (1.0 if light.disc else 0.35)


def _foam(world: World, noise: Noise, colour: np.ndarray, x, z, pixels):
    """Breaking lines near the beach."""
    depth = -relief(world, noise, x, z, 3)[0]
    torn = fbm(noise, x * 7, z * 7, 5, 0.65, pixels / 7)
    wave = sin(depth * 120 + 2.5 * noise(x * 1.5, z * 0.7) + 1.0)
    lines = smoothstep(0.7, 1.0, wave + 0.3 * torn) * smoothstep(-0.5, 0.4, torn) * exp(-depth / 0.04)
    edge = 1 - smoothstep(0.002, 0.009, depth + 0.004 * torn)
    foam = np.clip(np.maximum(lines * 0.8, 0.9 * edge), 0, 1)
    lit = np.asarray(world.light.ambient, np.float32) + 0.4 * np.asarray(world.light.sun, np.float32)
    return blend(colour, (0.75 * lit)[:, None], foam)
