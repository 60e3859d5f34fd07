"""Muon: momentum whose matrix is made orthogonal, so that all directions of a layer learn at the same pace.

Jordan et al. (2024). `torch.optim.Muon` is the same in bf16 alone, which processors without bf16 units multiply a
hundred times more slowly; here it is fp32 everywhere, at a fraction of the products: see `orthogonal`.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, steepest at zero
ROUNDS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T of U S V^T, nearly: matrices (N,R,C) -> the same, singular values between 0.7 and 1.2.

    Newton-Schulz: X <- (a + b G + c G^2) X with G = X X^T. G itself becomes P G P for P = a + b G + c G^2, so
    the rounds need products of the short side alone, and the long side is met twice, not ten times.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = COEFFICIENTS
    gram = x @ x.mT  # (N,r,r)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = None
    for left in reversed(range(ROUNDS)):
        step = a * identity + b * gram + c * (gram @ gram)
        product = step if product is None else step @ product
        gram = step @ gram @ step if left else gram
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with steps of the size of Adam's (Liu et al., arXiv 2502.16982).

    params: matrices (R,C); lr and weight_decay as AdamW's. Matrices of one shape are worked on together.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step on every matrix that has a gradient."""
        for group in self.param_groups:
            moved = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: tuple(p.shape))
            for shape, alike in groupby(moved, key=lambda p: tuple(p.shape)):
                matrices = list(alike)
                updates = orthogonal(torch.stack([self._pushed(p, group["momentum"]) for p in matrices]))
                for matrix, update in zip(matrices, updates):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(update, alpha=group["lr"] * 0.2 * math.sqrt(max(shape)))

    def _pushed(self, matrix: Tensor, momentum: float) -> Tensor:
        buffer = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix, dtype=torch.float32))
        gradient = matrix.grad.float()
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)
