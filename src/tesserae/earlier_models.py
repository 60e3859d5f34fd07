"""What earlier versions saved with their models, as this version means it."""

from __future__ import annotations

from collections.abc import Mapping

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
