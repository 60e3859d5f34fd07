"""How similar samples and reconstructions are to real pictures, as sets: numbers with protocol and interval."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tesserae.data.codes import CodeMaps
from tesserae.data.pictures import spread
from tesserae.data.views import Viewed
from tesserae.evaluation.distributions import (
    NEAREST,
    SetStatistics,
    frechet,
    frechet_resampled,
    inception_score,
    kernel_distance,
    precision_recall,
)
from tesserae.evaluation.features import COMPARABLE, FeatureNetwork, set_features
from tesserae.evaluation.intervals import Measures
from tesserae.evaluation.streams import Images, joined, of_codes, of_pictures
from tesserae.models.vqgan import VQGAN

SPLITS, FOR_SPLITS = 10, 5000  # parts of an Inception score, where there are so many pictures
KEPT = 8  # files of reference statistics that are kept, the newest
PIXELS = "uint8 RGB, rounded in memory; no file in between"


@dataclass(frozen=True)
class RealSet:
    """Prepared pictures that sets are compared with: `count` of a split at most, evenly spread over it."""

    pictures: Viewed
    split: str
    count: int
    cache: Path | None = None

    @property
    def numbers(self) -> list[int]:
        """Which pictures of the split."""
        return spread(self.count, len(self.pictures))

    @property
    def description(self) -> str:
        """For a protocol."""
        return f"{self.split} split, {len(self.numbers)} of {len(self.pictures)} pictures, evenly spread"

    @property
    def size(self) -> str:
        """For a protocol."""
        return f"{self.pictures.size} x {self.pictures.size} pixels, as prepared, not cropped"

    def statistics(self, network: FeatureNetwork) -> SetStatistics:
        """Its features and what follows from them, from `cache` where they are there; two pictures at least."""
        path = None if self.cache is None else self.cache / f"{self._key(network)}.safetensors"
        found = None if path is None else _read(path)
        if found is None:
            features, _ = set_features(of_pictures(self.pictures, network.device).some(self.numbers), network)
            found = SetStatistics.of(features)
            if path is not None:
                _write(path, found)
        return found.to(found.mean.device if network.device.type == "mps" else network.device)

    def _key(self, network: FeatureNetwork) -> str:
        view = self.pictures.view
        key = (network.name, network.weights, network.protocol, self.pictures.pictures.fingerprint_of(view.column),
                 view.kind, view.column, self.split, self.pictures.size, self.numbers)
        return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def sample_realism(vqgan: VQGAN, samples: Images, reference: RealSet, maps: tuple[CodeMaps, CodeMaps],
                   unseen: Viewed, network: FeatureNetwork) -> Measures:
    """How similar samples are to training pictures, and the same of other real pictures and of reconstructions.

    reference: of the training pictures; maps: training and held-out set as codes; unseen: the held-out pictures, all
    in one order each. Numbers are named by `network.named`: of the samples Fréchet and kernel distance, precision,
    recall and, with Inception, its score; `<Fréchet>_real` of real pictures that are not in the reference, and
    `<Fréchet>_reconstructions` of those as the VQGAN returns them, of as many as there are samples, where there are
    as many. What needs more pictures than there are is left out, with a note.
    """
    train, held_out = maps
    known = set(reference.numbers)
    rest = torch.tensor([n for n in range(len(reference.pictures)) if n not in known], dtype=torch.int64)
    real = joined(of_pictures(unseen, network.device), of_pictures(reference.pictures, network.device).some(rest))
    codes = joined(of_codes(vqgan, held_out.indices[:, 0]), of_codes(vqgan, train.indices[:, 0]).some(rest))
    floor = _floor_numbers(len(samples), len(unseen), len(rest))
    source = "validation split" + (" and training pictures outside the reference" if len(floor) > len(unseen) else "")
    found = Measures()
    if len(reference.numbers) < 2 or len(samples) < 2:
        found.notes.append(f"Distances between samples and training pictures are left out: they need two of each, "
                           f"here are {len(samples)} samples and {len(reference.numbers)} training pictures.")
        return found
    statistics = reference.statistics(network)
    protocol = _protocol(network, reference, {"generated": "samples of the transformer, decoded"})
    found.join(set_measures(samples, statistics, network, protocol))
    if len(floor) > 1:
        for ending, images, words in (("real", real, f"real pictures, {source}"),
                                      ("reconstructions", codes, f"reconstructions of the {source}")):
            name = network.named("frechet", min(len(samples), len(floor), len(statistics)))
            _add_frechet(found, f"{name}_{ending}", images.some(floor), statistics, network,
                         protocol | {"generated": words})
    else:
        found.notes.append("The distances of other real pictures and of reconstructions are left out: they need two "
                           f"pictures outside the reference, here are {len(floor)} (prepare.holdout sets how many).")
    return found


def reconstruction_realism(vqgan: VQGAN, held_out: RealSet, network: FeatureNetwork) -> Measures:
    """The Fréchet distance of reconstructions to the very pictures: `rfid`, or `frechet_<name>_reconstructions`.

    With fewer than two pictures there is a note in its place.
    """
    found, device = Measures(), vqgan.codebook.device
    if len(held_out.numbers) < 2:
        found.notes.append("The distance between reconstructions and pictures as sets is left out: it needs two "
                           "held-out pictures, here is one (prepare.holdout sets how many).")
        return found
    view = held_out.pictures.view

    @torch.no_grad()
    def make(numbers: torch.Tensor) -> torch.Tensor:
        return view.rendered(vqgan.reconstruct(held_out.pictures.network_input(numbers.tolist()).to(device)))

    images = Images(len(held_out.pictures), make).some(held_out.numbers)
    name = network.named("frechet_reconstructions", len(held_out.numbers))
    _add_frechet(found, name, images, held_out.statistics(network), network,
                 _protocol(network, held_out, {"generated": "reconstructions of the same pictures"}))
    return found


def set_measures(images: Images, reference: SetStatistics, network: FeatureNetwork,
                 protocol: Mapping[str, Any]) -> Measures:
    """Fréchet and kernel distance, precision, recall and, where the network has classes, the Inception score."""
    found = Measures()
    features, logits = set_features(images, network)
    protocol = _counted(protocol, len(images), len(reference))
    fewer = min(len(images), len(reference))
    _frechet_of(found, network.named("frechet", fewer), features, reference, protocol)
    value, resampled = kernel_distance(features, reference.features)
    found.add(network.named("kernel", fewer), value, protocol | {
        "estimator": "unbiased, all pairs, kernel (x.y / D + 1)^3", "resampled": "the generated pictures"}, resampled)
    if fewer > NEAREST:
        sides = {"precision": "the generated pictures", "recall": "the reference's pictures"}
        for measure, each in zip(sides, precision_recall(features, reference.features)):
            found.add_fractions({network.named(measure, fewer): each},
                             protocol | {"k": NEAREST, "resampled": sides[measure]})
    else:
        found.notes.append(f"Precision and recall are left out: they need more than {NEAREST} pictures on either "
                           f"side, here are {len(images)} and {len(reference)}.")
    if logits is not None:
        splits = SPLITS if len(logits) >= FOR_SPLITS else 1
        value, resampled = inception_score(logits, splits)
        own = {key: words for key, words in protocol.items() if key not in ("reference", "n_reference")}
        found.add(network.named("score", fewer), value,
                  own | {"splits": splits, "resampled": "the generated pictures"}, resampled,
                  (1.0, float(logits.shape[1])))
    return found


def _floor_numbers(wanted: int, unseen: int, rest: int) -> torch.Tensor:
    """Which pictures of the held-out ones and then the rest are taken: spread, for sets come sorted by class."""
    first = torch.tensor(spread(min(wanted, unseen), unseen), dtype=torch.int64)
    others = torch.tensor(spread(max(0, min(wanted - unseen, rest)), rest), dtype=torch.int64)
    return torch.cat([first, others + unseen])


def _add_frechet(found: Measures, name: str, images: Images, reference: SetStatistics, network: FeatureNetwork,
                 protocol: Mapping[str, Any]) -> None:
    features, _ = set_features(images, network)
    _frechet_of(found, name, features, reference, _counted(protocol, len(images), len(reference)))


def _frechet_of(found: Measures, name: str, features: torch.Tensor, reference: SetStatistics,
                protocol: Mapping[str, Any]) -> None:
    features = features.to(reference.mean.device)
    found.add(name, frechet(SetStatistics.of(features), reference),
              protocol | {"resampled": "the generated pictures"}, frechet_resampled(features, reference),
              (0.0, float("inf")))


def _protocol(network: FeatureNetwork, reference: RealSet, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"features": network.protocol, "reference": reference.description, "size": reference.size,
            "pixels": PIXELS, **more}


def _counted(protocol: Mapping[str, Any], generated: int, reference: int) -> dict[str, Any]:
    few = min(generated, reference) < COMPARABLE
    note = {"note": f"fewer than {COMPARABLE:,} pictures: compare only with numbers of as many"} if few else {}
    return {**protocol, "n_generated": generated, "n_reference": reference, **note}


def _read(path: Path) -> SetStatistics | None:
    """Read the cache; None where it is missing or damaged."""
    try:
        found = SetStatistics(**load_file(path))
    except (OSError, SafetensorError, TypeError, ValueError):
        return None
    os.utime(path)
    return found


def _write(path: Path, found: SetStatistics) -> None:
    """Write the cache; where that fails, print why and go on."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: getattr(found, name).cpu().contiguous() for name in ("features", "mean", "root")}, aside)
        os.replace(aside, path)
        for old in sorted(path.parent.glob("*.safetensors"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            with suppress(FileNotFoundError):  # another stage may have removed it
                old.unlink()
    except (OSError, SafetensorError) as error:
        print(f"{path.parent.name}/ cannot be written ({error}), so every stage computes the features of real "
              "pictures again; check the disk and its permissions to save that time.")
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
