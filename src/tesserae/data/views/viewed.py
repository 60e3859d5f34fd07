"""The prepared pictures, through a view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tesserae.data.batches import to_bytes
from tesserae.data.pictures import Pictures
from tesserae.data.views.base import View


class Viewed:
    """Pictures as one view shows them. size: pixels a side."""

    def __init__(self, pictures: Pictures, view: View) -> None:
        self.pictures, self.view, self.size = pictures, view, pictures.size

    def __len__(self) -> int:
        return len(self.pictures)

    def network_input(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """What the encoder reads, (B,C,H,W) float32."""
        return self.view.network_input(self.view.raw(self.pictures, indices))

    def batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """What one looks at, (B,3,H,W) uint8."""
        return to_bytes(self.view.rendered(self.network_input(indices)))
