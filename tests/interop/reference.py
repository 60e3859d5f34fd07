"""The reference's own modules, CompVis/taming-transformers, as the package taming-transformers-hugf has them.

Its networks, quantizers, transformer and permuters are the repository's, file by file. They were written for
PyTorch Lightning 1 and transformers 4; the names that they import of those are stood in for while they are
imported. None of them takes part in a forward pass.
"""

import importlib
import sys
import types
from unittest.mock import patch

import torch
import transformers
from torch import nn

PACKAGE = "taming_transformers_hugf"


class LightningModule(nn.Module):
    """As much of it as a forward pass needs."""


def instantiate(config):
    """{"target": dotted name, "params": arguments} -> the object, of the package or of PyTorch."""
    module, _, name = config["target"].rpartition(".")
    module = f"{PACKAGE}.{module}" if module.startswith("taming.") else module
    return getattr(importlib.import_module(module), name)(**config.get("params") or {})


def imported(*names):
    """Modules of the package; the stand-ins are gone afterwards."""
    lightning, main = types.ModuleType("pytorch_lightning"), types.ModuleType(f"{PACKAGE}.main")
    lightning.LightningModule, main.instantiate_from_config = LightningModule, instantiate
    with patch.object(transformers, "top_k_top_p_filtering", None, create=True):
        sys.modules |= {lightning.__name__: lightning, main.__name__: main}
        try:
            return [importlib.import_module(f"{PACKAGE}.taming.{name}") for name in names]
        finally:
            del sys.modules[lightning.__name__], sys.modules[main.__name__]


vqgan, cond_transformer, model, mingpt, permuter, quantize = imported(
    "models.vqgan", "models.cond_transformer", "modules.diffusionmodules.model", "modules.transformer.mingpt",
    "modules.transformer.permuter", "modules.vqvae.quantize")


def made(config, seed=0):
    """The model of a config, in evaluation mode, with weights that leave no part of it without effect."""
    torch.manual_seed(seed)
    return shaken(instantiate(config["model"]))


@torch.no_grad()
def shaken(network):
    for name, weight in network.named_parameters():
        if not weight.is_floating_point() or name.endswith(("cluster_size", "embed_avg")):
            continue
        if weight.ndim == 1 or name.endswith("pos_emb"):
            weight.add_(0.2 * torch.randn_like(weight))
        elif weight.ndim == 2:
            weight.normal_(std=0.3)
    return network.eval()
