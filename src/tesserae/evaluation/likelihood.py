"""How well a latent transformer predicts codes: nats and bits a token, where, and what the class is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.codes import CodeMaps, class_prefix
from tesserae.data.pictures import spread
from tesserae.models.transformer import LatentTransformer


@dataclass(frozen=True)
class Likelihood:
    """nll: -log p(s_i | s_<i, c) in nats, (N,h,w); hit: whether s_i was the likeliest code, (N,h,w) bool."""

    nll: Tensor
    hit: Tensor

    def summary(self) -> dict[str, float]:
        """Means over all codes: `nll` in nats and `bits` a token, `accuracy` in [0,1]."""
        nats = float(self.nll.double().mean())
        return {"nll": nats, "bits": nats_to_bits(nats), "accuracy": float(self.hit.double().mean())}


def nats_to_bits(nats: float) -> float:
    """Natural units of information in binary ones."""
    return nats / math.log(2)


@torch.no_grad()
def likelihood(model: LatentTransformer, prefix: Tensor, indices: Tensor, batch_size: int = 64) -> Likelihood:
    """Every code of every map under the model: prefix (N,P), indices (N,h,w) int64 -> on the CPU."""
    training, device = model.training, model.head.weight.device
    model.eval()
    nll, hit = [], []
    for rows in torch.arange(len(indices)).split(batch_size):
        codes = indices[rows].flatten(1).to(device)  # (b,T)
        logits = model(prefix[rows].to(device), codes).float()  # (b,T,K)
        nll.append(F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").cpu())
        hit.append((logits.argmax(-1) == codes).cpu())
    model.train(training)
    return Likelihood(torch.cat(nll).view(indices.shape), torch.cat(hit).view(indices.shape))


def maps_likelihood(model: LatentTransformer, maps: CodeMaps, conditional: bool,
                    count: int | None = None, batch_size: int = 64) -> Likelihood:
    """`likelihood` of `count` maps (None: all), evenly chosen, as they are, under their classes if conditional."""
    chosen = spread(count or len(maps), len(maps))
    labels = maps.labels[chosen] if conditional else None
    indices = maps.indices[chosen, 0].long()
    return likelihood(model, class_prefix(labels, len(indices)), indices, batch_size)


def by_class(model: LatentTransformer, maps: CodeMaps, batch_size: int = 64) -> dict[str, list[float]]:
    """Mean nats a code for the maps of each class: {"right class": [...], "wrong class": [...]}.

    Under a wrong class each map is told another one. NaN where a class has no map; with one class alone there
    is no wrong one.
    """
    classes, indices = len(maps.class_names), maps.indices[:, 0].long()
    told = {"right class": maps.labels}
    if classes > 1:
        told["wrong class"] = wrong_labels(maps.labels, classes)
    means = {}
    for name, labels in told.items():
        nll = likelihood(model, class_prefix(labels, len(maps)), indices, batch_size).nll.mean((1, 2))  # (N,)
        means[name] = [float(nll[maps.labels == label].mean()) for label in range(classes)]
    return means


def evaluate_codes(model: LatentTransformer, maps: CodeMaps, count: int, conditional: bool,
                   batch_size: int = 64) -> dict[str, float]:
    """Measures of `count` maps, evenly chosen, as they are, without mirroring.

    `nll`, `bits`, `accuracy`; with classes also `nll_wrong_class`, the same maps under another class each,
    and `class_gain`, the nats a token that knowing the right one saves.
    """
    measures = maps_likelihood(model, maps, conditional, count, batch_size).summary()
    if conditional and len(maps.class_names) > 1:
        chosen = spread(count, len(maps))
        indices = maps.indices[chosen, 0].long()
        wrong = wrong_labels(maps.labels[chosen], len(maps.class_names))
        other = likelihood(model, class_prefix(wrong, len(indices)), indices, batch_size).summary()
        measures |= {"nll_wrong_class": other["nll"], "class_gain": other["nll"] - measures["nll"]}
    return measures


def wrong_labels(labels: Tensor, classes: int) -> Tensor:
    """A wrong label for each, all wrong ones in turn: (N,) -> (N,) int64. At least two classes are needed."""
    return (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes


def unigram_nll(train: Tensor, held_out: Tensor, codebook_size: int) -> float:
    """Nats a token of held-out codes when each is predicted by how often it occurs in training, plus one.

    What a model has to beat: it knows no neighbour, no position and no class. Index tensors of any shapes.
    """
    counts = torch.bincount(train.flatten().long(), minlength=codebook_size).double() + 1
    return float(-(counts / counts.sum()).log()[held_out.flatten().long()].mean())
