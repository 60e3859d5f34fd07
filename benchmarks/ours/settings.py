"""What our rows are timed with: the reference's recipe in fp32, or our own precision and settings."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.cases import DEFAULT, SAME, Plan
from tesserae.params import load_params

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "presets" / "paper-f16-256.yaml"


def paper_block(stage: str, target: str) -> Any:
    """The paper's recipe, as our preset has it."""
    return getattr(load_params(PAPER), stage)[target]


def own_settings(plan: Plan, stage: str, target: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Some settings of ours for the case's sizes; none in the row with the reference's recipe."""
    if plan.mode != DEFAULT:
        return {}
    block = getattr(load_params(ROOT / plan.size["settings"]), stage)[target]
    return {name: getattr(block, name) for name in names}


def own_bf16(plan: Plan) -> bool:
    """Whether our default precision, `auto`, is bf16 on this device."""
    if plan.mode == SAME:
        return False
    from tesserae.accel.precision import bf16_is_fast  # what it imports belongs to this row alone

    return bf16_is_fast(torch.device(plan.device))


def nothing_own(plan: Plan, bf16: bool, recipe: Any = None, own: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether our default is what the row with the reference's recipe has timed already; own: settings of ours."""
    return plan.mode == DEFAULT and not bf16 and all(getattr(recipe, name) == value for name, value in own.items())


def autocast(plan: Plan, bf16: bool) -> AbstractContextManager:
    """The precision that samples are drawn in."""
    return torch.autocast(plan.device, torch.bfloat16, enabled=bf16)


def said(bf16: bool, *others: str) -> str:
    """The settings in words."""
    return ", ".join(["bf16" if bf16 else "fp32", *filter(None, others)])
