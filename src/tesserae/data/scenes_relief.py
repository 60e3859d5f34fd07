"""The ground: its height anywhere, and which of its points each pixel sees."""

from __future__ import annotations

import numpy as np

from tesserae.data.scenes_noise import Noise, fbm, fbm_gradient, smoothstep
from tesserae.data.scenes_view import View
from tesserae.data.scenes_world import World

NEAR, FAR = 0.18, 60.0  # distances between which ground is looked for
WATER_LEVEL = 0.0


def relief(world: World, noise: Noise, x: np.ndarray, z: np.ndarray, octaves: int,
           pixel: float | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height of the ground and its slopes, (h, dh/dx, dh/dz), at points of any one shape.

    `pixel`: the slope a pixel spans, where octaves that are too fine for it shall fade.
    """
    pixels = np.inf if pixel is None else 1 / (pixel * z)  # a unit of length
    parts = {"mountain": _alps, "forest": _alps, "lake": _lake, "desert": _dunes, "coast": _coast}
    return parts[world.biome](world, noise, x, z, octaves, pixels)


def first_hits(world: World, noise: Noise, view: View) -> np.ndarray:
    """Distance z of the first ground that each pixel sees, (H,W); infinite where it sees none.

    Each column of the picture is a ray over the ground, sampled at growing distances; what a pixel sees is the
    first sample whose running maximum of slope reaches it.
    """
    height, width = len(view.up), len(view.across)
    count = int(np.clip(0.9 * height, 96, 1400))
    z = np.geomspace(NEAR, FAR, count, dtype=np.float32)
    x = z[:, None] * view.across  # (N,W)
    y = relief(world, noise, x, np.broadcast_to(z[:, None], x.shape), 7, view.pixel)[0]
    if world.shore:
        y = np.maximum(y, WATER_LEVEL)
    slope = np.ascontiguousarray(((y - world.camera) / z[:, None]).T)  # (W,N)
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
    if world.shore:  # the level reaches the horizon
        flat = np.where(view.up < -1e-6, -world.camera / np.minimum(view.up, -1e-6), np.inf)
        found = np.minimum(found, flat.astype(np.float32))
    return np.ascontiguousarray(found.T)


def _alps(world: World, noise: Noise, x, z, octaves: int, pixels):
    """Meadows that rise to a range: eroded noise on crests, with a gap where the valley opens."""
    h, dx, dz = _swell(world, noise, x, z, world.hills, pixels)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    return h + r, dx + rx, dz + rz


def _lake(world: World, noise: Noise, x, z, octaves: int, pixels):
    """A far shore, hills behind it."""
    h, dx, dz = _swell(world, noise, x, z, world.hills, pixels)
    (ox, oz) = world.places[5]
    shore = world.shore * (1 + 0.35 * noise(x * 0.35 + ox, np.full_like(x, oz)))
    rise = np.clip((z - shore) * 0.12, -0.2, 0.25)
    slope = np.where(np.abs(rise - 0.025) < 0.225, 0.12, 0).astype(np.float32)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    land = smoothstep(0, 0.2, rise)
    return h * 0.6 + rise + r * land, dx * 0.6 + rx * land, dz * 0.6 + slope + rz * land


def _coast(world: World, noise: Noise, x, z, octaves: int, pixels):
    """A beach that falls to the sea, and a headland on one side."""
    h, dx, dz = _swell(world, noise, x, z, 0.02, pixels)
    ox, oz = world.places[5]
    edge = -world.shore * (1 + 0.25 * noise(x * 0.9 + ox, np.full_like(x, oz))) + 0.25 * x
    fall = np.maximum((edge - z) * 0.16, -0.5)
    slope = np.where(fall > -0.5, -0.16, 0).astype(np.float32)
    r, rx, rz = _range(world, noise, x, z, octaves, pixels)
    side = np.sign(world.valley) if world.valley else 1.0
    out = smoothstep(0.12, 0.75, -side * x / z + 0.12 * noise(z * 0.5 + ox, x * 0.1)) * smoothstep(1.5, 2.6, z)
    headland = (r + 0.5) * out
    return h + fall + headland, dx + rx * out, dz + slope + rz * out


def _dunes(world: World, noise: Noise, x, z, octaves: int, pixels):
    """Crests with a long windward and a short lee side, table mountains behind them."""
    ox, oz = world.places[6]
    turn = world.valley * 1.2 + 0.5
    c, s = np.cos(turn), np.sin(turn)
    w, wx, wz = fbm_gradient(noise, x * 0.5 + ox, z * 0.5 + oz, 2, 0.4)
    phase = 0.8 * (c * z + s * x) + 1.1 * w + oz
    px, pz = 0.8 * s + 0.55 * wx, 0.8 * c + 0.55 * wz
    t = phase - np.floor(phase)
    windward = t < 0.72
    rise = np.where(windward, t / 0.72, (1 - t) / 0.28).astype(np.float32)
    steep = np.where(windward, 1 / 0.72, -1 / 0.28).astype(np.float32)
    profile, bend = rise * rise * (1.6 - 0.6 * rise), steep * rise * (3.2 - 1.8 * rise)
    size = world.hills * (0.55 + 0.45 * noise(x * 0.3 + 7, z * 0.3 + 3)) * smoothstep(0.1, 1.6, z)
    h, dx, dz = size * profile, size * bend * px, size * bend * pz
    u, ux, uz = fbm_gradient(noise, x * 2 + ox, z * 2, 3, 0.45, pixels=pixels * 0.5)
    h, dx, dz = h + 0.02 * u, dx + 0.04 * ux, dz + 0.04 * uz
    if world.peaks:
        m, mx, mz = _tables(world, noise, x, z, octaves, pixels)
        h, dx, dz = h + m, dx + mx, dz + mz
    return h, dx, dz


def _tables(world: World, noise: Noise, x, z, octaves: int, pixels):
    ox, oz = world.places[7]
    f = world.peak_scale * 1.4
    n, nx, nz = fbm_gradient(noise, x * f + ox, z * f + oz, octaves, 0.45, pixels=pixels / f)
    t = np.clip((n - 0.12) / 0.22, 0, 1)
    there = smoothstep(world.range_near, world.range_far, z) * world.peaks
    cliff = there * 6 * t * (1 - t) / 0.22 * f
    talus = there * 0.25 * np.clip(n + 0.25, 0, 0.37) / 0.37
    return there * t * t * (3 - 2 * t) + talus, cliff * nx, cliff * nz


def _swell(world: World, noise: Noise, x, z, size: float, pixels):
    """Gentle undulation."""
    ox, oz = world.places[3]
    n, nx, nz = fbm_gradient(noise, x * 0.9 + ox, z * 0.9 + oz, 4, 0.42, pixels=pixels / 0.9)
    size = size * smoothstep(0.1, 1.2, z)
    return size * n, size * 0.9 * nx, size * 0.9 * nz


def _range(world: World, noise: Noise, x, z, octaves: int, pixels):
    """The mountains: crests 1 - |n|, carried by eroded noise, that begin at range_near."""
    (ox, oz), (qx, qz) = world.places[4], world.places[8]
    f = world.peak_scale
    n, nx, nz = fbm_gradient(noise, x * f + ox, z * f + oz, octaves, 0.48, 0.6, pixels / f)
    k, kx, kz = noise.gradient(x * f * 1.1 + qx, z * f * 1.1 + qz)
    crest, sign = 1 - np.abs(k), -np.sign(k)
    envelope = smoothstep(world.range_near, world.range_far, z)
    gap = (x / z - world.valley) / 0.28
    envelope = envelope * world.peaks * (1 - 0.55 * np.exp(-gap * gap))
    body = 0.30 + 0.42 * crest * crest + 0.42 * n
    slope = 0.84 * crest * sign * 1.1 * f
    return envelope * body, envelope * (slope * kx + 0.42 * f * nx), envelope * (slope * kz + 0.42 * f * nz)


def undergrowth(noise: Noise, x, z, pixels):
    """Patches in [0, 1] for colours of the ground."""
    return 0.5 + 0.5 * fbm(noise, x * 1.3 + 40, z * 1.3 + 80, 5, 0.55, pixels / 1.3)
