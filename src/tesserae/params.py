"""The schema of params.yaml: every knob, its type and its range, and one clear error for a bad one."""

from __future__ import annotations

import difflib
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from tesserae.codebook_params import AUTO, NEUTRAL, downsampling, entries, resolved, unused
from tesserae.errors import TesseraeError

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
Range = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=60)]  # of stages, so of files


VGG_LEAST = 16  # pixels a side of which VGG16's last layers keep one
_POWER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")  # 1e-3
COLOURED = ("image", "low_resolution")  # views whose reconstructions LPIPS judges
PLAIN_CONDITIONS = ("class", "coordinates")  # all others are VQGANs, whose codes are prepended


class ParamsError(TesseraeError, ValueError):
    """params.yaml holds something that no run can be made of."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ScenesParams(_Block):
    """The built-in landscapes, rendered into `data/` where that folder is missing."""

    count: Annotated[int, Field(ge=1, le=1_000_000)]
    size: Annotated[int, Field(ge=16, le=4096)]
    seed: Count


class PrepareParams(_Block):
    """Raw folder or hub dataset -> checked, split and resized set."""

    source: Annotated[str, Field(min_length=1)]
    image_size: Annotated[int, Field(ge=8, le=4096)]
    fit: Literal["cover", "contain", "stretch"]
    holdout: Annotated[float, Field(gt=0, lt=1)]
    min_side: Positive
    max_rejected: Share
    hub_config: str = ""
    hub_split: str = ""
    hub_revision: str = ""
    value_ranges: dict[Name, Range] = {}

    @model_validator(mode="after")
    def _check(self) -> PrepareParams:
        for name, (low, high) in self.value_ranges.items():
            if low >= high:
                raise ValueError(f"value_ranges.{name} = {[low, high]} must rise: black first, then white")
        return self

    @property
    def hub(self) -> dict[str, str]:
        """What is said of a dataset on the hub, as `datasets.load_dataset` names it."""
        said = {"name": self.hub_config, "split": self.hub_split, "revision": self.hub_revision}
        return {name: value for name, value in said.items() if value}


class VQGANParams(_Block):
    """One VQGAN: what it sees, its network, its objective, its training."""

    view: Literal["image", "segmentation", "depth", "edges", "low_resolution"]
    column: Name
    ignore_index: Annotated[int, Field(ge=-1, le=255)]
    # network
    channels: Annotated[int, Field(ge=1, le=4096)]
    channel_mult: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)]
    res_blocks: Annotated[int, Field(ge=1, le=16)]
    patch: Literal[1, 2, 4, 8]
    refine: Annotated[int, Field(ge=0, le=256)]
    attention: bool
    attention_levels: Annotated[list[Annotated[int, Field(ge=0, le=7)]], Field(max_length=8)]
    z_channels: Annotated[int, Field(ge=1, le=4096)]
    dropout: Dropout
    quantizer: Literal["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"]
    codebook_size: Annotated[int, Field(ge=2, le=1_048_576)]
    codebook_dim: Annotated[int, Field(ge=1, le=4096)]
    gradient: Literal["straight_through", "rotation"]
    codebook_init: Literal["data", "uniform", "none"]
    revive_after: Count
    # objective
    pixel_loss: Literal["l1", "l2", "cross_entropy"]
    pixel_weight: Weight
    perceptual_weight: Weight
    perceptual_fraction: Annotated[float, Field(gt=0, le=1)]
    perceptual_start: Count
    codebook_weight: Weight
    commitment_weight: Weight
    entropy_weight: Weight
    kl_weight: Weight
    temperature_start: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    temperature_end: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    gan_loss: Literal["hinge", "vanilla", "none"]
    gan_weight: Weight
    discriminator: Literal["patch", "features"]
    disc_start: Count
    disc_channels: Annotated[int, Field(ge=1, le=1024)]
    disc_layers: Annotated[int, Field(ge=1, le=6)]
    # training
    steps: Positive
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    optimiser: Literal["adam", "muon"]
    lr: Rate
    muon_lr: Rate
    codebook_lr: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    betas: Betas
    disc_lr: Rate
    disc_betas: Betas
    warmup: Count
    cooldown: Share
    grad_clip: Weight
    flip: bool
    zoom: Annotated[float, Field(ge=1, le=4)]
    crop: Annotated[int, Field(ge=0, le=4096)]
    max_seconds: Count
    log_every: Positive
    sample_every: Positive
    eval_every: Positive
    eval_images: Positive
    checkpoint_every: Positive

    @property
    def downsampling(self) -> int:
        """f: pixels a side that one code stands for."""
        return downsampling(self.patch, self.channel_mult)

    @property
    def entries(self) -> int:
        """How many codes the codebook has."""
        return entries(self.quantizer, self.codebook_size)

    @model_validator(mode="before")
    @classmethod
    def _automatic(cls, values: object) -> object:
        """`auto` becomes what the quantizer's authors use, or the neutral value where the key has no effect."""
        return resolved(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _quantizer_uses(self) -> VQGANParams:
        fault = unused(self.quantizer, self.model_dump())
        if fault:
            raise ValueError(fault)
        try:
            entries(self.quantizer, self.codebook_size)
        except TesseraeError as error:
            raise ValueError(str(error).rstrip(".")) from None
        return self

    @model_validator(mode="after")
    def _levels_exist(self) -> VQGANParams:
        last = len(self.channel_mult) - 1
        if any(level > last for level in self.attention_levels):
            raise ValueError(f"attention_levels = {self.attention_levels} names a level that channel_mult lacks; "
                             f"levels are 0 to {last}, from full resolution on")
        return self

    @property
    def judges_features(self) -> bool:
        """Whether there is a discriminator of LPIPS's features."""
        return self.gan_loss != "none" and self.discriminator == "features"

    @model_validator(mode="after")
    def _loss_fits_view(self) -> VQGANParams:
        classes = self.view == "segmentation"
        if classes != (self.pixel_loss == "cross_entropy"):
            allowed = "cross_entropy" if classes else "l1 or l2"
            raise ValueError(f"pixel_loss = {self.pixel_loss!r} does not go with view = {self.view!r}; "
                             f"take {allowed}")
        if self.ignore_index >= 0 and not classes:
            raise ValueError(f"ignore_index = {self.ignore_index} is for view = 'segmentation', whose pixels have an "
                             f"index; with view = {self.view!r} set it to -1")
        if self.view in ("segmentation", "depth", "edges") and (self.perceptual_weight or self.gan_loss != "none"):
            raise ValueError(f"view = {self.view!r} has no colours for LPIPS and the discriminator to judge; set "
                             "perceptual_weight: 0 and gan_loss: none")
        if self.judges_features and self.disc_layers > 4:
            raise ValueError(f"disc_layers = {self.disc_layers} must be at most 4 with discriminator = 'features', "
                             "which judges that many layers of VGG")
        if self.crop % self.downsampling:
            raise ValueError(f"crop = {self.crop} must be a multiple of the downsampling f = {self.downsampling}")
        return self


class CodebookParams(_Block):
    """How the codebook's report is drawn."""

    batch_size: Positive
    dictionary: Annotated[int, Field(ge=1, le=256)]
    patches: Annotated[int, Field(ge=1, le=32)]
    views: Annotated[int, Field(ge=1, le=64)]


class TransformerParams(_Block):
    """One latent transformer: its condition, its network, its training."""

    vqgan: Annotated[str, Field(min_length=1)]
    condition: Annotated[list[Name], Field(max_length=8)]
    window: Annotated[int, Field(ge=0, le=1024)]
    order: Literal["row", "spiral_in", "spiral_out", "z_curve", "subsample", "alternate"]
    prefix_attention: Literal["causal", "full"]
    # network
    n_layer: Annotated[int, Field(ge=1, le=200)]
    n_head: Annotated[int, Field(ge=1, le=256)]
    n_embd: Annotated[int, Field(ge=1, le=65_536)]
    dropout: Dropout
    # training
    pkeep: Share
    steps: Positive
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    strategy: Literal["ddp", "fsdp"]
    optimiser: Literal["adamw", "muon"]
    lr: Rate
    muon_lr: Rate
    betas: Betas
    weight_decay: Weight
    warmup: Count
    cooldown: Share
    grad_clip: Weight
    flip: bool
    max_seconds: Count
    log_every: Positive
    sample_every: Positive
    eval_every: Positive
    eval_images: Positive
    checkpoint_every: Positive

    @model_validator(mode="after")
    def _parts_agree(self) -> TransformerParams:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}")
        if len(set(self.condition)) < len(self.condition):
            raise ValueError(f"condition = {self.condition} names one of them twice")
        if self.strategy == "fsdp" and self.optimiser == "muon":
            raise ValueError("strategy = 'fsdp' does not go with optimiser = 'muon', which needs whole matrices; "
                             "take adamw, or ddp")
        return self

    @property
    def codes_read(self) -> list[str]:
        """The VQGANs whose codes are the condition."""
        return [name for name in self.condition if name not in PLAIN_CONDITIONS]


class SampleParams(_Block):
    """What is drawn from a trained transformer."""

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    top_k: Count
    top_p: Annotated[float, Field(gt=0, le=1)]
    stride: Annotated[int, Field(ge=1, le=256)]
    per_class: Positive
    num_eval_samples: Annotated[int, Field(ge=2, le=1_000_000)]
    completions: Positive
    neighbours: Annotated[int, Field(ge=1, le=16)]
    layouts: Annotated[int, Field(ge=1, le=64)]
    condition_image: str
    seed: Count


Side = Annotated[int, Field(ge=8, le=65_536)]
Size = Annotated[list[Side], Field(min_length=2, max_length=2)]  # height, width in pixels


class HighresParams(_Block):
    """Pictures larger than any that the transformer was trained on."""

    sizes: Annotated[list[Size], Field(min_length=1, max_length=16)]
    per_size: Annotated[int, Field(ge=1, le=64)]
    layout: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    top_k: Count
    top_p: Annotated[float, Field(gt=0, le=1)]
    stride: Annotated[int, Field(ge=1, le=256)]
    compare_stride: Annotated[int, Field(ge=2, le=256)]
    tile: Annotated[int, Field(ge=8, le=4096)]  # tiles overlap by a few codes
    seed: Count


class EvaluationParams(_Block):
    """What sets of pictures are compared by, and with how many."""

    inception_weights: str
    reference: Annotated[int, Field(ge=2, le=100_000)]
    bank: Annotated[int, Field(ge=2, le=100_000)]


class Params(_Block):
    """The whole of params.yaml."""

    seed: Count
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto", "on", "off"]
    effort: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
    threads: Annotated[int, Field(ge=0, le=1024)]
    scenes: ScenesParams
    prepare: PrepareParams
    vqgan: dict[Name, VQGANParams]
    codebook: dict[Name, CodebookParams]
    transformer: dict[Name, TransformerParams]
    sample: dict[Name, SampleParams]
    highres: dict[Name, HighresParams]
    evaluation: EvaluationParams

    @model_validator(mode="after")
    def _names_agree(self) -> Params:
        size = self.prepare.image_size
        for name, vqgan in self.vqgan.items():
            if size % vqgan.downsampling:
                raise ValueError(
                    f"prepare.image_size = {size} must be a multiple of the downsampling "
                    f"f = {vqgan.downsampling} that patch and channel_mult of vqgan.{name} give"
                )
            if vqgan.crop > size:
                raise ValueError(f"vqgan.{name}.crop = {vqgan.crop} must be at most prepare.image_size = {size}")
            self._check_side(name, vqgan)
        for name in self.codebook:
            if name not in self.vqgan:
                raise ValueError(f"codebook.{name} has no vqgan.{name} to go with it")
        for name, transformer in self.transformer.items():
            self._check_transformer(name, transformer)
        for kind in ("sample", "highres"):
            for name in getattr(self, kind):
                if name not in self.transformer:
                    raise ValueError(f"{kind}.{name} has no transformer.{name} to go with it")
        for name, highres in self.highres.items():
            self._check_highres(name, highres)
        for name, sample in self.sample.items():
            self._check_sample(name, sample)
        return self

    @model_validator(mode="after")
    def _pictures_can_be_judged(self) -> Params:
        size = self.prepare.image_size
        coloured = [name for name, block in self.vqgan.items() if block.view in COLOURED]
        if size < VGG_LEAST and (coloured or self.sample):
            who = f"vqgan.{coloured[0]}" if coloured else f"the samples of sample.{next(iter(self.sample))}"
            raise ValueError(f"prepare.image_size = {size} is too small for LPIPS, which judges {who}; take at least "
                             f"{VGG_LEAST}")
        return self

    def _check_side(self, name: str, block: VQGANParams) -> None:
        """Refuse networks that squares as large as those trained on leave no pixel for."""
        side, f = block.crop or self.prepare.image_size, block.downsampling
        what = f"vqgan.{name}.crop = {side}" if block.crop else f"prepare.image_size = {side}"
        if side < 2 * f:
            raise ValueError(f"{what} leaves vqgan.{name} one code a side at its downsampling f = {f}; take at least "
                             f"{2 * f}")
        if (block.perceptual_weight or block.judges_features) and side < VGG_LEAST:
            raise ValueError(f"{what} is too small for LPIPS and a discriminator of features, which need {VGG_LEAST} "
                             f"pixels; take more, or perceptual_weight: 0 and discriminator: patch")
        if side / block.zoom < f:
            raise ValueError(f"vqgan.{name}.zoom = {block.zoom:g} enlarges {side / block.zoom:.3g} pixels to {what}, "
                             f"fewer than the {f} that a code stands for; take a zoom of at most {side / f:g}")
        if block.gan_loss != "none" and block.discriminator == "patch" and side // 2**block.disc_layers < 3:
            fits = max((layers for layers in range(1, 7) if side // 2**layers >= 3), default=0)
            remedy = f"take disc_layers of at most {fits}" if fits else "take gan_loss: none"
            raise ValueError(f"{what} is too small for vqgan.{name}.disc_layers = {block.disc_layers}; {remedy}")

    def _check_transformer(self, name: str, block: TransformerParams) -> None:
        if block.vqgan not in self.vqgan:
            raise ValueError(f"transformer.{name}.vqgan = {block.vqgan!r} must be one of "
                             f"{', '.join(sorted(self.vqgan))}")
        f = self.vqgan[block.vqgan].downsampling
        if block.vqgan not in self.codebook:
            raise ValueError(f"transformer.{name}.vqgan = {block.vqgan!r} has no codebook.{block.vqgan}, which "
                             "encodes the pictures; add that block")
        for condition in block.codes_read:
            if condition not in self.vqgan:
                allowed = ", ".join([*PLAIN_CONDITIONS, *self.vqgan])
                raise ValueError(f"transformer.{name}.condition names {condition!r}, which is none of {allowed}")
            if condition not in self.codebook:
                raise ValueError(f"transformer.{name}.condition names {condition!r}, and there is no "
                                 f"codebook.{condition}, which encodes it; add that block")
            own = self.vqgan[condition].downsampling
            if f % own:
                raise ValueError(f"transformer.{name}: the downsampling {own} of vqgan.{condition} must divide the "
                                 f"{f} of vqgan.{block.vqgan}, so that windows of both can be cut together")
        side = self.prepare.image_size // f
        if "coordinates" in block.condition and block.window in (0, side):
            raise ValueError(f"transformer.{name}.condition names coordinates, but its window = {block.window} is "
                             f"the whole map of {side} codes a side, so they would be the same for every picture; "
                             f"take a window below {side}, or leave coordinates out")
        if block.window > side:
            raise ValueError(f"transformer.{name}.window = {block.window} must be at most the "
                             f"{side} codes a side of a whole picture")

    def _check_sample(self, name: str, block: SampleParams) -> None:
        transformer = self.transformer[name]
        window, side = self._window(transformer), self._side(transformer)
        self._check_stride(f"sample.{name}.stride", block.stride, window)
        if window < side and transformer.order != "row":
            raise ValueError(f"transformer.{name}.order = {transformer.order!r} does not go with its window of "
                             f"{window} codes, which slides row by row over the {side} codes a side of the pictures "
                             f"of sample.{name}; take order: row, or window: 0")

    def _check_stride(self, key: str, stride: int, window: int) -> None:
        if stride > window:
            raise ValueError(f"{key} = {stride} must be at most the window of {window} codes")

    def _window(self, transformer: TransformerParams) -> int:
        return transformer.window or self._side(transformer)

    def _side(self, transformer: TransformerParams) -> int:
        """Codes a side of a whole picture."""
        return self.prepare.image_size // self.vqgan[transformer.vqgan].downsampling

    def _check_highres(self, name: str, block: HighresParams) -> None:
        transformer = self.transformer[name]
        f = self.vqgan[transformer.vqgan].downsampling
        window = self._window(transformer)
        if transformer.order != "row":
            raise ValueError(f"highres.{name} needs transformer.{name}.order = 'row': the window slides row by row")
        if window < 2:
            raise ValueError(f"highres.{name} slides the window of transformer.{name}, which is one code; take a "
                             "window of at least 2, or leave the block out")
        for height, width in block.sizes:
            if height % f or width % f or min(height, width) < window * f:
                raise ValueError(f"highres.{name}.sizes holds {[height, width]}; each side must be a multiple of "
                                 f"{f} and at least {window * f} pixels, the transformer's window")
        for key in ("stride", "compare_stride"):
            self._check_stride(f"highres.{name}.{key}", getattr(block, key), window)
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check a parameters file.

    Raises ParamsError, in one sentence that names the file, the key, the value and what is allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist: copy one of presets/*.yaml there.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} cannot be read as a text file: {error}.") from None
    try:
        values = _numbers(YAML(typ="safe", pure=True).load(text))
    except Exception as error:  # the parser has many ways to fail, deep nesting among them
        raise ParamsError(f"{path} is not YAML: {_one_line(error)}.") from None
    return check_params(values, path)


def _numbers(values: object) -> object:
    """YAML reads 1e-3, without a dot, as text: it becomes the number that is meant."""
    if isinstance(values, dict):
        return {key: _numbers(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return float(values) if isinstance(values, str) and _POWER.fullmatch(values) else values


def check_params(values: object, origin: str | Path = "params") -> Params:
    """Values as read from YAML -> Params; `origin` names the file in the error."""
    if not isinstance(values, dict):
        raise ParamsError(f"{origin} must hold keys and values: copy one of presets/*.yaml there.")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{origin}: {_sentence(error.errors()[0])}") from None


def _one_line(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark and problem:  # of the parser: what is wrong, and where
        return f"line {mark.line + 1}: {_short(' '.join(str(problem).split()), 200)}".rstrip(".")
    return _short(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[:length] + "..."


def _sentence(error: dict) -> str:
    loc, value, kind = error["loc"], error["input"], error["type"]
    if kind == "invalid_key" or loc[-1:] == ("[key]",):
        block = ".".join(map(str, loc[: -1 if kind == "invalid_key" else -2])) or "it"
        return f"{block} has the key {_short(repr(value))}; a name is made of letters, digits, - and _."
    key = _short(".".join(repr(step)[1:-1] if isinstance(step, str) else str(step) for step in loc), 120)
    if kind == "extra_forbidden":
        known = sorted(_model_at(loc[:-1]).model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
        return f"{key} is not a parameter; {hint}"
    if kind == "missing":
        return f"{key} is missing; presets/laptop.yaml shows it with a comment."
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{error['ctx']['error']}."
    automatic = f", or {AUTO}" if loc[0] == "vqgan" and loc[-1] in NEUTRAL else ""
    return f"{key} = {_short(repr(value))} is not allowed; it must be {_allowed(loc)}{automatic}."


def _model_at(loc: tuple) -> type[BaseModel]:
    return _annotation_at(loc)[0]


def _annotation_at(loc: tuple) -> tuple[object, tuple]:
    """The annotation and its constraints at a path into Params."""
    annotation, metadata = Params, ()
    for step in loc:
        origin = typing.get_origin(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields[step]
            annotation, metadata = field.annotation, tuple(field.metadata)
        elif origin in (dict, list):
            annotation, metadata = typing.get_args(annotation)[-1], ()
        if typing.get_origin(annotation) is Annotated:
            metadata = tuple(typing.get_args(annotation)[1].metadata)
            annotation = typing.get_args(annotation)[0]
    return annotation, metadata


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


def _allowed(loc: tuple) -> str:
    annotation, metadata = _annotation_at(loc)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if origin is list:
        limits = {k: getattr(m, k) for m in metadata for k in ("min_length", "max_length") if hasattr(m, k)}
        least, most = limits.get("min_length", 0), limits.get("max_length")
        lengths = "" if most is None else f" of {most}" if least == most else f" of {least} to {most}"
        return f"a list{lengths}, each {_allowed((*loc, 0))}"
    if origin in (dict, types.UnionType) or annotation not in _NAMES:
        return "a block of keys and values"
    bounds = [f"{word} {getattr(m, k):,.10g}" for k, word in _BOUNDS for m in metadata
              if getattr(m, k, None) is not None]
    return _NAMES[annotation] + (", " + " and ".join(bounds) if bounds else "")
