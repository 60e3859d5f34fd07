"""How well a latent transformer predicts codes: nats and bits a token, by position, and the gain of its condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.conditions import Conditioning, Label, conditions_of, make_prefix
from tesserae.data.paired import Chosen, PairedMaps
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import evaluating
from tesserae.sampling.autoregressive import SampleOptions, check_range
from tesserae.sampling.orderings import from_sequences, to_sequences
from tesserae.sampling.sliding_window import Prefixes, Windows, blocks_of, check_window

OVERFITTING = 0.02  # held-out nats that may be lost after the best step before it is called overfitting
LOGITS = 1 << 26  # elements at once: codes of a map x codebook size x maps


@dataclass(frozen=True)
class Likelihood:
    """nll: -log p(s_i | s_<i, c) in nats, (N,h,w); hit: whether s_i was the likeliest code, (N,h,w) bool."""

    nll: Tensor
    hit: Tensor

    def summary(self) -> dict[str, float]:
        """Means over all codes: `nll` in nats and `bits` a token, `accuracy` in [0,1]."""
        nats = float(self.nll.double().mean())
        return {"nll": nats, "bits": nats_to_bits(nats), "accuracy": float(self.hit.double().mean())}

    def each(self) -> dict[str, Tensor]:
        """`nll`, `bits` and `accuracy` of each map, (N,), for intervals."""
        nats = self.nll.double().mean((1, 2))
        return {"nll": nats, "bits": nats / math.log(2), "accuracy": self.hit.double().mean((1, 2))}


def nats_to_bits(nats: float) -> float:
    """Natural units of information in binary ones."""
    return nats / math.log(2)


@torch.no_grad()
def likelihood(model: LatentTransformer, prefix: Tensor, indices: Tensor, batch_size: int = 64) -> Likelihood:
    """Every code of every map under the model, in its own order: prefix (N,P), indices (N,h,w) -> on the CPU.

    `batch_size` maps at once, or as many as have LOGITS logits.
    """
    device, order = model.device, model.config.order
    rows_at_once = max(1, LOGITS // (indices[0].numel() * model.config.codebook_size))
    nll, hit = [], []
    with evaluating(model):
        for rows in torch.arange(len(indices)).split(min(batch_size, rows_at_once)):
            codes = to_sequences(indices[rows], order).to(device)  # (b,T)
            logits = model(prefix[rows].to(device), codes).float()  # (b,T,K)
            nll.append(F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").cpu())
            hit.append((logits.argmax(-1) == codes).cpu())
    return Likelihood(*(from_sequences(torch.cat(part), order, indices.shape[1:]) for part in (nll, hit)))


def conditional_likelihood(model: LatentTransformer, conditioning: Conditioning, indices: Tensor,
                           batch_size: int = 64, find: Callable[..., Likelihood] = likelihood) -> Likelihood:
    """`likelihood` of windows (N,h,w) given their conditions; `find` computes it."""
    return find(model, make_prefix(conditions_of(model.config.conditions), conditioning), indices, batch_size)


def windows_likelihood(model: LatentTransformer, data: PairedMaps, count: int | None = None,
                       batch_size: int = 64) -> Likelihood:
    """`likelihood` of a window of each of `count` pictures (None: all), as they are, given their own conditions."""
    chosen = data.some(count or len(data))
    return conditional_likelihood(model, data.conditioning(chosen), data.codes(chosen), batch_size)


def by_class(model: LatentTransformer, data: PairedMaps, batch_size: int = 64) -> dict[str, list[float]]:
    """Mean nats a code for the pictures of each class: {"right class": [...], "wrong class": [...]}.

    Under a wrong class each picture is given another one. NaN where a class has no picture; with one class alone
    there is no wrong one; {} for a model without that condition.
    """
    if not knows_class(model):
        return {}
    labels, classes = data.maps.labels, len(data.maps.class_names)
    chosen = data.some(len(data))
    labels, own, indices = labels[chosen.pictures], data.conditioning(chosen), data.codes(chosen)
    given = {"right class": own}
    if classes > 1:
        given["wrong class"] = replace(own, labels=wrong_labels(labels, classes))
    means = {}
    for name, conditioning in given.items():
        nll = conditional_likelihood(model, conditioning, indices, batch_size).nll.mean((1, 2))  # (N,)
        means[name] = [float(nll[labels == label].mean()) for label in range(classes)]
    return means


def evaluate_codes(model: LatentTransformer, data: PairedMaps, count: int, batch_size: int = 64,
                   find: Callable[..., Likelihood] = likelihood) -> dict[str, float]:
    """Means of `codes_each` over a window of each of `count` pictures."""
    return {name: float(values.mean()) for name, values in codes_each(model, data, count, batch_size, find).items()}


def codes_each(model: LatentTransformer, data: PairedMaps, count: int, batch_size: int = 64,
               find: Callable[..., Likelihood] = likelihood) -> dict[str, Tensor]:
    """Measures of a window of each of `count` pictures, always the same ones, without mirroring: (count,) each.

    `nll`, `bits`, `accuracy`. Of a model with a condition also `nll_wrong`, the same windows under another
    picture's condition, `gain` = nll_wrong - nll in nats a code and `gain_bits`. Of one with the class as a condition
    `nll_wrong_class`, another class alone, and `class_gain`. find: computes the likelihood,
    for processes that share the work.
    """
    chosen = data.some(count)
    own, indices = data.conditioning(chosen), data.codes(chosen)
    measures = conditional_likelihood(model, own, indices, batch_size, find).each()
    nll, classes = measures["nll"], len(data.maps.class_names)
    if knows_class(model) and classes > 1:
        wrong = replace(own, labels=wrong_labels(own.labels, classes))
        other = conditional_likelihood(model, wrong, indices, batch_size, find).each()["nll"]
        measures |= {"nll_wrong_class": other, "class_gain": other - nll}
    if data.others and len(chosen.pictures) > 1:
        another = data.conditioning(chosen, by=others_of(chosen))
        other = conditional_likelihood(model, another, indices, batch_size, find).each()["nll"]
    elif "nll_wrong_class" not in measures:
        return measures
    return measures | {"nll_wrong": other, "gain": other - nll, "gain_bits": (other - nll) / math.log(2)}


def others_of(chosen: Chosen) -> Tensor:
    """Another picture for each, half the set away, (B,): sets are sorted by class, so mostly of another one."""
    return chosen.pictures.roll(max(1, len(chosen.pictures) // 2))


def knows_class(model: LatentTransformer) -> bool:
    """Whether the class is among the model's conditions."""
    return any(isinstance(condition, Label) for condition in conditions_of(model.config.conditions))


def wrong_labels(labels: Tensor, classes: int) -> Tensor:
    """A wrong label for each, all wrong ones in turn: (N,) -> (N,) int64. At least two classes are needed."""
    return (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes


def unigram_nll(train: Tensor, held_out: Tensor, codebook_size: int) -> float:
    """Nats a token of held-out codes when each is predicted by how often it occurs in training, plus one.

    What a model has to beat: it knows no neighbour, no position and no class. Index tensors of any shapes.
    """
    counts = torch.bincount(train.flatten().long(), minlength=codebook_size).double() + 1
    return float(-(counts / counts.sum()).log()[held_out.flatten().long()].mean())


@torch.no_grad()
def window_nll(model: LatentTransformer, prefixes: Prefixes, maps: Tensor, window: tuple[int, int],
               batch_size: int = 64) -> Tensor:
    """-log p of each code of given maps, each in the window that would have sampled it: (N,H,W) -> (N,H,W) nats.

    maps int64; prefixes and window as for `sample_map`, map n is sample n. The map's own codes are the context
    (teacher forcing). So maps that were sampled with different strides are compared under one definition. Raises
    TesseraeError for what does not fit.
    """
    SampleOptions(batch_size=batch_size).check()
    check_window(model, maps.shape[1:], window)
    check_range("the maps' codes", maps, model.config.codebook_size)
    windows = Windows(model, prefixes, maps.to(model.device).contiguous(), window)
    nll = torch.empty(windows.flat.shape, device=model.device)
    with evaluating(model):
        for batch in windows.batches(blocks_of(maps.shape[1:], window), batch_size):
            codes = windows.flat[batch.positions[:, :batch.end]]  # (n,t)
            logits = model(batch.prefix, codes)[:, batch.start:].float()  # (n,t-start,K)
            own = F.cross_entropy(logits.mT, codes[:, batch.start:], reduction="none")
            nll[batch.positions[:, batch.start:batch.end]] = own
    return nll.view(maps.shape).to(maps.device)


def likelihood_verdict(best: Mapping[str, float], last: Mapping[str, float], unigram: float) -> list[str]:
    """What the held-out likelihood of a training says, in sentences.

    best, last: the measures of the best and of the last evaluation, with `step` and `nll`. unigram: nats a code by
    how often codes occur alone.
    """
    nats = best["nll"]
    sentences = [f"The best model, of step {best['step']}, needs {nats:.3f} nats ({nats_to_bits(nats):.2f} bits) for "
                 f"a held-out code; how often codes occur alone would need {unigram:.3f}."]
    if last["nll"] - nats > OVERFITTING:
        sentences.append(f"Overfitting: by step {last['step']} held-out codes need {last['nll']:.3f} nats again, so "
                         "the later models remember pictures rather than learn how codes compose; the best one is "
                         "kept. More pictures, more dropout or fewer steps would help.")
    else:
        sentences.append("No overfitting: what held-out codes need fell, or stayed, to the end.")
    if "gain_bits" in best:
        sentences.append(f"Its own condition, in place of another picture's, saves {best['gain_bits']:.2f} bits a "
                         "code.")
    if "class_gain" in best:
        sentences.append(f"The right class, in place of a wrong one, saves {best['class_gain']:.3f} nats a code.")
    return sentences
