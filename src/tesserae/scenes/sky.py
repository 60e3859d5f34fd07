"""Sky, sun, moon, stars and clouds."""

from __future__ import annotations

import numpy as np

from tesserae.scenes.maths import arctan, exp, hypot, power
from tesserae.scenes.noise import Noise, billow, fade, fbm, smoothstep
from tesserae.scenes.view import CLOUD, DISC, SKY, Canvas, View, blend, column
from tesserae.scenes.world import World


def clear_sky(world: World, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The light of the empty sky, (3,H,W), in directions (W,) and (H,): gradient and glow, no disc."""
    light = world.light
    high = np.maximum(up, 0)[:, None]
    angle = angle_to_light(world, across, up)
    sidewards = np.abs(arctan(across) - light.azimuth)[None]
    low = exp(-high / (0.13 if light.hour == "sunset" else 0.11))
    mid = exp(-high / 0.42)
    warm = column(light.horizon)
    if light.hour == "sunset":  # away from the sun the horizon is dusk
        warm = blend(warm, column(light.middle) * 1.15, smoothstep(0.2, 1.6, sidewards)[None] * 0.75)
    colour = column(light.zenith) * (1 - mid) + column(light.middle) * (mid - low) + warm * low  # (3,H,W)
    strength = 0.55 * exp(-angle / 0.09) + 0.35 * exp(-angle / 0.35)
    return colour + column(light.glow) * strength


def angle_to_light(world: World, across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Angle in radians between each direction and the sun or moon, (H,W)."""
    right, above, ahead = world.light.direction
    a, e = across[None], up[:, None]
    cosine = (a * right + e * above + ahead) / np.sqrt(1 + a * a + e * e)
    return np.sqrt(np.maximum(2 - 2 * cosine, 0))  # the chord: the angle where it matters


def draw_sky(world: World, noise: Noise, view: View, generator: np.random.Generator) -> Canvas:
    """A canvas with all sky drawn, and below the horizon nothing."""
    shape = len(view.up), len(view.across)
    canvas = Canvas(np.zeros((3, *shape), np.float32), np.full(shape, SKY, np.uint8), np.full(shape, np.inf))
    light, rows = world.light, max(1, int((view.up > -0.02).sum()))
    view = View(view.across, view.up[:rows], view.pixel)
    angle = angle_to_light(world, view.across, view.up)  # (rows,W)
    colour, segment = clear_sky(world, view.across, view.up), canvas.segment[:rows]
    if light.hour == "night":
        colour += _stars(world, noise, view, generator)
    if light.disc:
        disc = np.clip((light.disc / world.focal - angle) / view.pixel + 0.5, 0, 1)
        colour = blend(colour, _disc_colour(world, noise, view), disc)
        segment[disc > 0.5] = DISC
    cloud, cover = _clouds(world, noise, view, angle)
    segment[cover > 0.5] = CLOUD
    canvas.colour[:, :rows] = blend(colour, cloud, cover)
    return canvas


def _disc_colour(world: World, noise: Noise, view: View) -> np.ndarray:
    if world.light.hour == "day":
        return column((6.0, 5.6, 4.8))
    if world.light.hour == "sunset":
        return column((5.0, 2.9, 1.2))
    right, above, ahead = world.light.direction
    radius = world.light.disc / world.focal
    x = (view.across[None] - right / ahead) / radius + world.places[0, 0]
    y = (view.up[:, None] - above / ahead) / radius + world.places[0, 1]
    seas = smoothstep(-0.1, 0.5, fbm(noise, x * 1.3, y * 1.3, 3))
    return column((1.25, 1.22, 1.12)) * (1 - 0.45 * seas)


def _stars(world: World, noise: Noise, view: View, generator: np.random.Generator) -> np.ndarray:
    """Stars at fixed directions, the same at any resolution, and a faint band of the galaxy; (3,H,W)."""
    height, width = len(view.up), len(view.across)
    count = int(generator.integers(500, 1100))
    across, up = generator.uniform(-1.5, 1.5, count), generator.uniform(0.0, 1.0, count)
    shine = 0.04 / power(0.035 + generator.random(count), 1.25)
    tint = generator.uniform(-1, 1, count)
    column_of = (across - view.across[0]) / view.pixel
    row_of = (view.up[0] - up) / view.pixel
    plane = np.zeros((3, height, width), np.float32)
    size = max(0.42, 0.0011 / view.pixel / world.focal)  # in pixels
    reach = int(np.ceil(2 * size))
    colours = np.stack([0.9 + 0.15 * tint, np.full(count, 0.95), 1.0 - 0.2 * tint]) * shine * 0.35
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            c, r = np.rint(column_of).astype(int) + dx, np.rint(row_of).astype(int) + dy
            inside = (c >= 0) & (c < width) & (r >= 0) & (r < height)
            share = exp(-((c - column_of) ** 2 + (r - row_of) ** 2) / (2 * size * size))[inside]
            np.add.at(plane, (slice(None), r[inside], c[inside]), colours[:, inside] * share)
    a, e = view.across[None], view.up[:, None]
    tilt = world.places[1, 0] % 1.2 - 0.6
    off = (e - 0.3 - tilt * a) / 0.14
    milk = exp(-off * off) * np.clip(0.6 + 0.8 * fbm(noise, a * 7 + e, e * 9 + 50, 4), 0, 2)
    plane += column((0.020, 0.022, 0.034)) * milk
    return plane * smoothstep(0.0, 0.15, view.up)[:, None]


def _clouds(world: World, noise: Noise, view: View, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(colour (3,H,W), cover (H,W)): lumps of density on a sheet in perspective, shadowed by their own."""
    light, (ox, oy) = world.light, world.places[2]
    high = np.maximum(view.up, 0)[:, None]
    reach = 1 / (high + 0.16)  # how far away the sheet is
    scale = world.cloud_scale
    x = view.across[None] * reach * scale * 1.5 / np.sqrt(world.wind) + ox
    y = reach * scale * 0.95 + oy + 0 * x
    pixels = 1 / (view.pixel * power(reach, 1.5) * scale * 1.2)
    level = 0.52 - 1.0 * world.clouds

    def body(x, y, octaves):
        return 0.75 * fbm(noise, x, y, 2) + 0.36 * billow(noise, x * 2.1 + 5, y * 2.1, octaves, 0.55, pixels / 2.1)

    rise = body(x, y, 5) - level
    right, above, _ = light.direction
    length = hypot(right, above) + 1e-6
    shadow = body(x + 0.16 * right / length, y - 0.16 * above / length, 3) - level  # towards the light
    cover = smoothstep(0.0, 0.38, rise) * smoothstep(0.01, 0.06, view.up)[:, None] * 0.98
    lit = exp(-1.5 * np.clip(shadow, 0, 2)) * (1 - 0.25 * smoothstep(0.1, 0.9, rise))
    colour = blend(column(light.cloud_dark), column(light.cloud_lit), lit)
    lining = exp(-2.5 * np.clip(rise, 0, 2) - angle / 0.22)
    colour = colour + column(light.glow) * lining
    far = exp(-high / 0.07) * 0.65  # distant ones drown in the haze
    return blend(colour, column(light.horizon), far), cover * fade(pixels * 2)
