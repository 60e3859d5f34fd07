"""Whether samples are copies of training pictures, and of which class; and the samples' files."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from tesserae.data.batches import to_bytes
from tesserae.data.codes import CodeMaps
from tesserae.data.pictures import spread
from tesserae.errors import writing
from tesserae.evaluation.intervals import Measures, resampled_medians
from tesserae.evaluation.neighbours import USUAL, Embed, Neighbours, code_overlap, nearest
from tesserae.evaluation.streams import Images, joined, of_codes
from tesserae.models.vqgan import VQGAN

BANK = 2000  # training pictures among which the nearest are searched, by default
ENOUGH = round(1 / USUAL)  # held-out pictures, at least, for the limit that a fraction of USUAL of them falls below
LONGEST = 120  # bytes of a folder's name
HELD_OUT = 512  # held-out pictures, at most, whose distances are compared with the samples'


@dataclass(frozen=True)
class Bank:
    """Training pictures among which the nearest are searched: `numbers` (M,) of `total`, ascending."""

    numbers: Tensor
    total: int

    @classmethod
    def of(cls, total: int, most: int = BANK) -> Bank:
        """At most `most` pictures of a set, evenly spread over it."""
        return cls(torch.tensor(spread(most, total)), total)

    @property
    def description(self) -> str:
        """For a figure and a protocol."""
        of = "all" if len(self.numbers) == self.total else f"{len(self.numbers)} of"
        return f"{of} {self.total} training pictures"

    def found(self, neighbours: Neighbours) -> Neighbours:
        """The same with the pictures' numbers in the training set, not in the bank."""
        return Neighbours(neighbours.distances, self.numbers[neighbours.indices])


@dataclass(frozen=True)
class Nearness:
    """Nearest training pictures of samples and of held-out pictures, by LPIPS (AlexNet).

    held_out_numbers (M,): which held-out pictures; bank: the training pictures among which they were searched.
    """

    samples: Neighbours
    held_out: Neighbours
    held_out_numbers: Tensor
    bank: Bank

    def measures(self, labels: Tensor | None, train: CodeMaps, held_out: CodeMaps) -> Measures:
        """Numbers about copies, and the fraction of samples whose nearest training picture is of the requested class.

        `near_share`: the fraction of samples nearer to a training picture than all but USUAL of the held-out pictures
        are, so USUAL is the value of new pictures. `distance`, `distance_held_out`: the medians. `bank_images`: the
        number of training pictures among which the nearest are searched.
        """
        found = Measures()
        protocol = {"features": "LPIPS (AlexNet), mirror images, too", "reference": self.bank.description,
                    "n_generated": len(self.samples.distances), "n_held_out": len(self.held_out.distances),
                    "size": "at 64 pixels of the longer side", "pixels": "float, decoded"}
        near, known = (each.distances[:, 0] for each in (self.samples, self.held_out))
        if len(known) >= ENOUGH:
            found.add_fractions({"near_share": near < torch.quantile(known.float(), USUAL)}, protocol)
        else:
            found.notes.append(f"near_share is left out: the limit below which {USUAL:.0%} of the held-out pictures "
                               f"fall needs {ENOUGH} of them, here are {len(known)} (prepare.holdout sets how many).")
        for name, distances in (("distance", near), ("distance_held_out", known)):
            found.add(name, float(distances.median()), protocol, resampled_medians(distances))
        found.add("bank_images", len(self.bank.numbers), {"reference": self.bank.description})
        if labels is not None:
            pairs = {"class_agreement": (self.samples, labels),
                     "class_agreement_held_out": (self.held_out, held_out.labels[self.held_out_numbers])}
            found.add_fractions({name: train.labels[neighbours.indices[:, 0]] == requested
                              for name, (neighbours, requested) in pairs.items()}, protocol)
        return found


def nearness(samples: Images, vqgan: VQGAN, maps: tuple[CodeMaps, CodeMaps], embed: Embed, bank: Bank,
             k: int = 1) -> Nearness:
    """Nearest training pictures of samples and of HELD_OUT held-out ones, all decoded by the VQGAN.

    maps: training and held-out set as codes; embed: `neighbours.lpips_vectors`, on the VQGAN's device. So a sample
    with a training picture's codes has distance 0, and all pictures have the VQGAN's blur.
    """
    train, held_out = maps
    numbers = torch.tensor(spread(HELD_OUT, len(held_out)))
    queries = joined(samples, of_codes(vqgan, held_out.indices[:, 0]).some(numbers))
    found = bank.found(nearest(queries, of_codes(vqgan, train.indices[:, 0]).some(bank.numbers), embed, k))
    parts = [len(samples), len(numbers)]
    pairs = zip(found.distances.split(parts), found.indices.split(parts))
    return Nearness(*(Neighbours(*pair) for pair in pairs), numbers, bank)


def overlaps(samples: Tensor, train: CodeMaps, held_out: CodeMaps, bank: Bank,
             device: torch.device | str = "cpu") -> Measures:
    """Mean over maps of the largest fraction of codes in common with a training map.

    `code_overlap` of samples (N,h,w), `code_overlap_held_out` of HELD_OUT held-out pictures. Both views of the bank's
    pictures count. device: where codes are compared.
    """
    known = train.indices[bank.numbers].flatten(0, 1).flatten(1)  # (M V, T)
    some = held_out.indices[torch.tensor(spread(HELD_OUT, len(held_out))), 0]
    found = Measures()
    for name, maps in (("code_overlap", samples), ("code_overlap_held_out", some)):
        found.add_means({name: code_overlap(maps.flatten(1).to(device), known.to(device))},
                        {"features": "codes", "reference": bank.description}, bounds=(0.0, 1.0))
    return found


def write_pictures(folder: Path, images: Iterable[Tensor], groups: Sequence[str]) -> None:
    """Images (3,H,W) in [-1,1], of any sizes, as folder/<group>/<number>.png, all or none, in place of
    the old ones.

    A group's name becomes a folder's: slashes are replaced, and a long name is cut and gets a checksum.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    counts: dict[str, int] = {}
    for image, group in zip(images, groups):
        pixels = rearrange(to_bytes(image.cpu()), "c h w -> h w c").numpy()
        name = _folder_name(group)
        path = part / name / f"{counts.get(name, 0):04d}.png"
        counts[name] = counts.get(name, 0) + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            Image.fromarray(pixels).save(path)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _folder_name(group: str) -> str:
    name = "".join(letter if letter.isprintable() and letter != "/" else "_" for letter in group).lstrip(".") or "_"
    encoded = name.encode()
    if len(encoded) <= LONGEST:
        return name
    return f"{encoded[:LONGEST - 9].decode(errors='ignore')}-{hashlib.sha256(group.encode()).hexdigest()[:8]}"
