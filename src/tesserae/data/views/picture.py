"""The picture itself, or any other paired picture in colour."""

from __future__ import annotations

from torch import Tensor

from tesserae.data.views.base import View


class Picture(View):
    """Three channels in [-1,1]: `column` "image" is the picture, any other a paired one."""

    def of_picture(self, images: Tensor) -> Tensor | None:
        return images if self.column == "image" else None
