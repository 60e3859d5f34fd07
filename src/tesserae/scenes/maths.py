"""Functions that round alike on every processor, so that the landscapes are the same everywhere.

NumPy's own in float32 differ in their last bit from one set of instructions to another, which changed a pixel in
every eighth picture. In float64 they differ, too, but hardly ever in what is left of them in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _in_double(function: np.ufunc) -> Callable[..., np.ndarray]:
    def rounded(*numbers) -> np.ndarray:
        return function(*numbers, dtype=np.float64).astype(np.result_type(*numbers))

    rounded.__doc__ = f"`np.{function.__name__}` by way of float64, in the type of what is given."
    return rounded


exp, log, log2, sin, cos, arctan, hypot, power = map(_in_double, (
    np.exp, np.log, np.log2, np.sin, np.cos, np.arctan, np.hypot, np.power))
