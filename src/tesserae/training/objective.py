"""Stage 1's objective: L_VQ + lambda * L_GAN, and its gradients in one pass back through the decoder.

    L_rec  = w_pix |x - x_hat| + w_p LPIPS(x, x_hat)
    L_VQ   = L_rec + w_c ||sg[E(x)] - z_q||^2 + beta ||sg[z_q] - E(x)||^2  (and further losses of some quantizers)
    lambda = ||grad_{G_L} L_rec|| / (||grad_{G_L} L_GAN|| + delta)          (arXiv 2012.09841, equation 7)

L_rec and L_GAN reach the decoder only through x_hat. So each is differentiated with respect to x_hat once; the
gradients of the last layer's weight G_L follow from those at the price of a convolution each; and one vector,
g_rec + lambda g_gan, goes back through decoder and encoder. Where the discriminator judges features of the network
that LPIPS uses, these are computed once for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserae.data.palette import NO_CLASS
from tesserae.models.discriminator import FeatureDiscriminator
from tesserae.models.perceptual import FeaturePair, feature_pair
from tesserae.models.quantizers import Quantized
from tesserae.models.vqgan import VQGAN
from tesserae.training.processes import ALONE, Group

DELTA = 1e-6
LAMBDA_MAX = 1e4
Logits = Tensor | Sequence[Tensor]  # a map of patches, or one for each head, which weigh alike


@dataclass(frozen=True)
class Weights:
    """The objective's constants; names as in params.yaml.

    pixel_loss: l1 | l2 | cross_entropy, of logits and one-hot maps, over the pixels that have a channel set.
    perceptual_fraction: LPIPS judges this fraction of each batch, its first pictures. gan_loss: none leaves D out.
    """

    pixel_loss: str = "l1"
    pixel_weight: float = 1.0
    perceptual_weight: float = 1.0
    perceptual_fraction: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    kl_weight: float = 5e-4
    gan_loss: str = "hinge"
    gan_weight: float = 0.8


def generator_loss(kind: str, fake: Logits) -> Tensor:
    """What G minimises, of D's logits on x_hat: -D (hinge) or log(1 - D), in its non-saturating form (vanilla)."""
    return _mean((-head if kind == "hinge" else F.softplus(-head)).mean() for head in _heads(fake))


def discriminator_loss(kind: str, real: Logits, fake: Logits) -> Tensor:
    """What D minimises: the hinge loss, or -(log D(x) + log(1 - D(x_hat))) of logits; halved as the reference."""
    loss = F.relu if kind == "hinge" else F.softplus
    margin = 1 if kind == "hinge" else 0
    return _mean((loss(margin - r).mean() + loss(margin + f).mean()) / 2 for r, f in zip(_heads(real), _heads(fake)))


def disc_accuracy(real: Logits, fake: Logits) -> Tensor:
    """D's accuracy in [0,1]: the fraction of logits above zero for pictures, and not above it for reconstructions."""
    return _mean(((r > 0).float().mean() + (f <= 0).float().mean()) / 2 for r, f in zip(_heads(real), _heads(fake)))


def _heads(logits: Logits) -> Sequence[Tensor]:
    return [logits] if isinstance(logits, Tensor) else logits


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def adaptive_weight(rec_grad: Tensor, gan_grad: Tensor) -> Tensor:
    """lambda of the gradients that L_rec and L_GAN give the last layer: a scalar in [0, 1e4], detached."""
    ratio = rec_grad.float().norm() / (gan_grad.float().norm() + DELTA)
    return ratio.clamp(0, LAMBDA_MAX).detach()


def reconstruction_loss(x: Tensor, x_hat: Tensor, weights: Weights, lpips: nn.Module | None,
                        group: Group = ALONE, features: FeaturePair | None = None) -> dict[str, Tensor]:
    """L_rec and its parts for x, x_hat (B,C,H,W): scalars `pixel`, `perceptual` and their sum `rec`.

    Pictures are in [-1,1]; for cross-entropy x is one-hot and x_hat logits. Their means over processes are those of
    the whole batch. features: those of LPIPS's own network for x and x_hat, where they are there already.
    """
    pixel = _pixel_loss(x, x_hat, weights.pixel_loss, group)
    parts = {"pixel": pixel, "rec": weights.pixel_weight * pixel}
    if lpips is not None and weights.perceptual_weight:
        judged = max(1, round(weights.perceptual_fraction * len(x) * group.count))  # of the whole batch
        own = -(-judged // group.count)  # as many in each process
        if features is None:
            distances = lpips(x[:own], x_hat[:own])
        else:
            distances = lpips.distance(*([layer[:own] for layer in each] for each in features))
        parts["perceptual"] = distances.mean()
        parts["rec"] = parts["rec"] + weights.perceptual_weight * parts["perceptual"]
    return parts


def _pixel_loss(x: Tensor, x_hat: Tensor, kind: str, group: Group) -> Tensor:
    if kind == "cross_entropy":
        labelled = x.any(1)  # (B,H,W)
        target = x.argmax(1).masked_fill(~labelled, NO_CLASS)
        total = F.cross_entropy(x_hat, target, ignore_index=NO_CLASS, reduction="sum")
        return total / group.mean(labelled.sum().float()).clamp_min(1)  # processes may have more of them or fewer
    difference = x - x_hat
    return difference.abs().mean() if kind == "l1" else difference.square().mean()


def quantizer_loss(quantized: Quantized, weights: Weights) -> tuple[Tensor, dict[str, Tensor]]:
    """What is minimised beside L_rec and L_GAN, a scalar, and its unweighted terms by name."""
    names = ("codebook", "commitment", "entropy", "kl")
    terms = {name: getattr(quantized, f"{name}_loss") for name in names}
    terms = {name: term for name, term in terms.items() if term is not None}
    return sum(getattr(weights, f"{name}_weight") * term for name, term in terms.items()), terms


def generator_backward(model: VQGAN, x: Tensor, weights: Weights, lpips: nn.Module | None,
                       discriminator: nn.Module | None, group: Group = ALONE) -> tuple[dict[str, Tensor], dict]:
    """Fill the gradients of E, G and Z for images x (B,3,H,W) in [-1,1]; `discriminator` None before it starts.

    group: the processes whose parts of a batch x is one of; lambda is that of the whole batch. Returns the terms
    (scalars, detached), and what later steps need: `z_hat`, `indices`, `x_hat`, `real`, what D is to judge of x
    (images, or features), and `fake`, D's logits on x_hat with a graph to D's own weights.
    """
    z_hat = model.latents(x)
    quantized = model.quantizer(z_hat)
    x_hat = model.decode_latents(quantized.z_q)
    leaf = x_hat.detach().to(torch.promote_types(x_hat.dtype, torch.float32)).requires_grad_()
    real, shown, features = x, leaf, None
    if isinstance(discriminator, FeatureDiscriminator):
        real, shown = features = feature_pair(discriminator.backbone, x, leaf)

    terms = reconstruction_loss(x, leaf, weights, lpips, group, features)
    gradient, = torch.autograd.grad(terms["rec"], leaf, retain_graph=features is not None)
    made = {"z_hat": z_hat.detach(), "indices": quantized.indices, "x_hat": x_hat.detach()}
    if discriminator is not None:
        made |= {"real": real, "fake": discriminator(shown)}
        terms["gan"] = generator_loss(weights.gan_loss, made["fake"])
        gan_gradient, = torch.autograd.grad(terms["gan"], leaf, retain_graph=True)
        last = model.decoder.conv_out.weight
        rec_last, gan_last = group.mean(torch.stack([
            torch.autograd.grad(x_hat, last, g.to(x_hat.dtype), retain_graph=True)[0]
            for g in (gradient, gan_gradient)]))
        terms["lambda"] = weights.gan_weight * adaptive_weight(rec_last, gan_last)
        gradient = gradient + terms["lambda"] * gan_gradient

    vq, parts = quantizer_loss(quantized, weights)
    terms |= parts
    roots = [(x_hat, gradient.to(x_hat.dtype))]
    if vq.requires_grad:
        roots.append((vq, None))
    torch.autograd.backward(*zip(*roots))
    return {name: value.detach() for name, value in terms.items()}, made


def discriminator_backward(discriminator: nn.Module, real: Tensor | list[Tensor], fake: Logits,
                           kind: str) -> dict[str, Tensor]:
    """Fill the gradients of D from `real` and `fake` of `generator_backward`. Returns detached scalars."""
    judged = discriminator(real)
    loss = discriminator_loss(kind, judged, fake)
    parameters = list(discriminator.parameters())
    for parameter, found in zip(parameters, torch.autograd.grad(loss, parameters)):
        gradient = found.contiguous()  # as the weights are, which fused optimisers ask for
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    with torch.no_grad():
        means = {name: _mean(head.mean() for head in _heads(logits))
                 for name, logits in (("logits_real", judged), ("logits_fake", fake))}
        return {"disc": loss.detach(), "disc_accuracy": disc_accuracy(judged, fake), **means}
