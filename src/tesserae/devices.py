"""Accelerate's view of what there is to compute with: the device, the processes, the precision."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from tesserae.accel.precision import bf16_is_fast, emulates_bf16

Log = Callable[[str], None]  # receives messages, a line each


class PrecisionAccelerator(Accelerator):
    """Accelerate's, but with a precision of its own: Accelerate fixes one for all that are made in a process."""

    def __init__(self, bf16: bool) -> None:
        self.bf16 = bf16
        super().__init__(mixed_precision="no")

    @property
    def mixed_precision(self) -> str:
        """"no" for fp32, or "bf16"."""
        return "bf16" if self.bf16 else "no"

    def autocast(self) -> torch.autocast:
        """Within it matrix products and convolutions are computed in this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def make_accelerator(precision: str, threads: int = 0, log: Log = print) -> Accelerator:
    """Accelerate's view of devices and processes; `precision` and `threads` as in params.yaml.

    `log` receives a warning where bf16 is requested that makes everything far slower.
    """
    if threads:
        torch.set_num_threads(threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # without it each process takes itself for the only one
    made = PrecisionAccelerator(bf16=precision == "bf16")
    if precision == "auto":
        made.bf16 = broadcast_object_list([bf16_is_fast(made.device)])[0]  # the first process's
    if precision == "bf16" and made.device.type == "cpu" and emulates_bf16():
        of_first(log, made)("precision: bf16 takes tens of times as long as fp32 on this processor, which has no "
                            "instructions for it; auto takes what is quick here.")
    return made


def of_first(log: Log, accelerator: Accelerator) -> Log:
    """`log` in the first of several processes, which all have the same messages, and nothing in the others."""
    return log if accelerator.is_main_process else lambda message: None


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; a GPU makes it while the processor goes on."""
    return part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device)
