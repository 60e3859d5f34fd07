"""Numbers about drawn pictures: how like real ones, of which class, and whether they are copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from tesserae.data.batches import to_bytes, to_unit
from tesserae.data.codes import CodeMaps
from tesserae.data.views import Viewed, view_of
from tesserae.errors import writing
from tesserae.evaluation.images import feature_network, frechet_distance, set_features
from tesserae.evaluation.neighbours import Neighbours, code_overlap, copying, lpips_vectors, nearest
from tesserae.models.perceptual import LPIPS
from tesserae.models.vqgan import VQGAN

AT_ONCE = 64
REFERENCE = 200  # real pictures, at most, that sets are compared with


def decoded(vqgan: VQGAN, indices: Tensor, batch_size: int = AT_ONCE) -> Iterator[Tensor]:
    """Code maps (N,h,w) -> batches of images (B,3,H,W) in [-1,1], as the VQGAN's view is looked at."""
    device, drawn = vqgan.codebook.device, view_of(vqgan.config).drawn
    for part in indices.split(batch_size):
        yield drawn(vqgan.decode(part.long().to(device))).cpu()


def real(pictures: Viewed, indices: Sequence[int], batch_size: int = AT_ONCE) -> Iterator[Tensor]:
    """Prepared pictures as batches of images (B,3,H,W) in [-1,1]."""
    for start in range(0, len(indices), batch_size):
        yield to_unit(pictures.batch(indices[start:start + batch_size]))


def spread(total: int, count: int) -> Tensor:
    """`count` places of `total`, as evenly spaced as they can be and each once: (count,) int64, ascending."""
    return torch.arange(count) * total // count


def realism(vqgan: VQGAN, drawn: Tensor, maps: CodeMaps, pictures: Viewed) -> dict[str, float]:
    """Fréchet distances to real training pictures, each of as many pictures, so that they compare.

    drawn: samples (N,3,H,W) in [-1,1]; maps and pictures: the training set, as codes and as they are, in one order.
    Of every two training pictures one is reference, REFERENCE at most; the others, as they are and as the VQGAN
    returns them, say what the distance of perfect samples would be. Keys: `<name>`, `<name>_reconstructions` and
    `<name>_real`; the name says whose features they are. {} where there are too few pictures.

    Sets come sorted by class, so what is taken of them is spread over the whole.
    """
    reference, others = torch.arange(0, len(pictures), 2), torch.arange(1, len(pictures), 2)
    reference = reference[spread(len(reference), min(REFERENCE, len(reference)))]
    count = min(len(drawn), len(others))
    if count < 2:
        return {}
    name, features = feature_network()
    others = others[spread(len(others), count)]
    known = set_features(real(pictures, reference.tolist()), features)
    made = drawn[spread(len(drawn), count)].split(AT_ONCE)
    sets = {"": made, "_real": real(pictures, others.tolist()),
            "_reconstructions": decoded(vqgan, maps.indices[others, 0])}
    return {name + ending: frechet_distance(set_features(batches, features), known)
            for ending, batches in sets.items()}


@dataclass(frozen=True)
class Nearness:
    """Nearest training pictures of samples and of held-out pictures, by LPIPS (AlexNet)."""

    samples: Neighbours
    held_out: Neighbours

    def metrics(self, labels: Tensor | None, train: CodeMaps, held_out: CodeMaps) -> dict[str, float]:
        """`copying`'s numbers, and how often the nearest training picture is of the class asked for."""
        found = copying(self.samples.distances[:, 0], self.held_out.distances[:, 0])
        if labels is not None:
            found["class_agreement"] = _agreement(self.samples, labels, train)
            found["class_agreement_held_out"] = _agreement(self.held_out, held_out.labels, train)
        return found


def nearness(vqgan: VQGAN, drawn: Tensor, train: CodeMaps, held_out: CodeMaps, k: int = 1) -> Nearness:
    """Nearest training pictures of samples (N,3,H,W) and of held-out ones, all as the VQGAN decodes them.

    So a sample that repeats a training picture's codes has distance 0, and the VQGAN's blur is on all sides.
    """
    embed = lpips_vectors(LPIPS.load("alex"))
    queries = [*drawn.split(AT_ONCE), *decoded(vqgan, held_out.indices[:, 0])]
    found = nearest(queries, decoded(vqgan, train.indices[:, 0]), embed, k)
    parts = [len(drawn), len(held_out)]
    pairs = zip(found.distances.split(parts), found.indices.split(parts))
    return Nearness(*(Neighbours(*pair) for pair in pairs))


def overlaps(samples: Tensor, train: CodeMaps, held_out: CodeMaps) -> dict[str, float]:
    """Mean over maps of the largest share of codes in common with a training map.

    `code_overlap` of samples (N,h,w), `code_overlap_held_out` of held-out pictures. Both views of training
    pictures count.
    """
    bank = train.indices.flatten(0, 1).flatten(1)  # (N V, T)
    return {"code_overlap": float(code_overlap(samples.flatten(1), bank).mean()),
            "code_overlap_held_out": float(code_overlap(held_out.indices[:, 0].flatten(1), bank).mean())}


def write_pictures(folder: Path, images: Iterable[Tensor], groups: Sequence[str]) -> None:
    """Images (3,H,W) in [-1,1], of any sizes, as folder/<group>/<number>.png: anew, all of them or none."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    counts: dict[str, int] = {}
    for image, group in zip(images, groups):
        pixels = rearrange(to_bytes(image.cpu()), "c h w -> h w c").numpy()
        name = group.replace("/", "_").lstrip(".") or "_"
        place = part / name / f"{counts.get(name, 0):04d}.png"
        counts[name] = counts.get(name, 0) + 1
        place.parent.mkdir(parents=True, exist_ok=True)
        with writing(place):
            Image.fromarray(pixels).save(place)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _agreement(found: Neighbours, labels: Tensor, train: CodeMaps) -> float:
    return float((train.labels[found.indices[:, 0]] == labels).float().mean())
