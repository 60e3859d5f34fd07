"""Muon: momentum whose matrix is made orthogonal, so that all directions of a layer learn at the same pace.

Jordan et al. (2024). `torch.optim.Muon` is the same in bf16 alone, which processors without bf16 units multiply a
hundred times more slowly, and it takes no convolutions; here it is fp32 everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, steepest at zero
ROUNDS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of U S V^T, nearly: a matrix (R,C) -> the same shape, singular values between 0.7 and 1.2.

    Newton-Schulz: X <- (a + b G + c G^2) X with G = X X^T.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with steps of the size of Adam's (Liu et al., arXiv 2502.16982).

    params: weights (R,...), of which a convolution's counts as the matrix (out, in k k); lr and weight_decay as
    AdamW's.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Take one step on every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.flatten(1).float()  # a matrix
                buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = orthogonal(gradient.lerp(buffer, group["momentum"]))
                size = 0.2 * math.sqrt(max(update.shape))  # a root mean square of 0.2, as Adam's steps have
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update.reshape(weight.shape), alpha=group["lr"] * size)
