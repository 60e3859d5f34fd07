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
from tesserae.playground.work import PARTS, Models, complete, condition_maps, draw, encode, paint, read_picture

_SHOWN = 224  # pixels a side of a picture on the screen, about


@dataclass
class Panel:
    """A widget to show, and the controls in it by name."""

    widget: widgets.Widget
    controls: dict[str, widgets.Widget] = field(default_factory=dict)


def draw_panel(models: Models) -> Panel:
    """Choose a class and the filters, and a picture whose maps are the condition where there are any; draw."""
    if models.transformer is None:
        return absent(models)
    view, message = widgets.Image(format="png"), widgets.HTML()
    source, picture, number = _source(models, message, lambda: None)
    controls = (source if models.readers else {}) | {"class": classes(models)} | filters(models)

    def work() -> None:
        maps = condition_maps(models, picture(), number())
        view.value = png(draw(models, controls["class"].value, **values(controls), maps=maps))

    controls["draw"], controls["another"] = button("Draw", work, message), _another(controls, work, message)
    controls["draw"].click()
    return Panel(laid(controls, view, message), controls | {"view": view, "message": message})


def complete_panel(models: Models) -> Panel:
    """Choose a picture and what is given of it, draw the rest."""
    if models.transformer is None:
        return absent(models)
    message, view = widgets.HTML(), widgets.Image(format="png")
    source, picture, number = _source(models, message, lambda: None)
    controls = {**source, "given": widgets.Dropdown(options=PARTS, description="given"), "class": classes(models),
                **filters(models)}
    if models.held_out.labels is not None and len(models.class_names) > 1:
        def follow(_=None) -> None:
            controls["class"].value = int(models.held_out.labels[controls["picture"].value])

        controls["picture"].observe(follow, "value")
        follow()

    def work() -> None:
        given, made = complete(models, picture(), controls["given"].value, controls["class"].value,
                               **values(controls), maps=condition_maps(models, picture(), number()))
        view.value = png(torch.cat([to_unit(picture())[None], given[None], made]))

    controls["draw"], controls["another"] = button("Complete", work, message), _another(controls, work, message)
    controls["draw"].click()
    return Panel(laid(controls, view, message), controls | {"view": view, "message": message})


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
        views["picture shown"].value = png(_marked(figures.to_pixels(picture()[None]), models, place))
        views["codes"].value = png(_marked(colours[history[-1].numpy()][None], models, place))
        decoded = models.vqgan.decode(history[-1][None])
        views["decoded"].value = png(_marked(figures.to_pixels(decoded), models, place))
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

    source, picture, _ = _source(models, message, start)
    controls = {**source, "row": whole("row", 0, height - 1, height // 2),
                "column": whole("column", 0, width - 1, width // 2),
                "code": whole("code", 0, models.vqgan.config.codebook_size - 1, 0),
                "brush": whole("brush", 1, max(height, width), 1)}
    for name, work in (("pick up", pick), ("paint", put), ("undo", undo), ("reset", start)):
        controls[name] = button(name.capitalize(), work, message)
    for name in ("row", "column"):
        controls[name].observe(show, "value")
    start()
    captions = ("picture", "codes, a colour each", "decoded")
    shown = widgets.HBox([widgets.VBox([widgets.Label(caption), view])
                          for caption, view in zip(captions, views.values())])
    return Panel(laid(controls, shown, message), controls | views | {"message": message})


# ---------------------------------------------------------------- parts of panels


def absent(models: Models) -> Panel:
    """What to do for a transformer."""
    message = widgets.HTML(models.absent)
    return Panel(message, {"message": message})


def classes(models: Models) -> widgets.Dropdown:
    """The classes to choose from."""
    return widgets.Dropdown(options=[(name, label) for label, name in enumerate(models.class_names)],
                            description="class")


def filters(models: Models, count: int = 4) -> dict[str, widgets.Widget]:
    """Sliders for everything that `values` reads."""
    start, size = models.filters, models.vqgan.config.codebook_size
    return {
        "temperature": widgets.FloatSlider(value=min(2, start.temperature), min=0, max=2, step=0.05,
                                           description="temperature", continuous_update=False),
        "top_k": whole("top-k (0: all)", 0, size, min(start.top_k, size)),
        "top_p": widgets.FloatSlider(value=start.top_p, min=0.05, max=1, step=0.01, description="top-p",
                                     continuous_update=False),
        "count": whole("pictures", 1, 16, count),
        "seed": widgets.BoundedIntText(value=start.seed, min=0, max=2**31 - 1, description="seed"),
    }


def values(controls: dict[str, widgets.Widget]) -> dict[str, float]:
    """What the sliders say, as `work.draw` takes it."""
    return {name: controls[name].value for name in ("temperature", "top_k", "top_p", "count", "seed")}


def whole(name: str, least: int, most: int, value: int) -> widgets.IntSlider:
    """A slider of whole numbers."""
    return widgets.IntSlider(value=value, min=least, max=most, description=name, continuous_update=False)


def _source(models: Models, message: widgets.HTML, changed: Callable[[], None]
            ) -> tuple[dict[str, widgets.Widget], Callable[[], Tensor], Callable[[], int | None]]:
    """A held-out picture by its number or a file of one's own: the controls, who returns the one chosen last,
    and its number; None for a file."""
    number = whole("held out", 0, len(models.held_out) - 1, 0)
    file = widgets.FileUpload(accept="image/*", multiple=False, description="Your picture")
    chosen = {"picture": models.held_out.batch([0])[0], "number": 0}

    def take(picture: Callable[[], Tensor], number: int | None) -> None:
        with _told(message):
            chosen.update(picture=picture(), number=number)
            changed()

    number.observe(lambda change: take(lambda: models.held_out.batch([change["new"]])[0], change["new"]), "value")
    file.observe(lambda change: change["new"] and take(
        lambda: read_picture(change["new"][0]["content"], models.size, models.fit), None), "value")
    return {"picture": number, "file": file}, lambda: chosen["picture"], lambda: chosen["number"]


@contextmanager
def _told(message: widgets.HTML) -> Iterator[None]:
    """Errors meant for the user become the panel's message: a callback's exception would be lost in a log."""
    message.value = ""
    try:
        yield
    except TesseraeError as error:
        message.value = f"<b>{error}</b>"


def button(name: str, work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
    """A button that works, and says in the message what went wrong."""
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

    return button("Another seed", next_seed, message)


def laid(controls: dict[str, widgets.Widget], view: widgets.Widget, message: widgets.HTML) -> widgets.VBox:
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


def png(images: Tensor, columns: int = 6, smallest: int = round(_SHOWN * 0.6)) -> bytes:
    """Pictures in rows as a PNG, enlarged where they are smaller than so many pixels."""
    pixels = figures.to_pixels(images)
    pixels = figures.resize(pixels, max(1, round(smallest / pixels.shape[1])))
    buffer = io.BytesIO()
    figures.grid_image(rearrange(pixels, "b h w c -> b c h w"), columns, 4).save(buffer, "png")
    return buffer.getvalue()
