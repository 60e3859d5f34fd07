"""The blocks under `transformer:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tesserae.codebook_params import AUTO
from tesserae.params.defaults import completed_block
from tesserae.params.types import BatchSize, Betas, Block, Count, Dropout, Fraction, Name, Positive, Rate, Weight

PLAIN_CONDITIONS = ("class", "coordinates")  # all others are VQGANs, whose codes are prepended


class TransformerParams(Block):
    """One latent transformer: its condition, its network, its training."""

    vqgan: Annotated[str, Field(min_length=1)] = Field(description="whose codes it models")
    condition: Annotated[list[Name], Field(max_length=8)] = Field(
        [], description="what is prepended: class, coordinates, names of VQGANs; [] for nothing")
    window: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="codes a side of the windows trained on; 0: the whole map")
    order: Literal["row", "spiral_in", "spiral_out", "z_curve", "subsample", "alternate"] = Field(
        "row", description="row | spiral_in | spiral_out | z_curve | subsample | alternate")
    prefix_attention: Literal["causal", "full"] = Field(
        "causal", description="causal | full: the condition attends to all of itself")
    # network
    n_layer: Annotated[int, Field(ge=1, le=200)] = Field(AUTO, description="blocks")
    n_head: Annotated[int, Field(ge=1, le=256)] = Field(AUTO, description="attention heads")
    n_embd: Annotated[int, Field(ge=1, le=65_536)] = Field(AUTO, description="width")
    dropout: Dropout = Field(AUTO, description="of embeddings, attention and residuals")
    # training
    pkeep: Fraction = Field(0.95, description="fraction of the input codes kept; the others are random ones")
    steps: Positive = Field(AUTO, description="training steps")
    batch_size: BatchSize = Field(AUTO, description="code maps a step")
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="on several GPUs: ddp, each holds the network | fsdp, a shard of it")
    optimiser: Literal["adamw", "muon"] = Field(
        "muon", description="adamw | muon: for the matrices inside, the rest by Adam; learns faster")
    lr: Rate = Field(AUTO, description="AdamW's")
    muon_lr: Rate = Field(AUTO, description="Muon's, in Adam's scale")
    betas: Betas = Field([0.9, 0.95], description="AdamW's averages")
    weight_decay: Weight = Field(0.01, description="on matrices only")
    warmup: Count = Field(AUTO, description="steps of linear warm-up")
    cooldown: Fraction = Field(0.5, description="last fraction of the training, in which the rate falls to zero")
    grad_clip: Weight = Field(1.0, description="largest gradient norm; 0: no clipping")
    flip: bool = Field(True, description="learn from mirrored pictures, too")
    max_seconds: Count = Field(
        0, description="stop (with the cool-down fitted in) after this time; 0: after `steps`")
    log_every: Positive = Field(20, description="steps")
    sample_every: Positive = Field(AUTO, description="steps between pictures of samples")
    eval_every: Positive = Field(AUTO, description="steps between evaluations")
    eval_images: Positive = Field(64, description="held-out pictures in each evaluation")
    checkpoint_every: Positive = Field(AUTO, description="steps between checkpoints")

    @model_validator(mode="before")
    @classmethod
    def _automatic(cls, values: object) -> object:
        """`auto` becomes the default size's value."""
        return completed_block("transformer", values) if isinstance(values, dict) else values

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
