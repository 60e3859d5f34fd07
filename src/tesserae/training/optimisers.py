"""The optimisers: Adam, as the paper, or Muon for the matrices inside the networks and Adam for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tesserae.models.quantizers import codebook_parameters
from tesserae.training.muon import Muon

if TYPE_CHECKING:  # each training depends on the code of its own network alone
    from tesserae.models.transformer import LatentTransformer
    from tesserae.models.vqgan import VQGAN
    from tesserae.params import TransformerParams, VQGANParams


class MuonAndAdam:
    """Two optimisers as one: Muon on the `hidden` weights, Adam on `others`, groups with rates.

    Both rates are of Adam's size. weight_decay is the hidden weights' alone.
    """

    def __init__(self, hidden: list[Tensor], others: list[dict], muon_lr: float, betas: tuple[float, float],
                 weight_decay: float = 0.0) -> None:
        self.muon = Muon(hidden, lr=muon_lr, weight_decay=weight_decay)
        self.adam = torch.optim.Adam(others, betas=betas, fused=True)

    @property
    def param_groups(self) -> list[dict]:
        return [*self.muon.param_groups, *self.adam.param_groups]

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adam.zero_grad()

    def step(self) -> None:
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def make_vqgan_optimiser(model: VQGAN, block: VQGANParams) -> torch.optim.Optimizer | MuonAndAdam:
    """The optimiser of E, G and Z that a block of params.yaml asks for: Adam, or Muon inside E and G."""
    betas, muon = tuple(block.betas), block.optimiser == "muon"
    hidden = hidden_convolutions(model) if muon else []
    codebook = codebook_parameters(model.quantizer)
    groups = [{"params": _without(model, hidden + codebook), "lr": block.lr}]
    if codebook:
        groups.append({"params": codebook, "lr": block.codebook_lr})
    if muon:
        return with_initial_rates(MuonAndAdam(hidden, groups, block.muon_lr, betas))
    return with_initial_rates(torch.optim.Adam(groups, betas=betas, fused=True))


def make_transformer_optimiser(model: LatentTransformer,
                               block: TransformerParams) -> torch.optim.Optimizer | MuonAndAdam:
    """The optimiser that a block of params.yaml asks for: AdamW, or Muon for the matrices inside the blocks.

    AdamW decays the matrices of linear layers, but no embeddings, norms and biases.
    """
    betas = tuple(block.betas)
    if block.optimiser == "muon":
        hidden = _weights(model.blocks, nn.Linear)
        others = [{"params": _without(model, hidden), "lr": block.lr}]
        return with_initial_rates(MuonAndAdam(hidden, others, block.muon_lr, betas, block.weight_decay))
    matrices = _weights(model, nn.Linear)
    groups = [{"params": matrices, "weight_decay": block.weight_decay},
              {"params": _without(model, matrices), "weight_decay": 0.0}]
    return with_initial_rates(torch.optim.AdamW(groups, lr=block.lr, betas=betas, fused=True))


def hidden_convolutions(model: VQGAN) -> list[Tensor]:
    """Weights of the convolutions inside E and G: not those that meet pixels, and not the 1x1 around the codebook."""
    ends = (model.encoder.conv_in.weight, model.decoder.conv_out.weight)
    inside = _weights(model.encoder, nn.Conv2d) + _weights(model.decoder, nn.Conv2d)
    return [weight for weight in inside if not any(weight is end for end in ends)]


def _weights(network: nn.Module, kind: type) -> list[Tensor]:
    return [module.weight for module in network.modules() if isinstance(module, kind)]


def _without(model: nn.Module, chosen: list[Tensor]) -> list[Tensor]:
    """The model's other parameters."""
    numbers = {id(weight) for weight in chosen}
    return [weight for weight in model.parameters() if id(weight) not in numbers]


def with_initial_rates(optimiser):
    """Let every group remember its learning rate, for `scale_rates`."""
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def scale_rates(optimiser, scale: float) -> None:
    """Set every group's learning rate to `scale` times its initial one."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * scale
