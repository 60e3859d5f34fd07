"""One dial: what `size: xs | s | m | l` gives to the keys that read `auto`.

A row is a kind of network; a column is a size. Widths and depths grow together, batches and steps grow with them, and
rates fall for the wider networks. A key that params.yaml gives a number keeps that number at every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = ("xs", "s", "m", "l")
DEFAULT_SIZE = "s"

# What came of a size on the built-in data; params.yaml shows it beside the dial. Only what was measured.
MEASURED: dict[str, str] = {}

Row = Mapping[str, tuple[Any, Any, Any, Any]]

# VQGANs of pictures
IMAGE: Row = {
    "channels": (64, 96, 128, 192),
    "z_channels": (64, 96, 128, 192),
    "perceptual_start": (310, 800, 1200, 5000),
    "disc_start": (350, 900, 1400, 6000),
    "steps": (400, 1060, 1800, 9000),
    "batch_size": (6, 6, 8, 12),
    "lr": (1e-3, 1e-3, 8e-4, 5e-4),
    "muon_lr": (2e-3, 2e-3, 2e-3, 1.5e-3),
    "warmup": (30, 50, 80, 200),
    "sample_every": (100, 270, 450, 1500),
    "eval_every": (200, 540, 900, 3000),
    "checkpoint_every": (100, 270, 450, 500),
}

# VQGANs of what transformers are conditioned on: segmentation, depth, edges, low resolution
CONDITION: Row = {
    "channels": (48, 64, 96, 128),
    "z_channels": (48, 64, 96, 128),
    "perceptual_start": (0, 0, 0, 0),
    "disc_start": (300, 300, 300, 300),
    "steps": (80, 200, 450, 2000),
    "batch_size": (8, 8, 8, 16),
    "lr": (1e-3, 1e-3, 8e-4, 5e-4),
    "muon_lr": (2e-3, 2e-3, 2e-3, 1.5e-3),
    "warmup": (15, 30, 60, 150),
    "sample_every": (40, 80, 150, 500),
    "eval_every": (80, 160, 225, 1000),
    "checkpoint_every": (40, 80, 150, 500),
}

# transformers of whole code maps
WHOLE: Row = {
    "n_layer": (2, 3, 4, 8),
    "n_head": (4, 4, 6, 8),
    "n_embd": (128, 256, 384, 512),
    "dropout": (0.0, 0.0, 0.1, 0.15),
    "steps": (200, 400, 700, 3000),
    "batch_size": (8, 8, 8, 16),
    "lr": (2e-3, 2e-3, 1.5e-3, 1e-3),
    "muon_lr": (5e-3, 5e-3, 4e-3, 3e-3),
    "warmup": (20, 30, 50, 150),
    "sample_every": (100, 200, 350, 1000),
    "eval_every": (100, 200, 350, 500),
    "checkpoint_every": (100, 200, 350, 500),
}

# transformers of windows of code maps
WINDOW: Row = WHOLE | {
    "steps": (160, 320, 600, 2500),
    "sample_every": (80, 160, 300, 1000),
    "eval_every": (80, 160, 300, 500),
    "checkpoint_every": (80, 160, 300, 500),
}


def sizes_of(kind: str, block: Mapping[str, Any]) -> Row:
    """What the dial governs in a block of that kind, "vqgan" for instance; {} where it governs nothing."""
    if kind == "vqgan":
        return IMAGE if block.get("view", "image") == "image" else CONDITION
    if kind == "transformer":
        return WINDOW if block.get("window", 0) else WHOLE
    return {}
