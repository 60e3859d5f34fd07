"""What a side of a case is made of, how two sides are compared, warmed up and timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tesserae.errors import TesseraeError

WARM = 10.0  # seconds: a first run that took less is followed by a second before anything is timed
AGREE = 0.999  # share of the indices that must be equal: rounding decides between codes that are equally near
APART = 2e-3  # largest difference of other outputs, as a share of their range


@dataclass
class Work:
    """A prepared side.

    run: one run; returns how many units (steps, searches, codes) it did. outputs: what both sides must agree on.
    note: settings that the table says. bf16: whether its products are in bf16.
    """

    run: Callable[[], float]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    note: str = "fp32"
    bf16: bool = False


def check_equal(case: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Raise TesseraeError where outputs differ by more than rounding. Names that ours lacks are not compared."""
    for name, value in ours.items():
        value, wanted = value.detach().cpu(), theirs[name].cpu()
        if value.shape != wanted.shape:
            differs = f"has the shape {tuple(value.shape)}, not {tuple(wanted.shape)}"
        elif value.is_floating_point():
            span = float(wanted.abs().max()) or 1.0
            apart = float((value - wanted).abs().max()) / span
            differs = "" if apart <= APART else f"differs by {apart:.2g} of its range"
        else:
            share = float((value == wanted).double().mean())
            differs = "" if share >= AGREE else f"is equal in {share:.1%} of its places alone"
        if differs:
            raise TesseraeError(f"{case} is not timed: with the reference's weights our {name} {differs}, so both "
                                "sides do not compute the same; compare tesserae.interop.compvis with the checkout.")


def counted(run: Callable[[], float]) -> tuple[float, float]:
    """One run: its units, and the floating-point operations of its matrix products, convolutions and attention."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    # Compiled code and fused attention hide their matrix products from it, those of the backward pass above all.
    with counter, torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        amount = run()
    return amount, float(counter.get_total_flops())


class _NoModules(contextlib.nullcontext):
    """Count by no module: the counter's hooks for that do not admit a leaf whose gradient is asked for twice."""

    parents = frozenset({"Global"})


def warmed(work: Work, device: str, count: bool) -> tuple[float, float]:
    """Run until nothing is done for the first time: units of a run, and, where `count`, its operations, else 0."""
    if count and device == "cuda":  # what is counted is not what is timed: kernels are compiled later
        amount, flops = counted(work.run)
        return max(warmed(work, device, count=False)[0], amount), flops
    began = time.perf_counter()
    amount, flops = counted(work.run) if count else (work.run(), 0.0)
    _wait(device)
    if time.perf_counter() - began < WARM:
        work.run()
    _wait(device)
    return amount, flops


def timed(work: Work, device: str) -> float:
    """Seconds of one run."""
    _wait(device)
    began = time.perf_counter()
    work.run()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
