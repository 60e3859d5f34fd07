"""Conditions of a transformer: each puts tokens of its own vocabulary in front of the codes.

A condition is one small object: it makes `length` tokens of `vocab` values from the `Conditioning` of the windows
that are modelled. Several conditions follow one another, and the second's tokens count on from the first's
vocabulary; without any there is one start token. A new condition is a class here and a case in `conditions_of`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tesserae.errors import TesseraeError

MAX_POSITIONS = 32  # values that a coordinate takes, at most


@dataclass(frozen=True)
class Conditioning:
    """What a transformer is conditioned on, for B windows of pictures.

    tops, lefts (B,) int64: of the window, in codes; shape: (h,w) of the whole maps; window: (h,w) of the windows.
    labels (B,) int64; maps: by name of the VQGAN, the whole maps of its codes (B,h',w'), int64.
    """

    tops: Tensor
    lefts: Tensor
    shape: tuple[int, int]
    window: tuple[int, int]
    labels: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """No condition: one start token."""

    name = "start"
    vocab = 1
    length = 1

    def tokens(self, given: Conditioning) -> Tensor:
        return torch.zeros(len(given.tops), 1, dtype=torch.int64, device=given.tops.device)


@dataclass(frozen=True)
class Label:
    """The class: one token."""

    vocab: int
    name = "class"
    length = 1

    def tokens(self, given: Conditioning) -> Tensor:
        return given.labels[:, None]


@dataclass(frozen=True)
class Coordinates:
    """Where the window lies between the map's edges: a token for its row and one for its column.

    The first position is 0 and the last is vocab / 2 - 1, whatever the map's size: so sky is above on a map of any
    size (compare COCO-GAN, arXiv 1904.00284). There are as many values as positions in training, at most
    MAX_POSITIONS.
    """

    vocab: int  # of both, the column's counted on from the row's
    name = "coordinates"
    length = 2

    def tokens(self, given: Conditioning) -> Tensor:
        positions = self.vocab // 2
        largest = [max(1, side - window) for side, window in zip(given.shape, given.window)]
        row, column = ((at * (positions - 1) / end).round().long().clamp(0, positions - 1)
                       for at, end in zip((given.tops, given.lefts), largest))
        return torch.stack([row, column + positions], dim=1)


@dataclass(frozen=True)
class Codes:
    """The codes of a second VQGAN: r is prepended to s, cut with it. (h,w): of its window."""

    name: str
    vocab: int
    window: tuple[int, int]

    @property
    def length(self) -> int:
        return self.window[0] * self.window[1]

    def tokens(self, given: Conditioning) -> Tensor:
        scale = self.window[0] // given.window[0]
        return windows_of(given.maps[self.name], given.tops * scale, given.lefts * scale, self.window).flatten(1)


Condition = Start | Label | Coordinates | Codes


def conditions_of(specs: Sequence[Mapping]) -> list[Condition]:
    """The conditions that a TransformerConfig records; see `record`."""
    kinds = {"start": lambda spec: Start(), "class": lambda spec: Label(spec["vocab"]),
             "coordinates": lambda spec: Coordinates(spec["vocab"]),
             "codes": lambda spec: Codes(spec["name"], spec["vocab"], tuple(spec["window"]))}
    return [kinds[spec["kind"]](spec) for spec in specs] or [Start()]


def record(condition: Condition) -> dict:
    """What TransformerConfig keeps of a condition."""
    kind = "codes" if isinstance(condition, Codes) else condition.name
    kept = {"kind": kind, "vocab": condition.vocab}
    return kept | {"name": condition.name, "window": list(condition.window)} if kind == "codes" else kept


def make_prefix(conditions: Sequence[Condition], given: Conditioning) -> Tensor:
    """The tokens of all conditions, (B,P) int64.

    Raises TesseraeError where a condition lacks its values, or where a value lies outside its vocabulary: added to
    the sizes of the vocabularies before it, such a token would be another condition's.
    """
    parts, before = [], 0
    for condition in conditions:
        if isinstance(condition, Label) and given.labels is None:
            raise TesseraeError("The transformer needs the class of every picture: give labels.")
        if isinstance(condition, Codes) and condition.name not in given.maps:
            raise TesseraeError(f"The transformer needs the codes of vqgan.{condition.name}: give its maps.")
        tokens = condition.tokens(given)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < condition.vocab:
            raise TesseraeError(f"The values of condition {condition.name!r} run from {int(tokens.min())} to "
                                f"{int(tokens.max())}, and this transformer knows 0 to {condition.vocab - 1}.")
        parts.append(tokens + before)
        before += condition.vocab
    return torch.cat(parts, dim=1)


def windows_of(maps: Tensor, tops: Tensor, lefts: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a window of (h,w) out of each map (B,H,W), its top left at (tops, lefts), (B,) each: (B,h,w)."""
    rows = tops[:, None, None] + torch.arange(window[0], device=maps.device)[None, :, None]
    columns = lefts[:, None, None] + torch.arange(window[1], device=maps.device)[None, None]
    return maps[torch.arange(len(maps), device=maps.device)[:, None, None], rows, columns]
