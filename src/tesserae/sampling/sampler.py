"""From Python: a trained transformer with its VQGANs, which makes pictures of conditions.

    sampler = tesserae.Sampler.from_pretrained("models/transformer-class")
    pictures = sampler.sample(label="coast_day", n=4, seed=0)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor

from tesserae.data.batches import to_bytes
from tesserae.data.conditions import Codes, Label, conditions_of
from tesserae.data.external import read_condition
from tesserae.data.views import view_of
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_decoding
from tesserae.sampling.autoregressive import Given, Progress, SampleOptions
from tesserae.sampling.conditional import SampleRequest, sample_codes, window_of
from tesserae.sampling.tiling import decode_map, encode_map

Source = str | Path | Image.Image  # of a picture: a file, or the picture itself


class Sampler:
    """A transformer, the VQGAN whose codes it models, and those of its conditions by name.

    class_names: of the labels, in their order; [] where there are none.
    """

    def __init__(self, transformer: LatentTransformer, vqgan: VQGAN,
                 condition_vqgans: Mapping[str, VQGAN] | None = None, class_names: Sequence[str] = ()) -> None:
        """Raises TesseraeError where a condition of the transformer has no VQGAN."""
        self.transformer, self.vqgan = transformer.eval(), vqgan.eval()
        self.condition_vqgans, self.class_names = dict(condition_vqgans or {}), list(class_names)
        self.conditions = conditions_of(transformer.config.conditions)
        for condition in self.conditions:
            if isinstance(condition, Codes) and condition.name not in self.condition_vqgans:
                raise TesseraeError(f"the condition {condition.name} has no VQGAN: give it in condition_vqgans.")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Sampler:
        """Read a transformer, and its VQGANs from the folders vqgan-<name> beside it.

        device: None for a GPU where there is one. Raises TesseraeError where a model is missing or damaged, or where
        a VQGAN is not the one whose codes the transformer was trained on.
        """
        folder = Path(folder)
        transformer = LatentTransformer.from_pretrained(folder)
        conditions = [condition.name for condition in conditions_of(transformer.config.conditions)
                      if isinstance(condition, Codes)]
        names = set(transformer.origin.get("vqgans", {}))
        if not names:
            raise TesseraeError(f"{folder} does not say which VQGAN's codes it models: load both, and join them by "
                                "Sampler(transformer, vqgan).")
        modelled = next(iter(names - {*conditions} or names))
        vqgans = {name: VQGAN.from_pretrained(folder.parent / f"vqgan-{name}") for name in (modelled, *conditions)}
        check_decoding(folder.name, transformer, vqgans)
        sampler = cls(transformer, vqgans[modelled], {name: vqgans[name] for name in conditions},
                      transformer.origin.get("class_names", []))
        return sampler.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> Sampler:
        """Move all networks."""
        for model in (self.transformer, self.vqgan, *self.condition_vqgans.values()):
            model.to(device)
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the transformer models; larger pictures are made by a sliding window."""
        f = self.vqgan.config.downsampling
        return tuple(side * f for side in window_of(self.transformer))

    def sample(self, label: str | int | None = None, condition: Source | Mapping[str, Source] | None = None,
               size: tuple[int, int] | None = None, n: int = 1, seed: int = 0, temperature: float = 1.0,
               top_k: int = 0, top_p: float = 1.0, stride: int = 1,
               progress: Progress | None = None) -> list[Image.Image]:
        """Make `n` pictures.

        label: a name of `class_names`, or its number. condition: a picture of what the condition's VQGAN reads (a
        layout in the colours of the classes or as their indices, a depth map, a photograph whose edges are taken);
        with several such conditions one for each name. size: (height, width) in pixels, multiples of the
        downsampling and no smaller than `size`; None: `size`. temperature, top_k, top_p: see `filters.rank`. stride:
        see `sliding_window.sample_map`. The same seed makes the same pictures on one kind of machine. Raises
        TesseraeError for what is missing or does not fit.
        """
        shape = self._shape(size)
        options = SampleOptions(temperature, top_k, top_p, seed, stride=stride)
        return self._make(self._request(label, condition, shape, n), shape, options, None, progress)

    def complete(self, picture: Source, mask: np.ndarray | Image.Image, label: str | int | None = None,
                 condition: Source | Mapping[str, Source] | None = None, n: int = 1, seed: int = 0,
                 temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> list[Image.Image]:
        """Keep a part of a picture and make the rest, `n` times.

        picture: brought to `size`, its middle cut out. mask: (height, width) of `size`, true or white where the
        picture is kept; a code is kept where all its pixels are. See `sample` for the others.
        """
        shape, f = self._shape(None), self.vqgan.config.downsampling
        kept = np.asarray(mask.convert("1") if isinstance(mask, Image.Image) else mask, dtype=bool)
        if kept.shape != self.size:
            raise TesseraeError(f"the mask has the shape {kept.shape}; (height, width) = {self.size} is needed.")
        known = reduce(torch.from_numpy(kept.astype(np.uint8)), "(h f) (w g) -> h w", "min", f=f, g=f).bool()
        view = view_of(self.vqgan.config)
        codes = encode_map(self.vqgan, view.seen(_read(picture, view, self.size)).to(self.transformer.device))
        given = tuple(part.expand(n, *shape).to(self.transformer.device) for part in (known, codes))
        options = SampleOptions(temperature, top_k, top_p, seed)
        return self._make(self._request(label, condition, shape, n), shape, options, given)

    @torch.no_grad()
    def _make(self, request: SampleRequest, shape: tuple[int, int], options: SampleOptions,
              given: Given | None = None, progress: Progress | None = None) -> list[Image.Image]:
        codes = sample_codes(self.transformer, request, shape, options, given, progress)
        pixels = to_bytes(view_of(self.vqgan.config).drawn(decode_map(self.vqgan, codes))).cpu()
        return [Image.fromarray(rearrange(each, "c h w -> h w c").numpy()) for each in pixels]

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """Codes a side."""
        f, size = self.vqgan.config.downsampling, size or self.size
        if any(side % f for side in size):
            raise TesseraeError(f"size = {tuple(size)} is not allowed; each side must be a multiple of {f} pixels.")
        return tuple(side // f for side in size)

    def _request(self, label: str | int | None, condition: Source | Mapping[str, Source] | None,
                 shape: tuple[int, int], n: int) -> SampleRequest:
        if n < 1:
            raise TesseraeError(f"n = {n} is not allowed; it must be at least 1.")
        labels = None
        if any(isinstance(each, Label) for each in self.conditions):
            labels = torch.full((n,), self._label(label), dtype=torch.int64)
        elif label is not None:
            raise TesseraeError(f"label = {label!r} is not needed; this transformer has no classes.")
        names = [each.name for each in self.conditions if isinstance(each, Codes)]
        given = condition if isinstance(condition, Mapping) else dict.fromkeys(
            names if condition is not None and len(names) == 1 else [], condition)
        if condition is not None and not names:
            raise TesseraeError("this transformer has no pictures as conditions: leave condition out.")
        if {*given} != {*names}:
            raise TesseraeError("this transformer needs a picture for each of its conditions, "
                                f"{', '.join(names)}: give it as condition, or several in a dict by name.")
        return SampleRequest(n, labels, {name: self._codes(name, given[name], shape).expand(n, -1, -1)
                                         for name in names})

    def _label(self, label: str | int | None) -> int:
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        count = next(each.vocab for each in self.conditions if isinstance(each, Label))
        if isinstance(label, int) and 0 <= label < count:
            return label
        known = ", ".join(self.class_names[:20]) + (" ..." if len(self.class_names) > 20 else "")
        raise TesseraeError(f"label = {label!r} is no class; take {f'one of {known}, or ' if known else ''}a number "
                            f"from 0 to {count - 1}.")

    def _codes(self, name: str, source: Source, shape: tuple[int, int]) -> Tensor:
        """The codes (1,h,w) of a condition's picture, which is brought to the size of the sample."""
        vqgan, f = self.condition_vqgans[name], self.vqgan.config.downsampling
        view = view_of(vqgan.config)
        stored = _read(source, view, tuple(side * f for side in shape))
        return encode_map(vqgan, view.seen(stored).to(self.transformer.device))


def _read(source: Source, view, size: tuple[int, int]) -> Tensor:
    """A picture in a view's stored form (1,c,H,W)."""
    if not isinstance(source, Image.Image):
        return read_condition(Path(source), view, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        source.save(path)
        return read_condition(path, view, size)
