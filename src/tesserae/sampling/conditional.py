"""From what is requested (classes, layouts, any condition that a transformer was trained with) to code maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tesserae.data.conditions import Codes, Conditioning, Label, conditions_of, make_prefix
from tesserae.data.paired import PairedMaps
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.sampling.autoregressive import DEFAULTS, Given, Progress, SampleOptions, sample
from tesserae.sampling.sliding_window import Prefixes, Preview, sample_map


@dataclass(frozen=True)
class SampleRequest:
    """The conditions of `count` pictures: labels (count,) int64 or None; maps (count,h,w) int64: by VQGAN, the codes
    of whole conditions."""

    count: int
    labels: Tensor | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def repeated(self, times: int) -> SampleRequest:
        """Each picture `times` times, one beside the other."""
        return self._each(lambda part: part.repeat_interleave(times, 0), self.count * times)

    def some(self, rows: Tensor) -> SampleRequest:
        """The pictures of these numbers."""
        return self._each(lambda part: part[rows], len(rows))

    def to(self, device: torch.device) -> SampleRequest:
        return self._each(lambda part: part.to(device), self.count)

    def _each(self, change: Callable[[Tensor], Tensor], count: int) -> SampleRequest:
        labels = None if self.labels is None else change(self.labels)
        return SampleRequest(count, labels, {name: change(part) for name, part in self.maps.items()})


def request_of(data: PairedMaps, pictures: Tensor) -> SampleRequest:
    """The conditions of pictures of the set, (B,) int64."""
    conditioning = data.conditioning(data.whole(pictures))
    return SampleRequest(len(pictures), conditioning.labels, conditioning.maps)


def prefixes_of(model: LatentTransformer, request: SampleRequest, shape: tuple[int, int],
                first: int = 0) -> Prefixes:
    """The prefix tokens of any window of maps of `shape`; sample number `first` is the request's first picture.

    Raises TesseraeError where a condition that the model needs is missing, or has another size.
    """
    conditions, window = conditions_of(model.config.conditions), window_of(model)
    for condition in conditions:
        if isinstance(condition, Codes):
            scale = condition.window[0] // window[0]
            wanted, found = tuple(side * scale for side in shape), request.maps.get(condition.name)
            if found is None or tuple(found.shape[1:]) != wanted:
                shown = "missing" if found is None else f"of {found.shape[1]}x{found.shape[2]} codes"
                raise TesseraeError(f"the condition {condition.name} is {shown}; a map of {shape[0]}x{shape[1]} "
                                    f"codes needs one of {wanted[0]}x{wanted[1]}.")
        elif isinstance(condition, Label) and request.labels is None:
            raise TesseraeError("this transformer needs the class of every picture: give labels.")
    here = request.to(model.device)

    def prefixes(samples: Tensor, tops: Tensor, lefts: Tensor) -> Tensor:
        own = here.some(samples - first)
        return make_prefix(conditions, Conditioning(tops, lefts, shape, window, own.labels, own.maps))

    return prefixes


def window_of(model: LatentTransformer) -> tuple[int, int]:
    """(h,w) of the maps that the transformer models; square where its config does not say."""
    side = round(model.config.max_tokens ** 0.5)
    return tuple(model.config.window) or (side, side)


def sample_codes(model: LatentTransformer, request: SampleRequest, shape: tuple[int, int],
                 options: SampleOptions = DEFAULTS, given: Given | None = None,
                 progress: Progress | None = None, preview: Preview | None = None) -> Tensor:
    """A code map of `shape` for each requested picture: (B,h,w) int64 on the model's device.

    Maps as large as the transformer's are sampled by `autoregressive.sample`, larger ones by
    `sliding_window.sample_map`; see there for the arguments.
    """
    prefixes, window = prefixes_of(model, request, shape, options.first), window_of(model)
    if tuple(shape) != window:
        return sample_map(model, prefixes, shape, window, len(request), options, given, progress, preview)
    numbers = torch.arange(options.first, options.first + len(request), device=model.device)
    zeros = torch.zeros_like(numbers)
    return sample(model, prefixes(numbers, zeros, zeros), shape, options, given, progress)
