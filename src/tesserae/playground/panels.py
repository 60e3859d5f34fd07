"""The panels that sample new pictures and complete given ones: controls from ipywidgets joined to a Sampler.

Each panel hands out its controls by name, so that it can be tried without a browser.
"""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.figures import to_pixels
from tesserae.playground.parts import (
    LABELS,
    Panel,
    another_seed,
    arranged,
    button,
    class_menu,
    filter_controls,
    message_panel,
    picture_source,
    picture_view,
    png,
    showing_errors,
    values,
)
from tesserae.playground.work import PARTS, Models, kept_pixels, raw_conditions

GREY = 0.6  # of what is not kept of a picture, in [-1,1]


def sample_panel(models: Models) -> Panel:
    """Choose a class and the filters, and a picture whose maps are the condition where there are any; sample.

    The picture and its maps are shown as soon as it is chosen.
    """
    if models.sampler is None:
        return message_panel(models.absent)
    view, condition, message = picture_view(), picture_view(), widgets.HTML()

    def show_condition() -> None:
        if models.condition_views:
            maps = models.sampler.condition_pictures(raw_conditions(models, picture(), number()))
            condition.value = png(to_pixels(torch.cat([to_unit(picture())[None], *maps.values()])))

    chosen, picture, number = picture_source(models, message, show_condition)
    controls = (chosen if models.condition_views else {}) | {"class": class_menu(models)} | filter_controls(models)

    def work() -> None:
        view.value = png(to_pixels(models.sampler.sample(
            controls["class"].value, raw_conditions(models, picture(), number()), (models.size,) * 2,
            **values(controls))))

    controls["sample"] = button("Sample", work, message)
    controls["another"] = another_seed(controls, work, message)
    with showing_errors(message):
        show_condition()
    controls["sample"].click()
    widget = arranged(controls, widgets.VBox([condition, view]), message)
    controls |= {"view": view, "condition": condition, "message": message}
    return Panel(widget, controls)


def complete_panel(models: Models) -> Panel:
    """Choose a picture and the part of it that is kept, which is shown at once; sample the rest."""
    if models.sampler is None:
        return message_panel(models.absent)
    message, view = widgets.HTML(), picture_view()

    def given() -> Tensor:
        """The picture, and the same with what is not kept in grey: (2,3,H,W)."""
        whole = to_unit(picture())
        return torch.stack([whole, torch.where(kept_pixels(models, controls["given"].value), whole, GREY)])

    def show_given(_=None) -> None:
        view.value = png(to_pixels(given()))

    chosen, picture, number = picture_source(models, message, show_given)
    controls = {**chosen, "given": widgets.Dropdown(options=PARTS, description="given", style=LABELS),
                "class": class_menu(models), **filter_controls(models)}
    controls["given"].observe(show_given, "value")
    if models.held_out.labels is not None and len(models.class_names) > 1:
        def follow(_=None) -> None:
            label = int(models.held_out.labels[controls["picture"].value])
            if label in models.class_names:
                controls["class"].value = label

        controls["picture"].observe(follow, "value")
        follow()

    def work() -> None:
        made = models.sampler.complete(
            picture()[None], kept_pixels(models, controls["given"].value).numpy(), controls["class"].value,
            raw_conditions(models, picture(), number()), (models.size,) * 2, **values(controls))
        view.value = png(np.concatenate([to_pixels(given()), to_pixels(made)]))

    controls["sample"] = button("Complete", work, message)
    controls["another"] = another_seed(controls, work, message)
    controls["sample"].click()
    return Panel(arranged(controls, view, message), controls | {"view": view, "message": message})
