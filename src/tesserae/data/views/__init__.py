"""Views: what a VQGAN sees of each picture - the picture itself, or something paired with it or computed from it.

A view is one small object (see `base.View`): where it comes from, what the network reads, how it is rendered, how a
reconstruction of it is judged. A new one is a file here and a line in `KINDS`; `vqgan.<name>.view` names it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tesserae.data.views.base import View
from tesserae.data.views.classes import Classes
from tesserae.data.views.depth import Depth
from tesserae.data.views.edges import Edges
from tesserae.data.views.low_resolution import LowResolution
from tesserae.data.views.picture import Picture
from tesserae.data.views.viewed import Viewed

KINDS: dict[str, type[View]] = {
    "image": Picture, "segmentation": Classes, "depth": Depth, "edges": Edges, "low_resolution": LowResolution,
}

__all__ = ["KINDS", "Classes", "Depth", "Edges", "LowResolution", "Picture", "View", "Viewed", "legend_of",
           "make_view", "view_of"]


def make_view(kind: str, column: str, *splits, ignore_index: int = -1, key: str = "") -> View:
    """The view of that kind of `column`, as these splits have it: Pictures each.

    Which classes there are is decided by all splits together. ignore_index: the index that is no class, for
    segmentation; key: the parameter that names the column, for the sentence. Raises PicturesError where the column is
    missing or holds something else.
    """
    if kind == Classes.kind:
        return Classes.found_in_all(splits, column, ignore_index, key)
    return max((KINDS[kind].found_in(pictures, column) for pictures in splits), key=lambda view: view.channels)


def legend_of(views: Mapping[str, View], rendered: Mapping[str, Tensor]) -> list:
    """What the colours of rendered views stand for, by the views' names: entries for `figures.with_legend`."""
    return [entry for name, images in rendered.items() for entry in views[name].legend(images)]


def view_of(config) -> View:
    """The view that a trained VQGAN reads and renders, from its VQGANConfig."""
    return KINDS[config.view].recorded(config)
