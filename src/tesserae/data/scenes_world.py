"""What a landscape is, before it is drawn: light, camera, relief, plants, drawn by lot from its biome and hour.

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
    exposure: float = 1.0

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
    shore: float  # distance of the near shore, 0: no water near
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
    light = _LIGHTS[hour](generator)
    world = {
        "biome": biome, "light": light, "horizon": between(0.48, 0.6), "focal": 1.05, "camera": 0.15,
        "clouds": between(0.15, 0.6), "cloud_scale": between(0.5, 1.0), "wind": between(1.0, 2.2),
        "peaks": 2.5, "peak_scale": 0.2, "range_near": 3.0, "range_far": 9.0, "hills": 0.05,
        "valley": between(-0.5, 0.5), "shore": 0.0, "snow_line": 99.0, "haze": between(16, 30),
        "tree_rows": 0, "tree_height": 0.12, "tree_near": 1.0, "tree_far": 4.0, "broadleaf": 0.0,
        "clearing": between(-0.4, 0.4), "autumn": 0.0,
        "grass": _mix((0.10, 0.19, 0.035), (0.20, 0.22, 0.05), between(0, 1)),
        "sand": (0.55, 0.42, 0.26), "rock": _mix((0.20, 0.19, 0.19), (0.24, 0.19, 0.15), between(0, 1)),
        "flowers": 0.0, "places": generator.uniform(0, 200, (16, 2)).astype(np.float32),
    }
    return World(**world | _BIOMES[biome](generator, hour))


def _mountain(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.58, 0.70), "camera": between(0.15, 0.3), "peaks": between(3.2, 4.6),
        "peak_scale": between(0.13, 0.2), "range_near": between(2.0, 4.0), "range_far": between(8.0, 11.0),
        "hills": between(0.06, 0.16), "snow_line": between(0.9, 2.0), "tree_rows": int(generator.integers(5, 9)),
        "tree_height": between(0.07, 0.12), "tree_near": between(1.2, 2.0), "tree_far": between(3.5, 5.0),
        "flowers": between(0.0, 1.0), "haze": between(18, 34), "clouds": between(0.1, 0.55),
    }


def _forest(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    autumn = max(0.0, between(-0.6, 0.9)) if hour == "day" else 0.0
    return {
        "horizon": between(0.5, 0.62), "camera": between(0.05, 0.09), "peaks": between(0.9, 1.7),
        "peak_scale": between(0.2, 0.3), "range_near": between(3, 4), "range_far": between(8, 10),
        "hills": between(0.03, 0.07), "tree_rows": int(generator.integers(9, 13)),
        "tree_height": between(0.16, 0.24), "tree_near": between(0.45, 0.7), "tree_far": between(4, 6),
        "broadleaf": generator.choice([0.0, 0.15, 0.6, 0.9]) if autumn == 0 else between(0.5, 1.0),
        "autumn": autumn, "haze": between(6, 14), "clouds": between(0.1, 0.5), "flowers": between(0.0, 0.6),
    }


def _lake(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.48, 0.56), "camera": between(0.1, 0.16), "peaks": between(1.6, 3.0),
        "peak_scale": between(0.16, 0.26), "range_near": between(2.6, 4.0), "range_far": between(8, 11),
        "hills": 0.04, "snow_line": between(1.1, 2.6), "shore": between(2.2, 3.4),
        "tree_rows": int(generator.integers(3, 6)), "tree_height": between(0.08, 0.13), "tree_near": 2.6,
        "tree_far": 5.0, "broadleaf": generator.choice([0.0, 0.3]), "haze": between(14, 26),
    }


def _desert(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    tint = between(0, 1)
    return {
        "horizon": between(0.42, 0.55), "camera": between(0.2, 0.35), "peaks": generator.choice([0.0, 0.9, 1.3]),
        "peak_scale": between(0.16, 0.24), "range_near": 6.0, "range_far": 7.0, "hills": between(0.25, 0.45),
        "sand": _mix((0.60, 0.40, 0.20), (0.62, 0.30, 0.12), tint), "rock": (0.36, 0.17, 0.09),
        "clouds": max(0.0, between(-0.3, 0.4)), "wind": between(2.0, 4.0), "haze": between(16, 30),
    }


def _coast(generator: np.random.Generator, hour: str) -> dict:
    between = generator.uniform
    return {
        "horizon": between(0.42, 0.52), "camera": between(0.12, 0.2), "peaks": between(0.6, 1.4),
        "peak_scale": between(0.2, 0.35), "range_near": between(2.0, 4.0), "range_far": between(6, 9),
        "hills": 0.03, "shore": -between(0.45, 0.8), "sand": _mix((0.62, 0.52, 0.36), (0.66, 0.47, 0.28),
                                                                  between(0, 1)),
        "haze": between(9, 18),
    }


_BIOMES = {"mountain": _mountain, "forest": _forest, "lake": _lake, "desert": _desert, "coast": _coast}


def _day(generator: np.random.Generator) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.3
    side = generator.choice([-1.0, 1.0])
    overcast = max(0.0, between(-0.8, 0.5))
    grey = (0.50, 0.54, 0.60)
    return Light(
        hour="day", azimuth=between(-0.35, 0.35) if seen else side * between(0.7, 2.0),
        elevation=between(0.3, 0.42) if seen else between(0.5, 0.95), disc=0.024 if seen else 0.0,
        sun=_scaled(_mix((2.6, 2.3, 1.9), (1.5, 1.5, 1.5), overcast), 1.0),
        ambient=_mix((0.30, 0.42, 0.66), (0.42, 0.46, 0.52), overcast),
        zenith=_mix((0.05, 0.17, 0.52), grey, overcast), middle=_mix((0.16, 0.36, 0.74), grey, overcast),
        horizon=_mix((0.55, 0.70, 0.88), (0.66, 0.68, 0.70), overcast), glow=(0.8, 0.7, 0.5),
        cloud_lit=(1.25, 1.2, 1.12), cloud_dark=_mix((0.50, 0.56, 0.66), (0.40, 0.43, 0.48), overcast),
    )


def _sunset(generator: np.random.Generator) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.65
    side = generator.choice([-1.0, 1.0])
    red = between(0, 1)
    return Light(
        hour="sunset", azimuth=between(-0.36, 0.36) if seen else side * between(0.9, 1.9),
        elevation=between(0.06, 0.2), disc=between(0.028, 0.04) if seen else 0.0,
        sun=_mix((2.9, 1.5, 0.62), (2.7, 0.95, 0.40), red), ambient=_mix((0.34, 0.30, 0.42), (0.30, 0.24, 0.42), red),
        zenith=_mix((0.10, 0.17, 0.38), (0.11, 0.09, 0.27), red),
        middle=_mix((0.50, 0.38, 0.42), (0.52, 0.20, 0.30), red),
        horizon=_mix((1.15, 0.66, 0.26), (1.10, 0.42, 0.14), red), glow=_mix((1.3, 0.72, 0.25), (1.3, 0.45, 0.15), red),
        cloud_lit=_mix((1.5, 0.80, 0.42), (1.4, 0.50, 0.33), red),
        cloud_dark=_mix((0.34, 0.26, 0.34), (0.26, 0.16, 0.29), red),
    )


def _night(generator: np.random.Generator) -> Light:
    between = generator.uniform
    seen = between(0, 1) < 0.75
    side = generator.choice([-1.0, 1.0])
    teal = between(0, 1)
    return Light(
        hour="night", azimuth=between(-0.36, 0.36) if seen else side * between(0.6, 1.6),
        elevation=between(0.16, 0.38) if seen else between(0.4, 0.8), disc=between(0.03, 0.045) if seen else 0.0,
        sun=(0.22, 0.29, 0.42), ambient=_mix((0.035, 0.055, 0.12), (0.03, 0.065, 0.11), teal),
        zenith=_mix((0.006, 0.012, 0.045), (0.005, 0.018, 0.04), teal),
        middle=_mix((0.013, 0.026, 0.085), (0.012, 0.04, 0.08), teal),
        horizon=_mix((0.04, 0.065, 0.15), (0.04, 0.10, 0.14), teal), glow=(0.16, 0.20, 0.28),
        cloud_lit=(0.17, 0.20, 0.27), cloud_dark=(0.022, 0.03, 0.06),
    )


_LIGHTS = {"day": _day, "sunset": _sunset, "night": _night}


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(float(x + (y - x) * share) for x, y in zip(a, b))


def _scaled(a: Colour, factor: float) -> Colour:
    return tuple(float(x * factor) for x in a)
