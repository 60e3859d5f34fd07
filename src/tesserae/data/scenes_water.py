"""Water: what it mirrors, its ripples, the glitter of the light."""

from __future__ import annotations

import numpy as np

from tesserae.data.scenes_ground import haze_colour, hazed
from tesserae.data.scenes_noise import Noise, fade, fbm, smoothstep
from tesserae.data.scenes_relief import relief
from tesserae.data.scenes_sky import clear_sky
from tesserae.data.scenes_view import WATER, Canvas, View, blend
from tesserae.data.scenes_world import World


def draw_water(world: World, noise: Noise, view: View, canvas: Canvas) -> None:
    """Colour every pixel named water from the finished picture above it."""
    water = canvas.segment == WATER
    if not water.any():
        return
    rows, columns = np.nonzero(water)
    height, width = water.shape
    shore = water.argmax(axis=0).astype(np.float32)  # (W,) the first row of water in each column
    z = canvas.distance[rows, columns]
    x = view.across[columns] * z
    pixels = 1 / (view.pixel * z)
    sea = world.biome == "coast"
    swell, chop = _ripples(world, noise, x, z, pixels, sea)
    near = np.clip((rows - shore[columns]) / height, 0, 1)
    strength = (0.035 if sea else 0.012) * (0.25 + 2 * near)
    aside = np.clip(columns + chop * strength * 0.35 * height, 0, width - 1).astype(np.intp)
    mirrored = 2 * shore[aside] - rows - 1 - (swell + 0.4 * chop) * strength * height - (6 * near * strength * height if sea else 0)
    source = np.clip(mirrored, 0, np.maximum(shore[aside] - 1, 0)).astype(np.intp)
    mirror = canvas.colour[:, source, aside]
    beyond = mirrored < 0
    if beyond.any():
        high = (view.up[0] - mirrored[beyond] * view.pixel).astype(np.float32)
        mirror[:, beyond] = _sky_at(world, view.across[aside[beyond]], high)
    down = -view.up[rows]
    fresnel = 0.04 + 0.96 * np.exp(-down * (5.0 if sea else 3.0))
    colour = blend(_body(world, noise, x, z, sea), mirror * 0.93, fresnel)
    colour = colour + _glitter(world, noise, view, x, z, columns, down, pixels, swell)
    colour = _foam(world, noise, colour, x, z, pixels) if sea else colour
    canvas.colour[:, rows, columns] = hazed(world, colour, z * 0.6, haze_colour(world, view)[:, columns])


def _ripples(world: World, noise: Noise, x, z, pixels, sea: bool):
    """Two sizes of waves in [-1, 1], long across the view."""
    ox, oz = world.places[10]
    lengthwise = (3.0, 9.0) if sea else (2.5, 8.0)
    swell = fbm(noise, x * 1.2 + ox, z * lengthwise[0] + oz, 3, pixels=pixels / 6)
    chop = fbm(noise, x * 6 + oz, z * lengthwise[1] * 2 + ox, 3, 0.6, pixels=pixels / 18)
    return swell, chop


def _sky_at(world: World, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The clear sky in single directions, (3,n), from a table."""
    a, e = np.linspace(-2, 2, 33, dtype=np.float32), np.linspace(-0.1, 1.4, 64, dtype=np.float32)
    table = clear_sky(world, a, e)
    i = np.clip((up + 0.1) / 1.5 * 63, 0, 63).astype(np.intp)
    j = np.clip((across + 2) / 4 * 32, 0, 32).astype(np.intp)
    return table[:, i, j]


def _body(world: World, noise: Noise, x, z, sea: bool) -> np.ndarray:
    """What comes up from below the surface, (3,n)."""
    light = np.asarray(world.light.ambient, np.float32) + 0.25 * np.asarray(world.light.sun, np.float32)
    deep = np.array((0.010, 0.075, 0.105) if sea else (0.015, 0.055, 0.06), np.float32)
    body = (deep * light)[:, None]
    if not sea:
        return body + 0 * z
    shoal = np.exp(-np.maximum(-relief(world, noise, x, z, 2)[0], 0) / 0.05)
    return blend(body, (np.array((0.10, 0.40, 0.38), np.float32) * light)[:, None], shoal * 0.8)


def _glitter(world: World, noise: Noise, view: View, x, z, columns, down, pixels, swell):
    """The light's path on the water: sparks where a ripple turns to it."""
    light = world.light
    if abs(light.azimuth) > 0.8:
        return np.zeros((3, 1), np.float32)
    off = np.arctan(view.across[columns]) - light.azimuth
    width = 0.05 + 0.18 * down
    path = np.exp(-(off * off) / (2 * width * width))
    sparks = noise(x * 40, z * 90) * fade(pixels / 20) + noise(x * 14 + 4, z * 38) * fade(pixels / 8)
    bright = path * (0.18 + 1.3 * smoothstep(0.15, 0.9, sparks + 0.5 * swell))
    gain = 0.9 if light.hour != "night" else 1.6
    return np.asarray(light.sun, np.float32)[:, None] * bright * gain * (1.0 if light.disc else 0.35)


def _foam(world: World, noise: Noise, colour: np.ndarray, x, z, pixels):
    """Breaking lines near the beach."""
    depth = -relief(world, noise, x, z, 3)[0]
    torn = fbm(noise, x * 7, z * 7, 4, 0.6, pixels / 7)
    wave = np.sin(depth * 150 + 3 * noise(x * 1.5, z * 0.7) + 1.0)
    lines = smoothstep(0.75, 1.0, wave + 0.35 * torn) * np.exp(-depth / 0.045)
    edge = smoothstep(0.012, 0.0, depth) if False else 1 - smoothstep(0.0, 0.008, depth + 0.004 * torn)
    foam = np.clip(np.maximum(lines * 0.8, edge), 0, 1)
    lit = np.asarray(world.light.ambient, np.float32) + 0.45 * np.asarray(world.light.sun, np.float32)
    return blend(colour, (0.8 * lit)[:, None], foam)
