"""What a landscape is, before it is drawn: light, camera, relief and plants, by lot.

Lengths are in hundreds of metres, colours linear RGB.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Colour = tuple[float, float, float]

CLASSES = ("coast_day", "coast_night", "desert_day", "desert_night", "forest_day", "forest_night", "lake_day",
           "lake_sunset", "mountain_day", "mountain_sunset")


@dataclass(frozen=True)
class Light:
    """The hour: where the sun or moon stands and what colours it makes."""

    hour: str  # day, sunset, night
    azimuth: float  # of the sun or moon, radians to the right of the view's middle
    elevation: float  # radians
    disc: float  # radius of the disc in frame heights; 0: out of the picture
    sun: Colour  # what it gives to a surface that faces it
    ambient: Colour  # what the sky gives
    zenith: Colour
    middle: Colour  # of the sky, some way up
    horizon: Colour
    glow: Colour  # about the sun
    cloud_lit: Colour
    cloud_dark: Colour

    @property
    def direction(self) -> np.ndarray:
        """Unit vector towards it: (right, up, ahead)."""
        flat = np.cos(self.elevation)
        return np.array([flat * np.sin(self.azimuth), np.sin(self.elevation), flat * np.cos(self.azimuth)],
                        np.float32)


@dataclass(frozen=True)
class World:
    """Everything that is drawn by lot."""

    biome: str
    light: Light
    horizon: float  # row of the horizon, share of the height from above
    focal: float  # frame heights a unit of slope
    camera: float  # height above the water or the plain
    # sky
    clouds: float  # cover, 0 none .. 1 overcast
    cloud_scale: float
    wind: float  # how much clouds are drawn out
    # relief
    peaks: float  # height of the far range
    peak_scale: float  # features a unit of length
    range_near: float  # distance where the range begins
    range_far: float  # and where it is in full height
    hills: float  # height of near undulation
    valley: float  # direction of the gap in the range, in frame heights right of the middle
    shore: float  # distance of the shore, 0: no water
    snow_line: float
    haze: float  # distance at which 63 % is haze
    # cover
    tree_rows: int
    tree_height: float
    tree_near: float
    tree_far: float
    broadleaf: float  # share of broadleaf trees
    clearing: float  # direction of the clearing
    autumn: float
    grass: Colour
    sand: Colour
    rock: Colour
    flowers: float
    places: np.ndarray = field(repr=False)  # offsets of the noises, (16,2)


def draw_world(generator: np.random.Generator, label: str) -> World:
    """A landscape of the class `label`, one of CLASSES."""
    biome, hour = label.split("_")
    between = generator.uniform
    light = _LIGHTS[hour](generator, biome)
    world = {
        "biome": biome, "light": light, "horizon": between(0.48, 0.6), "focal": 1.05, "camera": 0.15,
        "clouds": between(0.15, 0.6), "cloud_scale": between(0.5, 1.0), "wind": between(1.0, 2.2),
        "peaks": 2.5, "peak_scale": 0.2, "range_near": 3.0, "range_far": 9.0, "hills": 0.05,
        "valley": between(-0.5, 0.5), "shore": 0.0, "snow_line": 99.0, "haze": between(16, 30),
        "tree_rows": 0, "tree_height": 0.12, "tree_near": 1.0, "tree_far": 4.0, "broadleaf": 0.0,
        "clearing": between(-0.4, 0.4), "autumn": 0.0,
        "grass": _mix((0.075, 0.145, 0.030), (0.14, 0.165, 0.045), between(0, 1)),
        "sand": (0.55, 0.42, 0.26), "rock": _mix((0.20, 0.19, 0.19), (0.24, 0.19, 0.15), between(0, 1)),
        "flowers": 0.0, "places": generator.uniform(0, 200, (16, 2)).astype(np.float32),
    }
    return World(**world | _BIOMES[biome](generator, hour))


def _mountain(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.68, 0.78), "camera": between(0.2, 0.4), "peaks": between(7.0, 9.5),
        "peak_scale": between(0.08, 0.11), "range_near": between(1.5, 3.0), "range_far": between(8.0, 10.0),
        "hills": between(0.04, 0.10), "snow_line": between(2.2, 3.6), "tree_rows": 14,
        "tree_height": between(0.09, 0.13), "tree_near": between(1.1, 2.2), "tree_far": between(4.5, 5.5),
        "flowers": max(0.0, between(-0.6, 1.0)), "haze": between(45, 80), "clouds": between(0.05, 0.35),
        "rock": _mix((0.075, 0.08, 0.09), (0.12, 0.09, 0.07), between(0, 1)),  # dark, so not to be taken for cloud
    }


def _forest(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    autumn = max(0.0, between(-0.9, 0.8)) if hour == "day" else 0.0
    leafy = float(generator.choice([0.0, 0.0, 0.3, 0.8]))
    return {
        "horizon": between(0.54, 0.66), "camera": between(0.06, 0.1), "peaks": between(1.2, 2.2),
        "peak_scale": between(0.14, 0.2), "range_near": between(2.5, 3.5), "range_far": between(8, 10),
        "hills": between(0.03, 0.07), "tree_rows": 13,
        "tree_height": between(0.42, 0.62), "tree_near": between(0.9, 1.2), "tree_far": between(5, 6),
        "broadleaf": leafy if autumn == 0 else between(0.5, 1.0),
        "autumn": autumn, "haze": between(5, 14), "clouds": between(0.1, 0.5),
        "flowers": max(0.0, between(-0.6, 0.8)),
    }


def _lake(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.46, 0.56), "camera": between(0.10, 0.15), "peaks": between(3.2, 5.5),
        "peak_scale": between(0.11, 0.17), "range_near": between(2.6, 4.0), "range_far": between(9, 11),
        "hills": 0.05, "snow_line": between(1.0, 2.2), "shore": between(2.0, 3.2),
        "tree_rows": 12, "tree_height": between(0.11, 0.17), "tree_near": 2.0,
        "tree_far": 6.5, "broadleaf": float(generator.choice([0.0, 0.0, 0.25])), "haze": between(28, 50),
    }


def _desert(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    tint = between(0, 1)
    return {
        "horizon": between(0.36, 0.5), "camera": between(0.35, 0.55),
        "peaks": float(generator.choice([0.0, 0.0, 0.75, 1.0])),
        "peak_scale": between(0.10, 0.16), "range_near": 6.0, "range_far": 6.8, "hills": between(0.5, 0.85),
        "sand": _mix((0.56, 0.36, 0.17), (0.55, 0.26, 0.10), tint), "rock": (0.34, 0.15, 0.08),
        "clouds": max(0.0, between(-0.3, 0.35)), "wind": between(1.6, 2.6), "haze": between(22, 40),
    }


def _coast(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.42, 0.52), "camera": between(0.14, 0.2), "peaks": between(0.9, 1.8),
        "peak_scale": between(0.25, 0.4), "range_near": between(0.5, 1.0), "range_far": between(4, 6),
        "hills": 0.03, "shore": between(0.5, 0.85), "haze": between(24, 44),
        "sand": _mix((0.50, 0.40, 0.26), (0.52, 0.36, 0.20), between(0, 1)),
        "tree_rows": 6, "tree_height": between(0.08, 0.12), "tree_near": 2.2, "tree_far": 5.0,
        "broadleaf": 1.0, "grass": (0.07, 0.13, 0.03),
    }


_BIOMES = {"mountain": _mountain, "forest": _forest, "lake": _lake, "desert": _desert, "coast": _coast}


def _day(generator: np.random.Generator, biome: str) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.25
    side = generator.choice([-1.0, 1.0])
    overcast = max(0.0, between(-0.9, 0.6))
    grey, high = (0.46, 0.50, 0.56), between(0.3, 0.55) if biome == "desert" else between(0.45, 0.9)
    return Light(
        hour="day", azimuth=between(-0.35, 0.35) if seen else side * between(0.9, 2.2),
        elevation=between(0.3, 0.42) if seen else high, disc=0.022 if seen else 0.0,
        sun=_mix((2.9, 2.5, 2.0), (1.3, 1.3, 1.3), overcast),
        ambient=_mix((0.22, 0.31, 0.50), (0.40, 0.44, 0.50), overcast),
        zenith=_mix((0.035, 0.13, 0.46), grey, overcast), middle=_mix((0.12, 0.30, 0.68), grey, overcast),
        horizon=_mix((0.50, 0.66, 0.85), (0.62, 0.64, 0.67), overcast), glow=(0.7, 0.6, 0.42),
        cloud_lit=(1.5, 1.45, 1.38), cloud_dark=_mix((0.42, 0.50, 0.64), (0.36, 0.39, 0.44), overcast),
    )


def _sunset(generator: np.random.Generator, biome: str) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.6
    side = generator.choice([-1.0, 1.0])
    red = between(0, 1)
    return Light(
        hour="sunset", azimuth=between(-0.36, 0.36) if seen else side * between(1.2, 2.3),
        elevation=between(0.10, 0.2) if seen else between(0.15, 0.3), disc=between(0.026, 0.036) if seen else 0.0,
        sun=_mix((2.7, 1.25, 0.45), (2.5, 0.80, 0.30), red),
        ambient=_mix((0.17, 0.16, 0.26), (0.16, 0.12, 0.26), red),
        zenith=_mix((0.03, 0.09, 0.26), (0.045, 0.055, 0.20), red),
        middle=_mix((0.28, 0.24, 0.32), (0.36, 0.15, 0.22), red),
        horizon=_mix((1.05, 0.54, 0.20), (1.00, 0.33, 0.10), red),
        glow=_mix((1.2, 0.60, 0.18), (1.2, 0.38, 0.10), red),
        cloud_lit=_mix((1.6, 0.78, 0.36), (1.5, 0.46, 0.26), red),
        cloud_dark=_mix((0.20, 0.16, 0.25), (0.17, 0.10, 0.22), red),
    )


def _night(generator: np.random.Generator, biome: str) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.75
    side = generator.choice([-1.0, 1.0])
    teal = between(0, 1)
    return Light(
        hour="night", azimuth=between(-0.36, 0.36) if seen else side * between(0.8, 1.9),
        elevation=between(0.2, 0.38) if seen else between(0.4, 0.8), disc=between(0.03, 0.045) if seen else 0.0,
        sun=(0.50, 0.64, 0.92), ambient=_mix((0.06, 0.10, 0.21), (0.055, 0.12, 0.19), teal),
        zenith=_mix((0.006, 0.012, 0.045), (0.005, 0.018, 0.04), teal),
        middle=_mix((0.013, 0.026, 0.085), (0.012, 0.04, 0.08), teal),
        horizon=_mix((0.04, 0.065, 0.15), (0.04, 0.10, 0.14), teal), glow=(0.16, 0.20, 0.28),
        cloud_lit=(0.20, 0.24, 0.33), cloud_dark=(0.022, 0.032, 0.065),
    )


_LIGHTS = {"day": _day, "sunset": _sunset, "night": _night}


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(float(x + (y - x) * share) for x, y in zip(a, b))
