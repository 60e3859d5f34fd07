"""Stage 1's objective: L_VQ + lambda * L_GAN, and its gradients in one walk through the decoder.

    L_rec  = w_pix |x - x_hat| + w_p LPIPS(x, x_hat)
    L_VQ   = L_rec + w_c ||sg[E(x)] - z_q||^2 + beta ||sg[z_q] - E(x)||^2
    lambda = ||grad_{G_L} L_rec|| / (||grad_{G_L} L_GAN|| + delta)          (arXiv 2012.09841, equation 7)

L_rec and L_GAN reach the decoder only through x_hat. So each is differentiated with respect to x_hat once; the
gradients of the last layer's weight G_L follow from those at the price of a convolution each; and one vector,
g_rec + lambda g_gan, goes back through decoder and encoder. LPIPS and the discriminator are walked once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserae.models.vqgan import VQGAN

DELTA = 1e-6
LAMBDA_MAX = 1e4


@dataclass(frozen=True)
class Weights:
    """The objective's constants; names as in params.yaml.

    pixel_loss: l1 | l2 | cross_entropy, of logits and one-hot maps. perceptual_share: the first so many of each
    batch's pictures, which come in random order, are judged by LPIPS. gan_loss: hinge | vanilla | none.
    """

    pixel_loss: str = "l1"
    pixel_weight: float = 1.0
    perceptual_weight: float = 1.0
    perceptual_share: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    gan_loss: str = "hinge"
    gan_weight: float = 0.8


def generator_loss(kind: str, fake: Tensor) -> Tensor:
    """What G minimises, of D's logits on x_hat: -D (hinge) or log(1 - D), in its non-saturating form (vanilla)."""
    return -fake.mean() if kind == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What D minimises: the hinge loss, or -(log D(x) + log(1 - D(x_hat))) of logits; halved as the reference."""
    if kind == "hinge":
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def adaptive_weight(rec_grad: Tensor, gan_grad: Tensor) -> Tensor:
    """lambda of the gradients that L_rec and L_GAN give the last layer: a scalar in [0, 1e4], detached."""
    ratio = rec_grad.float().norm() / (gan_grad.float().norm() + DELTA)
    return ratio.clamp(0, LAMBDA_MAX).detach()


def reconstruction_loss(x: Tensor, x_hat: Tensor, weights: Weights, lpips: nn.Module | None) -> dict[str, Tensor]:
    """L_rec and its parts for x, x_hat (B,C,H,W): scalars `pixel`, `perceptual` and their sum `rec`.

    Pictures are in [-1,1]; for cross-entropy x is one-hot and x_hat logits.
    """
    pixel = _pixel_loss(x, x_hat, weights.pixel_loss)
    parts = {"pixel": pixel, "rec": weights.pixel_weight * pixel}
    if lpips is not None and weights.perceptual_weight:
        judged = max(1, round(weights.perceptual_share * len(x)))
        parts["perceptual"] = lpips(x[:judged], x_hat[:judged]).mean()
        parts["rec"] = parts["rec"] + weights.perceptual_weight * parts["perceptual"]
    return parts


def _pixel_loss(x: Tensor, x_hat: Tensor, kind: str) -> Tensor:
    if kind == "cross_entropy":
        return F.cross_entropy(x_hat, x.argmax(1))
    difference = x - x_hat
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def generator_backward(model: VQGAN, x: Tensor, weights: Weights, lpips: nn.Module | None,
                       discriminator: nn.Module | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Fill the gradients of E, G and Z for images x (B,3,H,W) in [-1,1]; `discriminator` None before it starts.

    Returns the terms (scalars, detached), and what later steps need: `z_hat`, `indices`, `x_hat`, and `fake`, D's
    logits with a graph to D's own weights.
    """
    z_hat = model.latents(x)
    quantized = model.quantizer(z_hat)
    x_hat = model.decode_latents(quantized.z_q)
    leaf = x_hat.detach().to(torch.promote_types(x_hat.dtype, torch.float32)).requires_grad_()

    terms = reconstruction_loss(x, leaf, weights, lpips)
    gradient, = torch.autograd.grad(terms["rec"], leaf)
    made = {"z_hat": z_hat.detach(), "indices": quantized.indices, "x_hat": x_hat.detach()}
    if discriminator is not None:
        made["fake"] = discriminator(leaf)
        terms["gan"] = generator_loss(weights.gan_loss, made["fake"])
        gan_gradient, = torch.autograd.grad(terms["gan"], leaf, retain_graph=True)
        last = model.decoder.conv_out.weight
        rec_last, gan_last = (torch.autograd.grad(x_hat, last, g.to(x_hat.dtype), retain_graph=True)[0]
                              for g in (gradient, gan_gradient))
        terms["lambda"] = weights.gan_weight * adaptive_weight(rec_last, gan_last)
        gradient = gradient + terms["lambda"] * gan_gradient

    vq = (weights.codebook_weight * quantized.codebook_loss + weights.commitment_weight * quantized.commitment_loss)
    terms |= {"codebook": quantized.codebook_loss, "commitment": quantized.commitment_loss}
    roots = [(x_hat, gradient.to(x_hat.dtype))]
    if vq.requires_grad:
        roots.append((vq, None))
    torch.autograd.backward(*zip(*roots))
    return {name: value.detach() for name, value in terms.items()}, made


def discriminator_backward(discriminator: nn.Module, x: Tensor, fake: Tensor, kind: str) -> dict[str, Tensor]:
    """Fill the gradients of D for real images x, reusing its logits `fake` on x_hat. Returns detached scalars."""
    real = discriminator(x)
    loss = discriminator_loss(kind, real, fake)
    parameters = list(discriminator.parameters())
    for parameter, found in zip(parameters, torch.autograd.grad(loss, parameters)):
        gradient = found.contiguous()  # as the weights are, which fused optimisers ask for
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    return {"disc": loss.detach(), "logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
