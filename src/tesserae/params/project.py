"""The whole of params.yaml, and what its blocks must agree on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tesserae.params.blocks import (
    CodebookParams,
    EvaluationParams,
    HighresParams,
    PrepareParams,
    SampleParams,
    ScenesParams,
)
from tesserae.params.defaults import completed
from tesserae.params.sizes import DEFAULT_SIZE
from tesserae.params.transformer import PLAIN_CONDITIONS, TransformerParams
from tesserae.params.types import Block, Count, Name
from tesserae.params.vqgan import COLOURED, VQGANParams

MIN_VGG_SIDE = 16  # pixels a side of which VGG16's last layers keep one


class Params(Block):
    """The whole of params.yaml."""

    size: Literal["xs", "s", "m", "l"] = Field(
        DEFAULT_SIZE, description="xs | s | m | l: what auto stands for in widths, depths, batches, rates and steps")
    seed: Count = Field(0, description="first weights, order of the data, dropout")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the hardware is quick at it, else fp32 | fp32 | bf16")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile in training; auto: on a GPU | on | off")
    effort: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = Field(
        1, description="multiplies the length of every training: 3 takes three times as long")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(0, description="CPU threads; 0: all cores")
    scenes: ScenesParams = Field(
        ScenesParams(), description="the built-in landscapes, rendered into data/ where that folder is missing")
    prepare: PrepareParams = Field(PrepareParams(), description="the raw pictures, checked, split and resized")
    vqgan: dict[Name, VQGANParams] = Field(description="the first stage: pictures to codes and back")
    codebook: dict[Name, CodebookParams] = Field(description="what the report of each codebook shows")
    transformer: dict[Name, TransformerParams] = Field(description="the second stage: how codes follow each other")
    sample: dict[Name, SampleParams] = Field(description="what is sampled from each transformer")
    highres: dict[Name, HighresParams] = Field(description="pictures of any size by a sliding window; {}: none")
    evaluation: EvaluationParams = Field(EvaluationParams(), description="how sets of pictures are compared")

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, values: object) -> object:
        return completed(values) if isinstance(values, dict) else values

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
        if size < MIN_VGG_SIDE and (coloured or self.sample):
            who = f"vqgan.{coloured[0]}" if coloured else f"the samples of sample.{next(iter(self.sample))}"
            raise ValueError(f"prepare.image_size = {size} is too small for LPIPS, which judges {who}; take at least "
                             f"{MIN_VGG_SIDE}")
        return self

    def _check_side(self, name: str, block: VQGANParams) -> None:
        """Refuse networks that squares as large as those trained on leave no pixel for."""
        side, f = block.crop or self.prepare.image_size, block.downsampling
        what = f"vqgan.{name}.crop = {side}" if block.crop else f"prepare.image_size = {side}"
        if side < 2 * f:
            raise ValueError(f"{what} leaves vqgan.{name} one code a side at its downsampling f = {f}; take at least "
                             f"{2 * f}")
        if (block.perceptual_weight or block.judges_features) and side < MIN_VGG_SIDE:
            raise ValueError(f"{what} is too small for LPIPS and a discriminator of features, which need "
                             f"{MIN_VGG_SIDE} pixels; take more, or perceptual_weight: 0 and discriminator: patch")
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
