"""What is timed: the cases of the speed suite, their sizes and their rows.

This module needs no torch, so that the process that only takes turns and prints stays light.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SAME, DEFAULT, STRIDE = MODES = ("same", "default", "stride")  # rows of a case: modes of our side
TRAINING = ("vqgan", "transformer")  # kinds

_SMALL_VQGAN = {"image_size": 64, "channels": 32, "channel_mult": [1, 1, 2, 4], "res_blocks": 2, "z_channels": 256,
                "codebook_size": 1024, "codebook_dim": 256, "disc_channels": 64, "settings": "params.yaml"}
_PAPER_VQGAN = {**_SMALL_VQGAN, "image_size": 256, "channels": 128, "channel_mult": [1, 1, 2, 2, 4],
                "settings": "presets/paper-f16-256.yaml"}
_QUICK_VQGAN = {"image_size": 32, "channels": 32, "channel_mult": [1, 1], "res_blocks": 1, "z_channels": 8,
                "codebook_size": 16, "codebook_dim": 8, "disc_channels": 8,
                "settings": "params.yaml"}
_SMALL_GPT = {"codebook_size": 1024, "classes": 10, "n_layer": 4, "n_head": 4, "n_embd": 256}
_PAPER_GPT = {"codebook_size": 1024, "classes": 1000, "n_layer": 24, "n_head": 16, "n_embd": 1024}
_QUICK_GPT = {"codebook_size": 16, "classes": 3, "n_layer": 2, "n_head": 2, "n_embd": 16}


@dataclass(frozen=True)
class Case:
    """A row or several of the table.

    kind: the module of `benchmarks.ours` and `benchmarks.theirs`. unit: of a run's amount, "step", "search" or
    "code". size: of networks, batches and maps, and the file whose training settings are our defaults for them;
    quick: the same for a test of seconds. rows: modes of our side. gpu: what is other on a GPU: batches that fill
    one, several steps a run, and the whole of a map.
    """

    name: str
    kind: str
    unit: str
    size: dict[str, Any]
    quick: dict[str, Any]
    rows: tuple[str, ...] = (SAME, DEFAULT)
    gpu: dict[str, Any] = field(default_factory=dict)

    def sizes(self, device: str, quick: bool) -> dict[str, Any]:
        """Those to run it with."""
        if quick:
            return self.quick
        return self.size | self.gpu if device == "cuda" else self.size


@dataclass(frozen=True)
class Plan:
    """What one worker is to do; it travels as JSON.

    side: "ours" or "theirs". device: "cpu" or "cuda". reference: its checkout, None where ours is timed alone.
    shared: the file by which the reference's side gives ours its weights, inputs and outputs.
    """

    case: str
    kind: str
    side: str
    mode: str
    size: dict[str, Any]
    threads: int
    device: str
    reference: str | None
    shared: str
    seed: int = 0


def _cases() -> Iterator[Case]:
    """Every case, in the table's order."""
    quick_step = {**_QUICK_VQGAN, "batch_size": 2}
    yield Case("vqgan-small", "vqgan", "step", {**_SMALL_VQGAN, "batch_size": 8}, quick_step,
               gpu={"repeats": 10})
    yield Case("vqgan-paper", "vqgan", "step", {**_PAPER_VQGAN, "batch_size": 2}, quick_step,
               gpu={"batch_size": 12, "repeats": 5})

    quick_step = {**_QUICK_VQGAN, **_QUICK_GPT, "batch_size": 2}
    small, paper = ({**_SMALL_VQGAN, **_SMALL_GPT}, {**_PAPER_VQGAN, **_PAPER_GPT})
    yield Case("transformer-small", "transformer", "step", {**small, "batch_size": 8}, quick_step,
               gpu={"repeats": 10})
    yield Case("transformer-paper", "transformer", "step", {**paper, "batch_size": 2}, quick_step,
               gpu={"batch_size": 32, "repeats": 5})

    for end, network, top_k in (("-small", _SMALL_GPT, 100), ("", _PAPER_GPT, 250)):
        for batch in (1, 4, 32):
            yield Case(f"sampling-{batch}{end}", "sampling", "code",
                       {**network, "batch_size": batch, "side": 16, "top_k": top_k},
                       {**_QUICK_GPT, "batch_size": min(batch, 2), "side": 4, "top_k": 5})
        paper = network is _PAPER_GPT
        # One wavefront of so many (ours) and one position of so many (theirs) are sampled. Ours are in the middle of
        # the map, whose windows know more codes than those of the upper edge and cannot share a cache.
        for map_side, condition, ours, theirs in ((32, "class", 11 if paper else 1, 64 if paper else 8),
                                                  (64, "class", 63 if paper else 1, 256 if paper else 32),
                                                  (64, "codes", 63 if paper else 5, 256 if paper else 64)):
            name = f"sliding-{map_side}{'-layout' if condition == 'codes' else ''}{end}"
            yield Case(name, "sliding", "code",
                       {**network, "map_side": map_side, "side": 16, "stride": 8, "condition": condition,
                        "top_k": 100, "every_wave": ours, "every_position": theirs},
                       {**_QUICK_GPT, "map_side": 6, "side": 4, "stride": 2, "condition": condition, "top_k": 5,
                        "every_wave": 2 if paper else 1, "every_position": 5},
                       (SAME, DEFAULT, STRIDE), gpu={"every_wave": 1, "every_position": 64})

    for codebook_size, repeats in ((1024, 20), (16384, 3), (262144, 1)):
        yield Case(f"nearest-{codebook_size}", "nearest", "search",
                   {"codebook_size": codebook_size, "codebook_dim": 256, "batch_size": 4, "side": 16,
                    "repeats": repeats},
                   {"codebook_size": 64, "codebook_dim": 8, "batch_size": 2, "side": 4, "repeats": 2}, (SAME,))


CASES = {case.name: case for case in _cases()}
