"""The ground: its height anywhere, and which of its points each pixel sees."""

from __future__ import annotations

import math

import numpy as np

from tesserae.scenes.maths import exp
from tesserae.scenes.noise import Noise, fbm_gradient, ridged_gradient, smoothstep
from tesserae.scenes.view import View
from tesserae.scenes.world import World

NEAR, FAR = 0.1, 60.0  # distances between which ground is looked for


def relief(world: World, noise: Noise, x: np.ndarray, z: np.ndarray, octaves: int,
           pixel: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height of the ground and its slopes, (h, dh/dx, dh/dz), at points of any one shape; water lies at 0.

    `pixel`: the slope a pixel spans, where octaves that are too fine for it shall fade.
    """
    pixels = np.inf if pixel is None else 1 / (pixel * z)  # a unit of length
    parts = {"mountain": _alps, "forest": _alps, "lake": _lake, "desert": _dunes, "coast": _coast}
    return parts[world.biome](world, noise, x, z, octaves, pixels)


def first_hits(world: World, noise: Noise, view: View) -> np.ndarray:
    """Distance z of the first ground that each pixel sees, (H,W); infinite where it sees none.

    Each column of the picture is a ray over the ground, sampled at growing distances; what a pixel sees is the
    first sample whose running maximum of slope reaches it. Columns between two rays lie between these.
    """
    height, width = len(view.up), len(view.across)
    count = int(np.clip((1.5 if world.biome == "desert" else 0.9) * height, 128, 1600))
    z = np.geomspace(NEAR, FAR, count, dtype=np.float32)
    rays = view.across[np.r_[0:width:2, width - 1]]
    x = z[:, None] * rays  # (N,R)
    y = relief(world, noise, x, np.broadcast_to(z[:, None], x.shape), 7, view.pixel)[0]
    if world.shore:
        y = np.maximum(y, 0)
    known = ((y - world.camera) / z[:, None]).T  # (R,N)
    slope = np.repeat(known[:-1], 2, axis=0)[:width]
    slope[1::2] = 0.5 * (known[:-1] + known[1:])[: len(slope[1::2])]
    highest = np.maximum.accumulate(slope, axis=1)
    hits = np.empty((width, height), np.int64)
    for one in range(width):
        hits[one] = np.searchsorted(highest[one], view.up)
    missed = hits == count
    after = np.minimum(hits, count - 1)
    before = np.maximum(after - 1, 0)
    columns = np.arange(width)[:, None]
    low, high = slope[columns, before], slope[columns, after]
    share = np.clip((view.up - low) / np.maximum(high - low, 1e-9), 0, 1)
    found = z[before] + (z[after] - z[before]) * share
    found[missed] = np.inf
    if world.shore:  # the water reaches the horizon
        flat = np.where(view.up < -1e-6, -world.camera / np.minimum(view.up, -1e-6), np.inf)
        found = np.minimum(found, flat.astype(np.float32))
    return np.ascontiguousarray(found.T)


def _alps(world: World, noise: Noise, x, z, octaves: int, pixels):
    """Meadows that rise to a range."""
    h, dx, dz = _swell(world, noise, x, z, world.hills, pixels)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    return h + r, dx + rx, dz + rz


def _lake(world: World, noise: Noise, x, z, octaves: int, pixels):
    """A far shore, a range behind it."""
    h, dx, dz = _swell(world, noise, x, z, world.hills, pixels)
    (ox, oz) = world.places[5]
    shore = world.shore * (1 + 0.35 * noise(x * 0.35 + ox, np.full_like(x, oz)))
    rise = np.clip((z - shore) * 0.16, -0.2, 0.25)
    slope = np.where(np.abs(rise - 0.025) < 0.225, 0.16, 0).astype(np.float32)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    land = smoothstep(0, 0.2, rise)
    return h * 0.6 + rise + r * land, dx * 0.6 + rx * land, dz * 0.6 + slope + rz * land


def _coast(world: World, noise: Noise, x, z, octaves: int, pixels):
    """A beach that falls to the sea, and a headland on one side."""
    h, dx, dz = _swell(world, noise, x, z, 0.02, pixels)
    ox, oz = world.places[5]
    edge = world.shore * (1 + 0.25 * noise(x * 0.9 + ox, np.full_like(x, oz))) + 0.25 * x
    fall = np.maximum((edge - z) * 0.16, -0.5)
    slope = np.where(fall > -0.5, -0.16, 0).astype(np.float32)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    side = 1.0 if world.valley > 0 else -1.0
    rim = -side * x / z + 0.14 * noise(z * 1.1 + ox, x * 0.8) + 0.4 * world.valley * side - 0.02 * (z - 3)
    out = smoothstep(0.08, 0.38, rim) * smoothstep(1.4, 2.4, z + 0.6 * noise(x * 2 + 3, z + oz))
    lift = 0.45 + 0.75 * r
    steep = -side * lift * 4 * out * (1 - out) / (0.3 * z)  # about d(out)/dx, without the noise
    return h + fall + lift * out, dx + 0.75 * rx * out + steep, dz + slope + 0.75 * rz * out


def _dunes(world: World, noise: Noise, x, z, octaves: int, pixels):
    """Crests with a long windward and a short lee side, table mountains behind them."""
    ox, oz = world.places[6]
    turn = world.valley * 1.6 + (0.75 if world.valley > 0 else -0.75)
    c, s = math.cos(turn), math.sin(turn)
    w, wx, wz = fbm_gradient(noise, x * 0.35 + ox, z * 0.35 + oz, 2, 0.3)
    phase = 0.5 * (c * z + s * x) + 1.0 * w + oz
    px, pz = 0.5 * s + 0.35 * wx, 0.5 * c + 0.35 * wz
    t = phase - np.floor(phase)
    windward = t < 0.7
    rise = np.where(windward, t / 0.7, (1 - t) / 0.3).astype(np.float32)
    steep = 1 / 0.7 - (1 / 0.7 + 1 / 0.3) * smoothstep(0.64, 0.76, t)  # light turns gently over the crest
    profile, bend = rise * rise * (1.7 - 0.7 * rise), steep * rise * (3.4 - 2.1 * rise)
    size = world.hills * (0.6 + 0.5 * noise(x * 0.3 + 7, z * 0.3 + 3)) * smoothstep(0.2, 2.2, z)
    h, dx, dz = size * profile, size * bend * px, size * bend * pz
    u, ux, uz = fbm_gradient(noise, x * 1.3 + ox, z * 1.3, 3, 0.4, pixels=pixels * 0.7)
    h, dx, dz = h + 0.02 * u, dx + 0.026 * ux, dz + 0.026 * uz
    if world.peaks:
        m, mx, mz = _tables(world, noise, x, z, octaves, pixels)
        h, dx, dz = h + m, dx + mx, dz + mz
    return h, dx, dz


def _tables(world: World, noise: Noise, x, z, octaves: int, pixels):
    """Flat tops, cliffs, and slopes of rubble below them."""
    ox, oz = world.places[7]
    f = world.peak_scale * 1.6
    n, nx, nz = fbm_gradient(noise, x * f + ox, z * f + oz, octaves, 0.52, pixels=pixels / f)
    t = np.clip((n - 0.02) / 0.13, 0, 1)
    there = smoothstep(world.range_near, world.range_far, z) * world.peaks
    rubble = np.clip((n + 0.23) / 0.25, 0, 1)
    cliff = there * (6 * t * (1 - t) / 0.13 + 0.5 * 2 * rubble / 0.25 * (rubble < 1)) * f
    return there * (t * t * (3 - 2 * t) + 0.5 * rubble * rubble), cliff * nx, cliff * nz


def _swell(world: World, noise: Noise, x, z, size: float, pixels):
    """Gentle undulation."""
    ox, oz = world.places[3]
    n, nx, nz = fbm_gradient(noise, x * 0.9 + ox, z * 0.9 + oz, 4, 0.42, pixels=pixels / 0.9)
    size = size * smoothstep(0.1, 1.2, z)
    return size * n, size * 0.9 * nx, size * 0.9 * nz


def _range(world: World, noise: Noise, x, z, octaves: int, pixels):
    """The mountains: ridges that branch, growing from range_near to range_far, lower where the valley opens."""
    ox, oz = world.places[4]
    f = world.peak_scale
    r, rx, rz = ridged_gradient(noise, x * f + ox, z * f + oz, octaves, pixels / f)
    envelope = smoothstep(world.range_near, world.range_far, z)
    gap = (x / z - world.valley) / 0.25
    envelope = envelope * envelope * world.peaks * (1 - 0.5 * exp(-gap * gap))
    bend = envelope * 2.2 * r * f
    return envelope * 1.1 * r * r, bend * rx, bend * rz
