"""What the playground's panels are made of: controls, buttons, pictures, and their arrangement."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ipywidgets as widgets
import numpy as np
from einops import rearrange
from ipycanvas import Canvas, hold_canvas
from PIL import Image
from torch import Tensor

from tesserae import figures
from tesserae.errors import TesseraeError
from tesserae.playground.work import Models, read_picture

SHOWN = 224  # pixels a side of a picture on the screen, about
LABELS = {"description_width": "100px"}  # the longest, "top-k (0: all)", fits
FIXED = {"flex": "0 0 auto", "margin": "0 6px 0 0"}  # a canvas beside a wide picture keeps its size


@dataclass
class Panel:
    """A widget to show, and the controls in it by name."""

    widget: widgets.Widget
    controls: dict[str, widgets.Widget | ClickPicture] = field(default_factory=dict)


class ClickPicture:
    """A picture on the screen that reports clicks.

    clicked(x, y) is called with the position, as fractions of the sides in [0,1). canvas: the widget. value: the
    picture as a PNG.
    """

    def __init__(self, side: int, clicked: Callable[[float, float], None]) -> None:
        self.canvas = Canvas(width=side, height=side, layout=FIXED)
        self.pixels = np.full((side, side, 3), 255, np.uint8)
        self.clicked = clicked
        self.canvas.on_mouse_down(self.click)

    def click(self, x: float, y: float) -> None:
        """A click on the canvas, in its pixels."""
        self.clicked(*(min(max(px / self.canvas.width, 0), 1 - 1e-9) for px in (x, y)))

    def show(self, pixels: np.ndarray) -> None:
        """Show (side,side,3) uint8."""
        self.pixels = np.ascontiguousarray(pixels)
        with hold_canvas(self.canvas):
            self.canvas.put_image_data(self.pixels, 0, 0)

    @property
    def value(self) -> bytes:
        return png_bytes(Image.fromarray(self.pixels))


def message_panel(text: str) -> Panel:
    """A panel of words alone, where there is nothing to play with."""
    message = widgets.HTML(html.escape(text))
    return Panel(message, {"message": message})


def class_menu(models: Models) -> widgets.Dropdown:
    """The classes to choose from."""
    options = [(figures.shortened(name), label) for label, name in models.class_names.items()]
    return widgets.Dropdown(options=options, description="class", style=LABELS)


def picture_view() -> widgets.Image:
    """A picture's view, hidden until there is one, because an empty picture looks like a broken one."""
    view = widgets.Image(format="png", layout={"display": "none", "max_width": "100%", "align_self": "flex-start"})
    view.observe(lambda change: setattr(view.layout, "display", None if change["new"] else "none"), "value")
    return view


def filter_controls(models: Models, count: int = 4) -> dict[str, widgets.Widget]:
    """Sliders for everything that `values` reads."""
    start, size = models.filters, models.vqgan.config.codebook_size
    return {
        "temperature": widgets.FloatSlider(value=min(2, start.temperature), min=0, max=2, step=0.05,
                                           description="temperature", continuous_update=False, style=LABELS),
        "top_k": whole_number("top-k (0: all)", 0, size, min(start.top_k, size)),
        "top_p": widgets.FloatSlider(value=start.top_p, min=0.05, max=1, step=0.01, description="top-p",
                                     continuous_update=False, style=LABELS),
        "count": whole_number("pictures", 1, 16, count),
        "seed": widgets.BoundedIntText(value=start.seed, min=0, max=2**31 - 1, description="seed", style=LABELS),
    }


def values(controls: dict[str, widgets.Widget]) -> dict[str, float]:
    """The sliders' values, as `Sampler.sample` takes them."""
    names = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "n": "count", "seed": "seed"}
    return {name: controls[control].value for name, control in names.items()}


def whole_number(name: str, least: int, most: int, value: int) -> widgets.IntSlider | widgets.BoundedIntText:
    """A slider of whole numbers; where there is one number alone, that, which cannot be changed."""
    named = {"description": name, "style": LABELS}
    if least >= most:
        return widgets.BoundedIntText(value=least, min=least, max=least, disabled=True, **named)
    return widgets.IntSlider(value=value, min=least, max=most, continuous_update=False, **named)


def picture_source(models: Models, message: widgets.HTML, changed: Callable[[], None]
                   ) -> tuple[dict[str, widgets.Widget], Callable[[], Tensor], Callable[[], int | None]]:
    """A held-out picture by its number or a file of one's own.

    Returns the controls, a function that returns the picture chosen last, (3,H,W) uint8, and one that returns its
    number, None for a file.
    """
    number = whole_number("held out", 0, len(models.held_out) - 1, 0)
    file = widgets.FileUpload(accept="image/*", multiple=False, description="Your picture")
    chosen = {"picture": models.held_out.batch([0])[0], "number": 0}

    def take(picture: Callable[[], Tensor], number: int | None) -> None:
        with showing_errors(message):
            chosen.update(picture=picture(), number=number)
            changed()

    number.observe(lambda change: take(lambda: models.held_out.batch([change["new"]])[0], change["new"]), "value")
    file.observe(lambda change: change["new"] and take(
        lambda: read_picture(change["new"][0]["content"], models.size, models.fit, models.ranges),
        None), "value")
    return {"picture": number, "file": file}, lambda: chosen["picture"], lambda: chosen["number"]


@contextmanager
def showing_errors(message: widgets.HTML) -> Iterator[None]:
    """Show errors meant for the user in the panel: a callback's exception would be lost in a log."""
    message.value = ""
    try:
        yield
    except TesseraeError as error:
        message.value = f"<b>{html.escape(str(error))}</b>"


def button(name: str, work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
    """A button that does some work, and shows its errors in the message."""
    button = widgets.Button(description=name)

    def clicked(_: widgets.Button) -> None:
        button.disabled = True
        try:
            with showing_errors(message):
                work()
        finally:
            button.disabled = False

    button.on_click(clicked)
    return button


def another_seed(controls: dict[str, widgets.Widget], work: Callable[[], None],
                 message: widgets.HTML) -> widgets.Button:
    """A button that counts the seed up and works again."""
    def next_seed() -> None:
        controls["seed"].value += 1
        work()

    return button("Another seed", next_seed, message)


def arranged(controls: dict[str, widgets.Widget], view: widgets.Widget, message: widgets.HTML) -> widgets.VBox:
    """Sliders in rows of three, then buttons, the message, the view."""
    buttons = [c for c in controls.values() if isinstance(c, (widgets.Button, widgets.FileUpload))]
    others = [c for c in controls.values() if not isinstance(c, (widgets.Button, widgets.FileUpload))]
    rows = [widgets.HBox(others[start:start + 3]) for start in range(0, len(others), 3)]
    return widgets.VBox([*rows, widgets.HBox(buttons), message, view])


def png(pixels: np.ndarray, columns: int = 6, smallest: int = round(SHOWN * 0.75)) -> bytes:
    """Pictures (B,H,W,3) uint8 in rows as a PNG, enlarged where they are smaller than `smallest` pixels."""
    pixels = figures.resize(pixels, max(1, round(smallest / pixels.shape[1])))
    return png_bytes(figures.grid_image(rearrange(pixels, "b h w c -> b c h w"), columns, 4))


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
