"""The blocks of params.yaml that train nothing: data, reports, samples, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tesserae.params.types import Block, Count, Fraction, Name, Positive, Range, Temperature


class ScenesParams(Block):
    """The built-in landscapes, rendered into `data/` where that folder is missing."""

    count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(1200, description="pictures")
    size: Annotated[int, Field(ge=16, le=4096)] = Field(128, description="pixels a side")
    seed: Count = Field(0, description="another seed, other landscapes")


class PrepareParams(Block):
    """Raw folder or hub dataset -> checked, split and resized set."""

    source: Annotated[str, Field(min_length=1)] = Field(
        "data", description="a folder of pictures (class folders give labels), or the name of a dataset on the hub")
    image_size: Annotated[int, Field(ge=8, le=4096)] = Field(
        96, description="pixels a side of the prepared pictures")
    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover", description="cover: scale the short side, crop the rest | contain: whole picture, padded | stretch")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="fraction held out for validation, chosen by content")
    min_side: Positive = Field(32, description="smaller pictures are rejected")
    max_rejected: Fraction = Field(
        0.2, description="the stage stops where a larger fraction is rejected, or a whole folder; 1: never")
    hub_config: str = Field("", description='of a dataset on the hub: its configuration; "": its only one')
    hub_split: str = Field("", description='its splits, such as train or train[:10%]; "": all, as they are')
    hub_revision: str = Field("", description='a branch, a tag or a commit; "": the newest')
    value_ranges: dict[Name, Range] = Field(
        {}, description="black and white of values beyond 8 bits, as {depth: [0, 10000]}; {}: from the set")

    @model_validator(mode="after")
    def _check(self) -> PrepareParams:
        for name, (low, high) in self.value_ranges.items():
            if low >= high:
                raise ValueError(f"value_ranges.{name} = {[low, high]} must rise: black first, then white")
        return self

    @property
    def hub(self) -> dict[str, str]:
        """What is given of a dataset on the hub, as `datasets.load_dataset` names it."""
        given = {"name": self.hub_config, "split": self.hub_split, "revision": self.hub_revision}
        return {name: value for name, value in given.items() if value}


class CodebookParams(Block):
    """What the codebook's report shows."""

    batch_size: Positive = Field(64, description="pictures encoded at once")
    dictionary: Annotated[int, Field(ge=1, le=256)] = Field(24, description="most and least used codes shown")
    patches: Annotated[int, Field(ge=1, le=32)] = Field(6, description="real patches beside each of them")
    num_images: Annotated[int, Field(ge=1, le=64)] = Field(
        16, description="pictures in the maps of where codes occur")


class SampleParams(Block):
    """What is sampled from a trained transformer."""

    temperature: Temperature = Field(1.0, description="0: the likeliest code each time")
    top_k: Count = Field(100, description="0: all codes")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="1: all codes")
    stride: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="codes a side that a window samples, for larger pictures: 1 is exact, more is faster")
    per_class: Positive = Field(6, description="pictures shown of each class")
    num_eval_samples: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        80, description="samples that metrics are computed on: likeness to real pictures, copies")
    completions: Positive = Field(6, description="pictures completed from their upper half")
    neighbours: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="nearest training pictures beside each sample")
    num_conditions: Annotated[int, Field(ge=1, le=64)] = Field(
        6, description="held-out condition maps that pictures are sampled for")
    condition_image: str = Field(
        "", description='a condition from outside the data, a picture file; "": a rendered one')
    seed: Count = Field(0)


Side = Annotated[int, Field(ge=8, le=65_536)]
Size = Annotated[list[Side], Field(min_length=2, max_length=2)]  # height, width in pixels


class HighresParams(Block):
    """Pictures larger than any that the transformer was trained on."""

    sizes: Annotated[list[Size], Field(min_length=1, max_length=16)] = Field(
        [[512, 512], [192, 768]], description="height, width in pixels")
    per_size: Annotated[int, Field(ge=1, le=64)] = Field(1, description="pictures of each size")
    conditions_from: Annotated[str, Field(min_length=1)] = Field(
        "scenes", description="scenes: landscapes rendered anew | held_out: pictures, enlarged | a folder or a file")
    temperature: Temperature = Field(1.0, description="0: the likeliest code each time")
    top_k: Count = Field(100, description="0: all codes")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="1: all codes")
    stride: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="codes a side that a window samples: 1 is exact, more is faster")
    compare_stride: Annotated[int, Field(ge=2, le=256)] = Field(
        4, description="a smaller picture shows what this stride costs and saves")
    tile: Annotated[int, Field(ge=8, le=4096)] = Field(  # tiles overlap by a few codes
        32, description="codes a side that are decoded at once")
    seed: Count = Field(0)


class EvaluationParams(Block):
    """How sets of pictures are compared."""

    inception_weights: str = Field(
        "", description='torch-fidelity\'s Inception weights, a file, for FID; "": torch\'s cache, else VGG16')
    reference: Annotated[int, Field(ge=2, le=100_000)] = Field(
        200, description="real pictures that sets are compared with, at most")
    max_train_images: Annotated[int, Field(ge=2, le=100_000)] = Field(
        2000, description="training pictures among which nearest neighbours are searched, at most")
