"""The reference's code from a checkout, for the speed suite: what it imports and no longer exists is stood in for."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.reference_vqgan import import_reference

SPREAD = 0.05  # of what is added to weights that start as zeros and ones


def import_checkout(checkout: Path) -> None:
    """Let `taming` be imported from a checkout; it may be called again."""
    if str(checkout) in sys.path:
        return
    transformers = types.ModuleType("transformers")  # of which it takes one function, which later versions lack
    transformers.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
    transformers.top_k_top_p_filtering = keep_likeliest
    sys.modules["transformers"] = transformers
    import_reference(checkout)


def keep_likeliest(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (B,K) with all but the top_k likeliest at minus infinity. ValueError for a top_p below 1."""
    if top_p < 1:
        raise ValueError(f"top_p = {top_p} is not stood in for: leave it at 1 and filter by top_k")
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


@torch.no_grad()
def shake(network: nn.Module) -> nn.Module:
    """Move weights off their start, so that no part of an untrained network is without effect on its outputs.

    LPIPS, which is trained, stays.
    """
    for name, weight in network.named_parameters():
        if "perceptual_loss" in name:
            continue
        if weight.ndim == 1 or name == "pos_emb":
            weight.add_(SPREAD * torch.randn_like(weight))
        if name.endswith("quantize.embedding.weight"):
            weight.normal_()
    return network


def weights_of(network: nn.Module, without: str = "perceptual_loss") -> dict[str, Tensor]:
    """Its state dict on the CPU, without what ours has of its own."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items() if without not in name}
