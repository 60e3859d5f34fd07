"""Drawing maps of any size for what is asked: classes, layouts, any condition that a transformer was trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tesserae.data.conditions import Codes, Label, Told, conditions_of, make_prefix
from tesserae.data.paired import PairedMaps
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.sampler import sample
from tesserae.sampling.windows import Prefixes, sample_map


@dataclass(frozen=True)
class Asked:
    """What B pictures are drawn for: labels (B,) int64 or None; maps: by VQGAN, the codes of whole conditions."""

    count: int
    labels: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def repeated(self, times: int) -> Asked:
        """Each picture `times` times, one beside the other."""
        return self._each(lambda part: part.repeat_interleave(times, 0), self.count * times)

    def some(self, rows: Tensor) -> Asked:
        """The pictures of these numbers."""
        return self._each(lambda part: part[rows], len(rows))

    def _each(self, change: Callable[[Tensor], Tensor], count: int) -> Asked:
        labels = None if self.labels is None else change(self.labels)
        return Asked(count, labels, {name: change(part) for name, part in self.maps.items()})


def asked_of(data: PairedMaps, pictures: Tensor) -> Asked:
    """What is known of pictures of the set, (B,) int64."""
    told = data.told(data.whole(pictures))
    return Asked(len(pictures), told.labels, told.maps)


def prefixes_of(model: LatentTransformer, asked: Asked, shape: tuple[int, int], first: int = 0) -> Prefixes:
    """The tokens of the conditions of any window of maps of `shape`; sample number `first` is asked's first.

    Raises TesseraeError where something that the model needs is not asked, or has another size.
    """
    conditions, device = conditions_of(model.config.conditions), model.device
    window = window_of(model)
    for condition in conditions:
        if isinstance(condition, Codes):
            scale = condition.window[0] // window[0]
            wanted, found = tuple(side * scale for side in shape), asked.maps.get(condition.name)
            if found is None or tuple(found.shape[1:]) != wanted:
                shown = "missing" if found is None else f"of {found.shape[1]}x{found.shape[2]} codes"
                raise TesseraeError(f"the condition {condition.name} is {shown}; a map of {shape[0]}x{shape[1]} "
                                    f"codes needs one of {wanted[0]}x{wanted[1]}.")
        elif isinstance(condition, Label) and asked.labels is None:
            raise TesseraeError("this transformer needs the class of every picture: say which.")
    labels = None if asked.labels is None else asked.labels.to(device)
    maps = {name: part.to(device) for name, part in asked.maps.items()}

    def prefixes(samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        rows = samples - first
        told = Told(tops, lefts, shape, window, None if labels is None else labels[rows],
                    {name: part[rows] for name, part in maps.items()})
        return make_prefix(conditions, told)

    return prefixes


def window_of(model: LatentTransformer) -> tuple[int, int]:
    """(h,w) of the maps that the transformer knows; square where its config does not say."""
    side = round(model.config.max_tokens ** 0.5)
    return tuple(model.config.window) or (side, side)


def draw_codes(model: LatentTransformer, asked: Asked, shape: tuple[int, int], seed: int = 0, first: int = 0,
               stride: int = 1, given: tuple[Tensor, Tensor] | None = None, cached: bool = True,
               wavefront: bool = True, batch_size: int = 64, progress: Callable[[int, int], None] | None = None,
               grown: Callable[[Tensor, Tensor], None] | None = None, **filters) -> Tensor:
    """A code map of `shape` for each picture asked for: (B,h,w) int64 on the model's device.

    Maps as large as the transformer knows are drawn by `sampler.sample`, larger ones by `windows.sample_map`; see
    there for the arguments. filters: temperature, top_k, top_p.
    """
    prefixes = prefixes_of(model, asked, shape, first)
    if tuple(shape) == window_of(model):
        numbers = torch.arange(first, first + len(asked), device=model.device)
        zeros = torch.zeros_like(numbers)
        return sample(model, prefixes(numbers, zeros, zeros), shape, seed=seed, first=first, given=given,
                      cached=cached, batch_size=batch_size, progress=progress, **filters)
    return sample_map(model, prefixes, shape, window_of(model), len(asked), seed=seed, first=first, stride=stride,
                      given=given, wavefront=wavefront, batch_size=batch_size, progress=progress, grown=grown,
                      **filters)
