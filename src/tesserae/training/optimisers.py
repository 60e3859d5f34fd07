"""The optimisers: Adam, as the paper, or Muon for the weights inside and Adam for the rest.

Muon (Jordan et al., 2024) replaces each matrix's averaged gradient by the nearest
orthogonal matrix, so that all directions of a layer learn at the same pace. A convolution's weight counts as the
matrix (out, in * k * k).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tesserae.models.quantizers import codebook_parameters
from tesserae.models.vqgan import VQGAN
from tesserae.params import VQGANParams
from tesserae.training.muon import Muon


def hidden_convolutions(model: VQGAN) -> list[Tensor]:
    """Weights of the convolutions inside E and G: not those that meet pixels, and not the 1x1 around the codebook."""
    ends = {id(model.encoder.conv_in.weight), id(model.decoder.conv_out.weight)}
    return [module.weight for part in (model.encoder, model.decoder) for module in part.modules()
            if isinstance(module, nn.Conv2d) and id(module.weight) not in ends]


class MuonAndAdam:
    """Two optimisers as one: Muon on `hidden` weights of any shape (O,...), Adam on `others`, groups with rates.

    Both rates are of Adam's size: Muon's steps are scaled to the root mean square of Adam's. weight_decay is the
    hidden weights' alone.
    """

    def __init__(self, hidden: list[Tensor], others: list[dict], muon_lr: float, betas: tuple[float, float],
                 weight_decay: float = 0.0) -> None:
        self.hidden = hidden
        self.matrices = [weight.detach().flatten(1) for weight in hidden]  # views: a step moves the weights
        self.muon = Muon(self.matrices, lr=muon_lr, weight_decay=weight_decay)
        self.adam = torch.optim.Adam(others, betas=betas, fused=True)

    @property
    def param_groups(self) -> list[dict]:
        return [*self.muon.param_groups, *self.adam.param_groups]

    def zero_grad(self) -> None:
        self.adam.zero_grad()
        for weight in self.hidden:
            weight.grad = None

    def step(self) -> None:
        for weight, matrix in zip(self.hidden, self.matrices):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def make_optimiser(model: VQGAN, block: VQGANParams) -> torch.optim.Optimizer | MuonAndAdam:
    """The optimiser of E, G and Z that a block of params.yaml asks for. Its groups remember their full rate."""
    betas = tuple(block.betas)
    hidden = hidden_convolutions(model) if block.optimiser == "muon" else []
    codebook = codebook_parameters(model.quantizer)
    chosen = {id(weight) for weight in (*hidden, *codebook)}
    groups = [{"params": [weight for weight in model.parameters() if id(weight) not in chosen], "lr": block.lr}]
    if codebook:
        groups.append({"params": codebook, "lr": block.codebook_lr})
    if block.optimiser == "muon":
        return with_full_rates(MuonAndAdam(hidden, groups, block.muon_lr, betas))
    return with_full_rates(torch.optim.Adam(groups, betas=betas, fused=True))


def with_full_rates(optimiser):
    """Let every group remember its rate as the full one, for `set_share`."""
    for group in optimiser.param_groups:
        group["full_lr"] = group["lr"]
    return optimiser


def set_share(optimiser, share: float) -> None:
    """Set every group's rate to `share` of its full one."""
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * share
