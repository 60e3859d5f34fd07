"""The playground's panels: controls from ipywidgets joined to what `work` computes.

Each panel hands out its controls by name, so that it can be tried without a browser.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ipywidgets as widgets
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from tesserae import figures
from tesserae.data.batches import to_unit
from tesserae.errors import TesseraeError
from tesserae.evaluation.codebook import code_colours
from tesserae.playground.work import PARTS, Models, complete, draw, encode, paint, read_picture

_SHOWN = 224  # pixels a side of a picture on the screen, about


@dataclass
class Panel:
    """A widget to show, and the controls in it by name."""

    widget: widgets.Widget
    controls: dict[str, widgets.Widget] = field(default_factory=dict)


def draw_panel(models: Models) -> Panel:
    """Choose a class and the filters, draw."""
    if models.transformer is None:
        return _absent(models)
    controls = {"class": _classes(models)} | _filters(models)
    view, message = widgets.Image(format="png"), widgets.HTML()

    def work() -> None:
        view.value = _png(draw(models, controls["class"].value, **_values(controls)))

    controls["draw"], controls["another"] = _button("Draw", work, message), _another(controls, work, message)
    controls["draw"].click()
    return Panel(_laid(controls, view, message), controls | {"view": view, "message": message})


def complete_panel(models: Models) -> Panel:
    """Choose a picture and what is given of it, draw the rest."""
    if models.transformer is None:
        return _absent(models)
    message, view = widgets.HTML(), widgets.Image(format="png")
    source, picture = _source(models, message, lambda: None)
    controls = {**source, "given": widgets.Dropdown(options=PARTS, description="given"), "class": _classes(models),
                **_filters(models)}
    if models.held_out.labels is not None and len(models.class_names) > 1:
        def follow(_=None) -> None:
            controls["class"].value = int(models.held_out.labels[controls["picture"].value])

        controls["picture"].observe(follow, "value")
        follow()

    def work() -> None:
        given, made = complete(models, picture(), controls["given"].value, controls["class"].value,
                               **_values(controls))
        view.value = _png(torch.cat([to_unit(picture())[None], given[None], made]))

    controls["draw"], controls["another"] = _button("Complete", work, message), _another(controls, work, message)
    controls["draw"].click()
    return Panel(_laid(controls, view, message), controls | {"view": view, "message": message})


def codes_panel(models: Models) -> Panel:
    """Choose a picture, see its codes and what the decoder makes of them; paint other codes over it."""
    views = {name: widgets.Image(format="png") for name in ("picture shown", "codes", "decoded")}
    message, colours = widgets.HTML(), code_colours(models.vqgan.codebook)
    history: list[Tensor] = []
    height, width = models.shape

    def start() -> None:
        history[:] = [encode(models, picture())]
        show()

    def show(_=None) -> None:
        place = controls["row"].value, controls["column"].value
        views["picture shown"].value = _png(_marked(figures.to_pixels(picture()[None]), models, place))
        views["codes"].value = _png(_marked(colours[history[-1].numpy()][None], models, place))
        decoded = models.vqgan.decode(history[-1][None])
        views["decoded"].value = _png(_marked(figures.to_pixels(decoded), models, place))
        changed = int((history[-1] != history[0]).sum())
        message.value = (f"Here stands code {int(history[-1][place])}. There are {len(history[-1].unique())} codes "
                         f"in {height * width} places, {changed} of them painted.")

    def put() -> None:
        place = controls["row"].value, controls["column"].value
        history.append(paint(history[-1], *place, controls["code"].value, controls["brush"].value))
        show()

    def pick() -> None:
        controls["code"].value = int(history[-1][controls["row"].value, controls["column"].value])

    def undo() -> None:
        del history[max(1, len(history) - 1):]
        show()

    source, picture = _source(models, message, start)
    controls = {**source, "row": _whole("row", 0, height - 1, height // 2),
                "column": _whole("column", 0, width - 1, width // 2),
                "code": _whole("code", 0, models.vqgan.config.codebook_size - 1, 0),
                "brush": _whole("brush", 1, max(height, width), 1)}
    for name, work in (("pick up", pick), ("paint", put), ("undo", undo), ("reset", start)):
        controls[name] = _button(name.capitalize(), work, message)
    for name in ("row", "column"):
        controls[name].observe(show, "value")
    start()
    captions = ("picture", "codes, a colour each", "decoded")
    shown = widgets.HBox([widgets.VBox([widgets.Label(caption), view])
                          for caption, view in zip(captions, views.values())])
    return Panel(_laid(controls, shown, message), controls | views | {"message": message})


# ---------------------------------------------------------------- parts of panels


def _absent(models: Models) -> Panel:
    message = widgets.HTML(models.absent)
    return Panel(message, {"message": message})


def _classes(models: Models) -> widgets.Dropdown:
    return widgets.Dropdown(options=[(name, label) for label, name in enumerate(models.class_names)],
                            description="class")


def _filters(models: Models) -> dict[str, widgets.Widget]:
    start, size = models.filters, models.vqgan.config.codebook_size
    return {
        "temperature": widgets.FloatSlider(value=min(2, start.temperature), min=0.1, max=2, step=0.05,
                                           description="temperature", continuous_update=False),
        "top_k": _whole("top-k (0: all)", 0, size, min(start.top_k, size)),
        "top_p": widgets.FloatSlider(value=start.top_p, min=0.05, max=1, step=0.01, description="top-p",
                                     continuous_update=False),
        "count": _whole("pictures", 1, 16, 4),
        "seed": widgets.BoundedIntText(value=start.seed, min=0, max=2**31 - 1, description="seed"),
    }


def _values(controls: dict[str, widgets.Widget]) -> dict[str, float]:
    return {name: controls[name].value for name in ("temperature", "top_k", "top_p", "count", "seed")}


def _whole(name: str, least: int, most: int, value: int) -> widgets.IntSlider:
    return widgets.IntSlider(value=value, min=least, max=most, description=name, continuous_update=False)


def _source(models: Models, message: widgets.HTML,
            changed: Callable[[], None]) -> tuple[dict[str, widgets.Widget], Callable[[], Tensor]]:
    """A held-out picture by its number or a file of one's own: the controls, and who returns the one chosen
    last."""
    number = _whole("held out", 0, len(models.held_out) - 1, 0)
    file = widgets.FileUpload(accept="image/*", multiple=False, description="Your picture")
    chosen = {"picture": models.held_out.batch([0])[0]}

    def take(picture: Callable[[], Tensor]) -> None:
        with _told(message):
            chosen["picture"] = picture()
            changed()

    number.observe(lambda change: take(lambda: models.held_out.batch([change["new"]])[0]), "value")
    file.observe(lambda change: change["new"] and take(
        lambda: read_picture(change["new"][0]["content"], models.size, models.fit)), "value")
    return {"picture": number, "file": file}, lambda: chosen["picture"]


@contextmanager
def _told(message: widgets.HTML) -> Iterator[None]:
    """Errors meant for the user become the panel's message: a callback's exception would be lost in a log."""
    message.value = ""
    try:
        yield
    except TesseraeError as error:
        message.value = f"<b>{error}</b>"


def _button(name: str, work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
    button = widgets.Button(description=name)

    def clicked(_: widgets.Button) -> None:
        button.disabled = True
        try:
            with _told(message):
                work()
        finally:
            button.disabled = False

    button.on_click(clicked)
    return button


def _another(controls: dict[str, widgets.Widget], work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
    def next_seed() -> None:
        controls["seed"].value += 1
        work()

    return _button("Another seed", next_seed, message)


def _laid(controls: dict[str, widgets.Widget], view: widgets.Widget, message: widgets.HTML) -> widgets.VBox:
    """Sliders in rows of three, then buttons, the message, the view."""
    buttons = [c for c in controls.values() if isinstance(c, (widgets.Button, widgets.FileUpload))]
    others = [c for c in controls.values() if not isinstance(c, (widgets.Button, widgets.FileUpload))]
    rows = [widgets.HBox(others[start:start + 3]) for start in range(0, len(others), 3)]
    return widgets.VBox([*rows, widgets.HBox(buttons), message, view])


def _marked(pixels: np.ndarray, models: Models, place: tuple[int, int]) -> Tensor:
    """(1,H,W,3) uint8 enlarged, with a frame around one code: (1,3,S,S). A code map comes as large as a
    picture."""
    side = models.size * max(1, round(_SHOWN / models.size))
    large = figures.resize(pixels, side // pixels.shape[1]).copy()
    code = side // models.shape[0]
    top, left = place[0] * code, place[1] * code
    for inset, colour in ((0, 255), (1, 0)):  # white and black: seen on any picture
        y, x = [top + inset, top + code - 1 - inset], [left + inset, left + code - 1 - inset]
        large[:, y, x[0]:x[1] + 1] = colour
        large[:, y[0]:y[1] + 1, x] = colour
    return rearrange(torch.from_numpy(large), "b h w c -> b c h w")


def _png(images: Tensor, columns: int = 6) -> bytes:
    """Pictures in rows as a PNG, enlarged where they are small."""
    pixels = figures.to_pixels(images)
    pixels = figures.resize(pixels, max(1, round(_SHOWN * 0.6 / pixels.shape[1])))
    buffer = io.BytesIO()
    figures.grid_image(rearrange(pixels, "b h w c -> b c h w"), columns, 4).save(buffer, "png")
    return buffer.getvalue()
