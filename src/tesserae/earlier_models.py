"""What earlier versions saved with their models, as this version means it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

OLD_ORDERS = ("subsample", "spiral_in", "spiral_out")  # had other rules in configs without a version
# K of models that recorded no levels of FSQ -> their levels.
OLD_FSQ_LEVELS = {8: (2, 2, 2), 16: (4, 4), 32: (8, 4), 64: (8, 8), 128: (8, 4, 4), 256: (8, 8, 4), 512: (8, 8, 8),
                  1024: (8, 8, 4, 4), 2048: (8, 8, 8, 4), 4096: (8, 8, 8, 8), 8192: (8, 8, 8, 4, 4),
                  16384: (8, 8, 8, 8, 4), 32768: (8, 8, 8, 8, 8), 65536: (8, 8, 8, 8, 4, 4)}


def upgraded(kind: str, values: Mapping) -> dict:
    """The config of a saved model, a VQGAN's or a LatentTransformer's, in today's meaning."""
    values = dict(values)
    if kind == "LatentTransformer" and "version" not in values and values.get("order") in OLD_ORDERS:
        values["order"] = f"old_{values['order']}"
    if kind == "VQGAN" and values.get("quantizer") == "fsq" and "levels" not in values:
        values["levels"] = OLD_FSQ_LEVELS.get(values.get("codebook_size"), ())
    return values


def upgrade_ema_state(module: Any, state: dict, prefix: str, *_: object) -> None:
    """A hook on loading an EMAQuantizer: weights saved when its averages came from `vector-quantize-pytorch`."""
    if f"{prefix}inner._codebook.embed" not in state:
        return
    names = {"embed": "codebook", "cluster_size": "counts", "embed_avg": "sums"}
    for name, ours in names.items():
        state[prefix + ours] = state.pop(f"{prefix}inner._codebook.{name}")[0]
    state.pop(f"{prefix}inner._codebook.initted", None)
    state[f"{prefix}idle"] = module.idle.clone()


def _old_spiral(height: int, width: int) -> list[int]:
    """From the upper left corner clockwise."""
    grid = np.arange(height * width).reshape(height, width)
    positions: list[int] = []
    while grid.size:
        positions += grid[0].tolist()
        grid = np.rot90(grid[1:])
    return positions


def _old_subsample(height: int, width: int) -> list[int]:
    """By the coarsest grid of steps 2^n that a position lies on, then, of one grid, as one reads."""
    def fineness(position: int) -> int:
        row, column = divmod(position, width)
        step = 1 << max(height, width).bit_length()
        return next(level for level in range(64) if not row % (step >> level) and not column % (step >> level))

    return sorted(range(height * width), key=lambda position: (fineness(position), position))


OLD_ORDERINGS = {  # positions of a map of height x width in the order of that name, see `sampling.orderings`
    "old_subsample": _old_subsample,
    "old_spiral_in": _old_spiral,
    "old_spiral_out": lambda height, width: _old_spiral(height, width)[::-1],
}
