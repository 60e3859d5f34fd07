"""Value noise with its gradient, and sums of its octaves: the stuff that the landscapes are made of."""

from __future__ import annotations

import numpy as np

SIDE = 256  # the lattice repeats after this many cells
_COS, _SIN = 0.8, 0.6  # each octave is turned by 37 degrees, so that no lattice shows


class Noise:
    """One random lattice, (256,256) in [-1, 1]; equal generators give equal noise."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.lattice = values = generator.random((SIDE, SIDE), dtype=np.float32) * 2 - 1
        right, below = np.roll(values, -1, 1), np.roll(values, -1, 0)
        across = np.roll(below, -1, 1)
        # v = k0 + k1 u + k2 w + k3 u w inside a cell
        cells = np.stack([values, right - values, below - values, values - right - below + across], axis=-1)
        self._cells = np.ascontiguousarray(cells.reshape(-1, 4))

    def white(self, x: np.ndarray, y: np.ndarray, which: int) -> np.ndarray:
        """A number in [-1, 1] for each cell (whole numbers), another for each `which`."""
        row, column = y.astype(np.int64) * 5 + 37 * which, x.astype(np.int64) * 3 + 91 * which
        return self.lattice[row % SIDE, (column + row // SIDE) % SIDE]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Noise in [-1, 1] at points (any one shape), float32; one feature a unit."""
        k0, k1, k2, k3, u, w, _, _ = self._look_up(x, y)
        return k0 + k1 * u + (k2 + k3 * u) * w

    def gradient(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noise and its derivatives: (value, d/dx, d/dy)."""
        k0, k1, k2, k3, u, w, fx, fy = self._look_up(x, y)
        along = k1 + k3 * w
        across = k2 + k3 * u
        return k0 + k1 * u + across * w, along * (6 * fx * (1 - fx)), across * (6 * fy * (1 - fy))

    def _look_up(self, x: np.ndarray, y: np.ndarray):
        left, top = np.floor(x), np.floor(y)
        fx, fy = (x - left).astype(np.float32), (y - top).astype(np.float32)
        index = (top.astype(np.int32) & (SIDE - 1)) * SIDE + (left.astype(np.int32) & (SIDE - 1))
        cell = self._cells.take(index, axis=0)
        u, w = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
        return cell[..., 0], cell[..., 1], cell[..., 2], cell[..., 3], u, w, fx, fy

    def line(self, x: np.ndarray, row: float = 0.5) -> np.ndarray:
        """Noise along a line, for silhouettes."""
        return self(x, np.full_like(x, row))


def turned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points for the next octave: twice as fine, turned."""
    return 2 * (_COS * x + _SIN * y) + 17.3, 2 * (_COS * y - _SIN * x) + 31.7


def fade(cell_pixels: np.ndarray | float) -> np.ndarray | float:
    """What remains of an octave whose cells span that many pixels: nothing below 1, all above 3."""
    return np.clip((cell_pixels - 1) * 0.5, 0, 1)


def fbm(noise: Noise, x: np.ndarray, y: np.ndarray, octaves: int, gain: float = 0.5,
        pixels: np.ndarray | float = np.inf) -> np.ndarray:
    """Fractal noise, about [-1, 1]. `pixels`: how many pixels a unit spans; finer octaves fade out."""
    total, amplitude = np.zeros(np.broadcast(x, y).shape, np.float32), 1.0
    for octave in range(octaves):
        weight = fade(pixels / 2**octave)
        if not np.any(weight):
            break
        total += (amplitude * weight) * noise(x, y)
        x, y = turned(x, y)
        amplitude *= gain
    return total


def fbm_gradient(noise: Noise, x: np.ndarray, y: np.ndarray, octaves: int, gain: float = 0.5,
                 erosion: float = 0.0, pixels: np.ndarray | float = np.inf):
    """Fractal noise and its derivatives; `erosion` calms the octaves where the coarser ones are steep.

    Steep slopes stay smooth and valleys fill, as where water ran. Returns (value, d/dx, d/dy).
    """
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    dx, dy, sx, sy = (np.zeros_like(total) for _ in range(4))
    amplitude, a, b, c, d = 1.0, 1.0, 0.0, 0.0, 1.0  # (a b; c d): d(octave point)/d(point)
    for octave in range(octaves):
        weight = fade(pixels / 2**octave) * amplitude
        if not np.any(weight):
            break
        value, gx, gy = noise.gradient(x, y)
        if erosion:
            sx, sy = sx + gx, sy + gy
            weight = weight / (1 + erosion * (sx * sx + sy * sy))
        total += weight * value
        dx += weight * (a * gx + c * gy)
        dy += weight * (b * gx + d * gy)
        x, y = turned(x, y)
        a, b, c, d = 2 * (_COS * a + _SIN * c), 2 * (_COS * b + _SIN * d), \
            2 * (_COS * c - _SIN * a), 2 * (_COS * d - _SIN * b)
        amplitude *= gain
    return total, dx, dy


def ridged_gradient(noise: Noise, x: np.ndarray, y: np.ndarray, octaves: int,
                    pixels: np.ndarray | float = np.inf):
    """Ridged multifractal (Musgrave), about [0, 1], and its derivatives: crests where the noise crosses zero.

    Each octave is carried by the one before, so that crests branch and valleys stay smooth.
    """
    total = np.zeros(np.broadcast(x, y).shape, np.float32)
    dx, dy = np.zeros_like(total), np.zeros_like(total)
    carried: np.ndarray | float = 1.0
    amplitude, a, b, c, d = 0.56, 1.0, 0.0, 0.0, 1.0
    for octave in range(octaves):
        weight = fade(pixels / 2**octave) * amplitude * carried
        if not np.any(weight):
            break
        value, gx, gy = noise.gradient(x, y)
        crest = 1 - np.abs(value)
        signal = crest * crest
        bend = -2 * weight * crest * np.sign(value)
        total += weight * signal
        dx += bend * (a * gx + c * gy)
        dy += bend * (b * gx + d * gy)
        carried = np.clip(1.5 * signal - 0.2, 0, 1)
        x, y = turned(x, y)
        a, b, c, d = 2 * (_COS * a + _SIN * c), 2 * (_COS * b + _SIN * d), \
            2 * (_COS * c - _SIN * a), 2 * (_COS * d - _SIN * b)
        amplitude *= 0.5
    return total, dx, dy


def billow(noise: Noise, x: np.ndarray, y: np.ndarray, octaves: int, gain: float = 0.5,
           pixels: np.ndarray | float = np.inf) -> np.ndarray:
    """Sums of |noise|, about [-1, 1]: round lumps with creases between them."""
    total, amplitude = np.zeros(np.broadcast(x, y).shape, np.float32), 1.0
    for octave in range(octaves):
        weight = fade(pixels / 2**octave)
        if not np.any(weight):
            break
        total += (amplitude * weight) * (np.abs(noise(x, y)) * 3 - 1)
        x, y = turned(x, y)
        amplitude *= gain
    return total


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
