"""tesserae: VQGAN + transformer image synthesis as notebooks, a pipeline and a small library."""

from __future__ import annotations

import importlib
from typing import Any

from tesserae.errors import TesseraeError
from tesserae.params import load_params

__version__ = "0.1.0"
__all__ = ["VQGAN", "LatentTransformer", "Sampler", "TesseraeError", "load_params"]

LAZY = {"VQGAN": "tesserae.models.vqgan", "LatentTransformer": "tesserae.models.transformer",
           "Sampler": "tesserae.sampling.sampler"}


def __getattr__(name: str) -> Any:
    """The models import torch, which takes seconds: only who asks for one waits for it."""
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
