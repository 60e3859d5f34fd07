"""The blocks under `vqgan:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tesserae.codebook_params import AUTO, downsampling, entries, unused
from tesserae.errors import TesseraeError
from tesserae.params.defaults import completed_block
from tesserae.params.types import (
    BatchSize,
    Betas,
    Block,
    Count,
    Dropout,
    Fraction,
    Name,
    Positive,
    Rate,
    Temperature,
    Weight,
)

COLOURED = ("image", "low_resolution")  # views whose reconstructions LPIPS judges


class VQGANParams(Block):
    """One VQGAN: its input, its network, its objective, its training."""

    view: Literal["image", "segmentation", "depth", "edges", "low_resolution"] = Field(
        "image", description="image | segmentation | depth | edges | low_resolution: what the network reads")
    column: Name = Field("image", description="of the prepared set: the picture, or one paired with it")
    ignore_index: Annotated[int, Field(ge=-1, le=255)] = Field(
        -1, description="index of no class, often 255, left out of input, loss, error and mIoU; -1: none")
    # network
    channels: Annotated[int, Field(ge=1, le=4096)] = Field(AUTO, description="width of the first level")
    channel_mult: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)] = Field(
        [1, 1], description="width of each level, in units of channels")
    res_blocks: Annotated[int, Field(ge=1, le=16)] = Field(
        1, description="residual blocks a level (the decoder has one more)")
    patch: Literal[1, 2, 4, 8] = Field(
        4, description="pixels a side folded into channels before the first level; the paper: 1")
    refine: Annotated[int, Field(ge=0, le=256)] = Field(
        8, description="channels of a last layer at full resolution; 0: none")
    attention: bool = Field(True, description="one self-attention layer at the lowest resolution")
    attention_levels: Annotated[list[Annotated[int, Field(ge=0, le=7)]], Field(max_length=8)] = Field(
        [], description="levels with it after each residual block; 0: full resolution")
    z_channels: Annotated[int, Field(ge=1, le=4096)] = Field(
        AUTO, description="width on either side of the quantizer")
    dropout: Dropout = Field(0.0, description="in the residual blocks")
    quantizer: Literal["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"] = Field(
        "nearest", description="nearest: the paper's | ema | simvq | fsq | lfq | gumbel")
    codebook_size: Annotated[int, Field(ge=2, le=1_048_576)] = Field(
        256, description="K; fsq has the product of its levels, 240 for 256")
    codebook_dim: Annotated[int, Field(ge=1, le=4096)] = Field(32, description="n_z")
    gradient: Literal["straight_through", "rotation"] = Field(
        "straight_through", description="straight_through | rotation: of z_q with respect to z_hat")
    codebook_init: Literal["data", "uniform", "none"] = Field(
        AUTO, description="data (auto): codes start as encoder outputs | uniform: in +-1/K")
    revive_after: Count = Field(
        AUTO, description="steps without use after which a code moves to an encoder output (auto: 50); 0: never")
    # objective
    pixel_loss: Literal["l1", "l2", "cross_entropy"] = Field(
        "l1", description="l1 | l2 | cross_entropy, for segmentation")
    pixel_weight: Weight = Field(1.0, description="of the pixel loss")
    perceptual_weight: Weight = Field(2.0, description="w_p of LPIPS (VGG); 0: none")
    perceptual_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="fraction of each batch that LPIPS judges: fewer, faster")
    perceptual_start: Count = Field(AUTO, description="steps before LPIPS joins, which are much quicker")
    codebook_weight: Weight = Field(AUTO, description="|| sg[E(x)] - z_q ||^2 (auto: 1)")
    commitment_weight: Weight = Field(AUTO, description="beta, || sg[z_q] - E(x) ||^2 (auto: 0.25)")
    entropy_weight: Weight = Field(AUTO, description="each vector's entropy minus the batch's (auto: 0.1)")
    kl_weight: Weight = Field(AUTO, description="divergence from the uniform prior (auto: 5e-4)")
    temperature_start: Temperature = Field(
        AUTO, description="of the Gumbel noise, which falls along a cosine (auto: 0.9)")
    temperature_end: Temperature = Field(AUTO, description="of the Gumbel noise at the end (auto: 0.1)")
    gan_loss: Literal["hinge", "vanilla", "none"] = Field(
        "hinge", description="hinge | vanilla: the log form | none")
    gan_weight: Weight = Field(0.4, description="multiplies lambda")
    discriminator: Literal["patch", "features"] = Field(
        "features", description="patch: PatchGAN, the paper's | features: of LPIPS's network, learns sooner")
    disc_start: Count = Field(AUTO, description="steps before the discriminator joins")
    disc_channels: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="width of its first layer; of features: of its heads")
    disc_layers: Annotated[int, Field(ge=1, le=6)] = Field(
        2, description="patch: its strided layers | features: VGG's layers that it judges, from the second")
    # training
    steps: Positive = Field(AUTO, description="training steps")
    batch_size: BatchSize = Field(AUTO, description="pictures a step")
    optimiser: Literal["adam", "muon"] = Field(
        "muon", description="muon: for the inner convolutions, the rest by Adam; learns faster | adam: the paper's")
    lr: Rate = Field(AUTO, description="Adam's; the paper: 4.5e-6 x batch size")
    muon_lr: Rate = Field(AUTO, description="Muon's, in Adam's scale")
    codebook_lr: Fraction = Field(AUTO, description="the codes' own, by Adam (auto: 5e-3)")
    betas: Betas = Field([0.9, 0.99], description="Adam's averages; the paper: [0.5, 0.9]")
    disc_lr: Rate = Field(2.0e-3, description="the discriminator's, by Adam; for patch 2.0e-4")
    disc_betas: Betas = Field([0.5, 0.9], description="the discriminator's")
    warmup: Count = Field(AUTO, description="steps of linear warm-up")
    cooldown: Fraction = Field(0.5, description="last fraction of the training, in which the rate falls to zero")
    grad_clip: Weight = Field(1.0, description="largest gradient norm; 0: no clipping")
    flip: bool = Field(True, description="mirror half of the pictures")
    zoom: Annotated[float, Field(ge=1, le=4)] = Field(
        1.0, description="largest random enlargement before cropping; 1: none")
    crop: Annotated[int, Field(ge=0, le=4096)] = Field(
        64, description="pixels a side of the squares trained on, cropped at random; 0: whole pictures")
    max_seconds: Count = Field(
        0, description="stop (with the cool-down fitted in) after this time; 0: after `steps`")
    log_every: Positive = Field(20, description="steps")
    sample_every: Positive = Field(AUTO, description="steps between pictures of reconstructions")
    eval_every: Positive = Field(AUTO, description="steps between evaluations")
    eval_images: Positive = Field(48, description="held-out pictures in each evaluation")
    checkpoint_every: Positive = Field(AUTO, description="steps between checkpoints")

    @property
    def downsampling(self) -> int:
        """f: pixels a side that one code stands for."""
        return downsampling(self.patch, self.channel_mult)

    @property
    def entries(self) -> int:
        """How many codes the codebook has."""
        return entries(self.quantizer, self.codebook_size)

    @property
    def judges_features(self) -> bool:
        """Whether there is a discriminator of LPIPS's features."""
        return self.gan_loss != "none" and self.discriminator == "features"

    @model_validator(mode="before")
    @classmethod
    def _automatic(cls, values: object) -> object:
        """`auto` becomes a value: the quantizer's authors', or the neutral one, or the default size's."""
        return completed_block("vqgan", values) if isinstance(values, dict) else values

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
        if self.view not in COLOURED and (self.perceptual_weight or self.gan_loss != "none"):
            raise ValueError(f"view = {self.view!r} has no colours for LPIPS and the discriminator to judge; set "
                             "perceptual_weight: 0 and gan_loss: none")
        if self.judges_features and self.disc_layers > 4:
            raise ValueError(f"disc_layers = {self.disc_layers} must be at most 4 with discriminator = 'features', "
                             "which judges that many layers of VGG")
        if self.crop % self.downsampling:
            raise ValueError(f"crop = {self.crop} must be a multiple of the downsampling f = {self.downsampling}")
        return self
