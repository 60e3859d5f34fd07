"""The panels that draw new pictures and complete given ones: controls from ipywidgets joined to what `work` computes.

Each panel hands out its controls by name, so that it can be tried without a browser.
"""

from __future__ import annotations

import ipywidgets as widgets
import torch

from tesserae.data.batches import to_unit
from tesserae.playground.parts import (
    LABELS,
    Panel,
    absent,
    another,
    button,
    classes,
    filters,
    laid,
    picture_view,
    png,
    source,
    told,
    values,
)
from tesserae.playground.work import PARTS, Models, complete, condition_maps, condition_pictures, draw, given_part


def draw_panel(models: Models) -> Panel:
    """Choose a class and the filters, and a picture whose maps are the condition where there are any; draw.

    The picture and its maps are seen as soon as it is chosen.
    """
    if models.transformer is None:
        return absent(models)
    view, condition, message = picture_view(), picture_view(), widgets.HTML()

    def show_condition() -> None:
        if models.readers:
            condition.value = png(condition_pictures(models, picture(), number()))

    chosen, picture, number = source(models, message, show_condition)
    controls = (chosen if models.readers else {}) | {"class": classes(models)} | filters(models)

    def work() -> None:
        maps = condition_maps(models, picture(), number())
        view.value = png(draw(models, controls["class"].value, **values(controls), maps=maps))

    controls["draw"], controls["another"] = button("Draw", work, message), another(controls, work, message)
    with told(message):
        show_condition()
    controls["draw"].click()
    widget = laid(controls, widgets.VBox([condition, view]), message)
    controls |= {"view": view, "condition": condition, "message": message}
    return Panel(widget, controls)


def complete_panel(models: Models) -> Panel:
    """Choose a picture and what is given of it, which is seen at once; draw the rest."""
    if models.transformer is None:
        return absent(models)
    message, view = widgets.HTML(), picture_view()

    def show_given(_=None) -> None:
        view.value = png(torch.stack([to_unit(picture()), given_part(models, picture(), controls["given"].value)]))

    chosen, picture, number = source(models, message, show_given)
    controls = {**chosen, "given": widgets.Dropdown(options=PARTS, description="given", style=LABELS),
                "class": classes(models), **filters(models)}
    controls["given"].observe(show_given, "value")
    if models.held_out.labels is not None and len(models.class_names) > 1:
        def follow(_=None) -> None:
            label = int(models.held_out.labels[controls["picture"].value])
            if label < len(models.class_names):
                controls["class"].value = label

        controls["picture"].observe(follow, "value")
        follow()

    def work() -> None:
        given, made = complete(models, picture(), controls["given"].value, controls["class"].value,
                               **values(controls), maps=condition_maps(models, picture(), number()))
        view.value = png(torch.cat([to_unit(picture())[None], given[None], made]))

    controls["draw"], controls["another"] = button("Complete", work, message), another(controls, work, message)
    controls["draw"].click()
    return Panel(laid(controls, view, message), controls | {"view": view, "message": message})
