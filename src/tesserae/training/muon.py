"""Muon: momentum whose matrix is made orthogonal, so that all directions of a layer learn at the same pace.

Jordan et al. (2024). `torch.optim.Muon` is the same in bf16 alone, which processors without bf16 units multiply a
hundred times more slowly; here it is fp32 everywhere, at a fraction of the products: see `orthogonal`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic, steepest at zero
ROUNDS = 5
AT_ONCE = 32  # matrices: bounds the memory beside them


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of U S V^T, nearly: matrices (R,C) of any sizes -> the same, singular values between 0.7 and 1.2.

    Newton-Schulz: X <- (a + b G + c G^2) X with G = X X^T. G itself becomes P G P for P = a + b G + c G^2, so
    the rounds need products of the short side alone, and the long side is met twice, not ten times. They are made
    for all matrices of one short side together, whatever their long ones.
    """
    wide = [matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix for matrix in matrices]
    found: list[Tensor] = [None] * len(matrices)
    for _, alike in groupby(sorted(range(len(wide)), key=lambda n: len(wide[n])), key=lambda n: len(wide[n])):
        places = list(alike)
        for start in range(0, len(places), AT_ONCE):
            some = places[start:start + AT_ONCE]
            for place, factor in zip(some, _factors(torch.stack([wide[n] @ wide[n].mT for n in some]))):
                x = factor @ wide[place]
                found[place] = x.mT if wide[place] is not matrices[place] else x
    return found


def _factors(gram: Tensor) -> Tensor:
    """What X is multiplied with, for X X^T of each: (N,r,r) -> (N,r,r)."""
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(1e-14).sqrt()[:, None, None]  # of X, Frobenius'
    gram = gram / norm.square()
    a, b, c = COEFFICIENTS
    product = 1 / norm
    for left in reversed(range(ROUNDS)):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=1, dim2=2).add_(a)
        product = step * product if left == ROUNDS - 1 else step @ product
        gram = step @ gram @ step if left else gram
    return product


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with steps of the size of Adam's (Liu et al., arXiv 2502.16982).

    params: matrices (R,C); lr and weight_decay as AdamW's.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step on every matrix that has a gradient."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            for matrix, update in zip(matrices, orthogonal([self._pushed(p, group["momentum"]) for p in matrices])):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(update, alpha=group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _pushed(self, matrix: Tensor, momentum: float) -> Tensor:
        buffer = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix, dtype=torch.float32))
        gradient = matrix.grad.float()
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)
