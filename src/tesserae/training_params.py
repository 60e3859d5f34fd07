"""A training's block of params.yaml, made longer or shorter, and which of its parameters have no effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

LENGTHS = ("steps", "max_seconds", "warmup", "perceptual_start", "disc_start", "sample_every", "eval_every",
           "checkpoint_every")
STARTS = {"warmup": "the learning rate does not reach its full value", "perceptual_start": "LPIPS does not join",
          "disc_start": "the discriminator does not join"}
SWITCHES = {"perceptual_start": "perceptual_weight", "disc_start": "gan_loss"}  # 0 and "none" turn these off


def lengthened(block: Any, effort: float, log: Callable[[str], None] = print) -> Any:
    """The block `effort` times as long: its steps, its seconds, and what starts or recurs by steps.

    The steps between two logs, and those after which an unused code is moved, stay.
    """
    if effort == 1:
        return block
    lengths = {name: getattr(block, name) for name in LENGTHS if hasattr(block, name)}
    changed = {name: max(min(1, length), round(length * effort)) for name, length in lengths.items()}
    longer = block.model_copy(update=changed)
    message = f"effort {effort:g}: {longer.steps:,} steps, not {block.steps:,}."
    if block.max_seconds:
        message += f" {longer.max_seconds:,} s, not {block.max_seconds:,} s."
    log(message)
    return longer


def never_reached(block: Any) -> list[str]:
    """A sentence for each start that lies beyond the training's end, so that it does not happen."""
    sentences = []
    for name, effect in STARTS.items():
        start = getattr(block, name, None)
        if start is None or getattr(block, SWITCHES.get(name, name)) in (0, "none"):
            continue
        last = block.steps if name == "warmup" else block.steps - 1
        if start > last:
            sentences.append(f"{name} = {start:,} is beyond the last of {block.steps:,} steps, so {effect}.")
    return sentences


def from_block(kind: type, block: Any, **others: Any) -> Any:
    """A dataclass `kind` whose fields have the values of the block's parameters of the same names, or `others`."""
    values = {field.name: getattr(block, field.name) for field in fields(kind) if hasattr(block, field.name)} | others
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
