"""From Python: a trained transformer with its VQGANs, which makes pictures of conditions.

    sampler = tesserae.Sampler.from_pretrained("models/transformer-class")
    pictures = sampler.sample(label="coast_day", n=4, seed=0)

`sample` and `complete` give PIL images. Notebooks that measure use the steps in between: `request` turns conditions
into codes, `sample_codes` samples code maps for them, `decode` turns those into tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor

from tesserae.data.batches import to_bytes
from tesserae.data.conditions import Codes, Label, conditions_of
from tesserae.data.external import read_condition
from tesserae.data.views import View, view_of
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_decoding
from tesserae.sampling.autoregressive import DEFAULTS, Given, Progress, SampleOptions
from tesserae.sampling.conditional import SampleRequest, sample_codes, window_of
from tesserae.sampling.sliding_window import Preview
from tesserae.sampling.tiling import TILE, decode_map, encode_map

Source = str | Path | Image.Image | Tensor  # a file, a picture, or integers (1,c,H,W) in the view's raw form
Condition = Source | Mapping[str, Source] | None
LabelLike = str | int | Sequence[str | int] | Tensor | None
DECODED = 8192, 32  # codes, and maps, that are decoded together at most


class Sampler:
    """A transformer, the VQGAN whose codes it models, and those of its conditions by name.

    name: of the VQGAN whose codes it models. class_names: of the labels, in their order; [] where there are none.
    autocast: returns the context that the transformer samples in, such as `accelerator.autocast`; by default one
    without effect. tile: codes a side of the tiles in which large maps are encoded and decoded.
    """

    def __init__(self, transformer: LatentTransformer, vqgan: VQGAN,
                 condition_vqgans: Mapping[str, VQGAN] | None = None, class_names: Sequence[str] = (),
                 name: str = "image") -> None:
        """Raises TesseraeError where a condition of the transformer has no VQGAN."""
        self.transformer, self.vqgan, self.name = transformer.eval(), vqgan.eval(), name
        self.condition_vqgans, self.class_names = dict(condition_vqgans or {}), list(class_names)
        self.conditions = conditions_of(transformer.config.conditions)
        for condition in _names(self.conditions):
            if condition not in self.condition_vqgans:
                raise TesseraeError(f"the condition {condition} has no VQGAN: give it in condition_vqgans.")
        self.view = view_of(vqgan.config)
        self.condition_views = {key: view_of(each.config) for key, each in self.condition_vqgans.items()}
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        self.tile = TILE

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None,
                        name: str | None = None) -> Sampler:
        """Read a transformer, and its VQGANs from the folders vqgan-<name> beside it.

        device: None for a GPU where there is one. name: of the VQGAN whose codes it models, for a transformer that
        does not say. Raises TesseraeError where a model is missing or damaged, and OriginError where a VQGAN is not
        the one whose codes the transformer was trained on.
        """
        folder = Path(folder)
        transformer = LatentTransformer.from_pretrained(folder)
        conditions = _names(conditions_of(transformer.config.conditions))
        names = set(transformer.origin.get("vqgans", {}))
        if name is None and not names:
            raise TesseraeError(f"{folder} does not say which VQGAN's codes it models: load both, and join them by "
                                "Sampler(transformer, vqgan).")
        name = name or next(iter(names - {*conditions} or names))
        vqgans = {key: VQGAN.from_pretrained(folder.parent / f"vqgan-{key}") for key in (name, *conditions)}
        check_decoding(folder.name, transformer, vqgans)
        sampler = cls(transformer, vqgans[name], {key: vqgans[key] for key in conditions},
                      transformer.origin.get("class_names", []), name)
        return sampler.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> Sampler:
        """Move all networks."""
        for model in (self.transformer, *self.vqgans.values()):
            model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.transformer.device

    @property
    def vqgans(self) -> dict[str, VQGAN]:
        """All VQGANs by name, first the one whose codes the transformer models."""
        return {self.name: self.vqgan, **self.condition_vqgans}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of what the transformer models; larger pictures are made by a sliding window."""
        f = self.vqgan.config.downsampling
        return tuple(side * f for side in window_of(self.transformer))

    def sample(self, label: LabelLike = None, condition: Condition = None, size: tuple[int, int] | None = None,
               n: int = 1, progress: Progress | None = None, **options) -> list[Image.Image]:
        """Make `n` pictures.

        label: a name of `class_names`, its number, or one for each picture. condition: a picture of what the
        condition's VQGAN reads (a layout in the colours of the classes or as their indices, a depth map, a photograph
        whose edges are taken); with several such conditions one for each name. size: (height, width) in pixels,
        multiples of the downsampling and no smaller than `size`; None: `size`. options: of `SampleOptions`. The same
        seed makes the same pictures on one kind of machine. Raises TesseraeError for what is missing or does not fit.
        """
        request = self.request(label, condition, size, n)
        codes = self.sample_codes(request, self._shape(size), SampleOptions(**options), progress=progress)
        return _pil(self.decode(codes))

    def complete(self, picture: Source, mask: np.ndarray | Image.Image, label: LabelLike = None,
                 condition: Condition = None, size: tuple[int, int] | None = None, n: int = 1,
                 **options) -> list[Image.Image]:
        """Keep a part of a picture and make the rest, `n` times.

        picture: brought to `size`, its middle cut out. mask: (height, width) of `size`, true or white where the
        picture is kept; a code is kept where all its pixels are. See `sample` for the others.
        """
        size, f = tuple(size or self.size), self.vqgan.config.downsampling
        kept = np.asarray(mask.convert("1") if isinstance(mask, Image.Image) else mask, dtype=bool)
        if kept.shape != size:
            raise TesseraeError(f"the mask has the shape {kept.shape}; (height, width) = {size} is needed.")
        known = reduce(torch.from_numpy(kept.astype(np.uint8)), "(h f) (w g) -> h w", "min", f=f, g=f).bool()
        x = self.view.network_input(_read(picture, self.view, size)).to(self.device)
        codes = encode_map(self.vqgan, x, self.tile)
        given = known.expand(n, -1, -1), codes.expand(n, -1, -1)
        request = self.request(label, condition, size, n)
        return _pil(self.decode(self.sample_codes(request, self._shape(size), SampleOptions(**options), given)))

    def request(self, label: LabelLike = None, condition: Condition = None, size: tuple[int, int] | None = None,
                n: int = 1) -> SampleRequest:
        """The conditions of `n` pictures as labels and codes; arguments as `sample` has them."""
        if n < 1:
            raise TesseraeError(f"n = {n} is not allowed; it must be at least 1.")
        labels, shape = None, self._shape(size)
        if any(isinstance(each, Label) for each in self.conditions):
            several = isinstance(label, Sequence | Tensor) and not isinstance(label, str)
            labels = torch.tensor([self._label(each) for each in (label if several else [label] * n)])
            if len(labels) != n:
                raise TesseraeError(f"{len(labels)} labels are given for {n} pictures: give one, or one for each.")
        elif label is not None:
            raise TesseraeError(f"label = {label!r} is not needed; this transformer has no classes.")
        names = _names(self.conditions)
        given = {} if condition is None else condition
        if not isinstance(given, Mapping):
            given = {names[0] if len(names) == 1 else "": condition}
        if given and not names:
            raise TesseraeError("this transformer has no pictures as conditions: leave condition out.")
        if {*given} != {*names}:
            raise TesseraeError("this transformer needs a picture for each of its conditions, "
                                f"{', '.join(names)}: give it as condition, or several in a dict by name.")
        return SampleRequest(n, labels, {name: self._codes(name, given[name], shape).expand(n, -1, -1)
                                         for name in names})

    def sample_codes(self, request: SampleRequest, shape: tuple[int, int] | None = None,
                     options: SampleOptions = DEFAULTS, given: Given | None = None,
                     progress: Progress | None = None, preview: Preview | None = None) -> Tensor:
        """A code map of `shape`, None for the transformer's window, for each requested picture: (B,h,w) on the CPU.

        For the arguments see `conditional.sample_codes`.
        """
        given = given and tuple(part.to(self.device) for part in given)
        shape = shape or window_of(self.transformer)
        with self.autocast():
            return sample_codes(self.transformer, request, shape, options, given, progress, preview).cpu()

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Code maps (B,h,w) -> pictures (B,3,f h,f w) in [-1,1] on the CPU; large maps in tiles of `tile` codes."""
        codes, decode = codes.to(self.device), self.vqgan.decode
        at_once = max(1, min(DECODED[1], DECODED[0] // codes[0].numel()))
        if max(codes.shape[1:]) > self.tile:
            return self.view.rendered(decode_map(self.vqgan, codes, self.tile)).cpu()
        return torch.cat([self.view.rendered(decode(part)).cpu() for part in codes.split(at_once)])

    def condition_pictures(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Pictures (B,3,H,W) in [-1,1] of conditions in their views' raw form (B,c,H,W), by name."""
        return {name: view.rendered(view.network_input(raw[name]))
                for name, view in self.condition_views.items() if name in raw}

    def _shape(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(h,w) in codes of a picture of `size`."""
        f, size = self.vqgan.config.downsampling, size or self.size
        if any(side % f for side in size):
            raise TesseraeError(f"size = {tuple(size)} is not allowed; each side must be a multiple of {f} pixels.")
        return tuple(side // f for side in size)

    def _label(self, label: str | int | Tensor | None) -> int:
        if isinstance(label, str) and label in self.class_names:
            return self.class_names.index(label)
        label = int(label) if isinstance(label, Tensor) else label
        count = next(each.vocab for each in self.conditions if isinstance(each, Label))
        if isinstance(label, int) and 0 <= label < count:
            return label
        known = ", ".join(self.class_names[:20]) + (" ..." if len(self.class_names) > 20 else "")
        raise TesseraeError(f"label = {label!r} is no class; take {f'one of {known}, or ' if known else ''}a number "
                            f"from 0 to {count - 1}.")

    def _codes(self, name: str, source: Source, shape: tuple[int, int]) -> Tensor:
        """The codes (1 or n,h,w) of a condition's picture, which is brought to the size of the sample."""
        view, f = self.condition_views[name], self.vqgan.config.downsampling
        raw = _read(source, view, tuple(side * f for side in shape))
        return encode_map(self.condition_vqgans[name], view.network_input(raw).to(self.device), self.tile)


def _names(conditions: Sequence) -> list[str]:
    """The conditions that are codes of a VQGAN."""
    return [condition.name for condition in conditions if isinstance(condition, Codes)]


def _read(source: Source, view: View, size: tuple[int, int]) -> Tensor:
    """A picture in a view's raw form (B,c,H,W)."""
    if isinstance(source, Tensor):
        return source
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(source, Image.Image):
            picture, source = source, Path(folder) / "picture.png"
            picture.save(source)
        return read_condition(Path(source), view, size)


def _pil(images: Tensor) -> list[Image.Image]:
    """Pictures (B,3,H,W) in [-1,1] -> PIL images."""
    return [Image.fromarray(rearrange(each, "c h w -> h w c").numpy()) for each in to_bytes(images)]
