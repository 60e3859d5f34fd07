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
        numbers = list(alike)
        for start in range(0, len(numbers), AT_ONCE):
            chosen = numbers[start:start + AT_ONCE]
            factors = _factors(torch.stack([wide[n] @ wide[n].mT for n in chosen]))
            for n, factor in zip(chosen, factors):
                x = factor @ wide[n]
                found[n] = x.mT if wide[n] is not matrices[n] else x
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

    params: weights (R,...), of which a convolution's counts as the matrix (out, in k k); lr and weight_decay as
    AdamW's.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Take one step on every weight that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            updates = orthogonal([self._averaged(weight, group["momentum"]) for weight in weights])
            for weight, update in zip(weights, updates):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                size = 0.2 * math.sqrt(max(update.shape))  # a root mean square of 0.2, as Adam's steps have
                weight.sub_(update.reshape(weight.shape), alpha=group["lr"] * size)

    def _averaged(self, weight: Tensor, momentum: float) -> Tensor:
        """The gradient with momentum, as a matrix in fp32."""
        gradient = weight.grad.flatten(1).float()
        buffer = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)
