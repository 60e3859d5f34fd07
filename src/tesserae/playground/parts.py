"""What the playground's panels are made of: controls, buttons, pictures, and how they are laid out."""

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
    """A picture on the screen that knows where it is clicked on.

    clicked(x, y): is called with the place, as shares of the sides in [0,1). canvas: the widget. value: the picture
    as a PNG.
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


def absent(models: Models) -> Panel:
    """What to do for a transformer."""
    message = widgets.HTML(html.escape(models.absent))
    return Panel(message, {"message": message})


def classes(models: Models) -> widgets.Dropdown:
    """The classes to choose from."""
    options = [(figures.shortened(name), label) for label, name in enumerate(models.class_names)]
    return widgets.Dropdown(options=options, description="class", style=LABELS)


def picture_view() -> widgets.Image:
    """Where a picture will be seen; until there is one nothing is, for an empty picture looks like a broken one."""
    view = widgets.Image(format="png", layout={"display": "none", "max_width": "100%", "align_self": "flex-start"})
    view.observe(lambda change: setattr(view.layout, "display", None if change["new"] else "none"), "value")
    return view


def filters(models: Models, count: int = 4) -> dict[str, widgets.Widget]:
    """Sliders for everything that `values` reads."""
    start, size = models.filters, models.vqgan.config.codebook_size
    return {
        "temperature": widgets.FloatSlider(value=min(2, start.temperature), min=0, max=2, step=0.05,
                                           description="temperature", continuous_update=False, style=LABELS),
        "top_k": whole("top-k (0: all)", 0, size, min(start.top_k, size)),
        "top_p": widgets.FloatSlider(value=start.top_p, min=0.05, max=1, step=0.01, description="top-p",
                                     continuous_update=False, style=LABELS),
        "count": whole("pictures", 1, 16, count),
        "seed": widgets.BoundedIntText(value=start.seed, min=0, max=2**31 - 1, description="seed", style=LABELS),
    }


def values(controls: dict[str, widgets.Widget]) -> dict[str, float]:
    """What the sliders say, as `work.draw` takes it."""
    return {name: controls[name].value for name in ("temperature", "top_k", "top_p", "count", "seed")}


def whole(name: str, least: int, most: int, value: int) -> widgets.IntSlider | widgets.BoundedIntText:
    """A slider of whole numbers; where there is one number alone, that, which cannot be changed."""
    named = {"description": name, "style": LABELS}
    if least >= most:
        return widgets.BoundedIntText(value=least, min=least, max=least, disabled=True, **named)
    return widgets.IntSlider(value=value, min=least, max=most, continuous_update=False, **named)


def source(models: Models, message: widgets.HTML, changed: Callable[[], None]
           ) -> tuple[dict[str, widgets.Widget], Callable[[], Tensor], Callable[[], int | None]]:
    """A held-out picture by its number or a file of one's own: the controls, who returns the one chosen last,
    and its number; None for a file."""
    number = whole("held out", 0, len(models.held_out) - 1, 0)
    file = widgets.FileUpload(accept="image/*", multiple=False, description="Your picture")
    chosen = {"picture": models.held_out.batch([0])[0], "number": 0}

    def take(picture: Callable[[], Tensor], number: int | None) -> None:
        with told(message):
            chosen.update(picture=picture(), number=number)
            changed()

    number.observe(lambda change: take(lambda: models.held_out.batch([change["new"]])[0], change["new"]), "value")
    file.observe(lambda change: change["new"] and take(
        lambda: read_picture(change["new"][0]["content"], models.size, models.fit, models.ranges),
        None), "value")
    return {"picture": number, "file": file}, lambda: chosen["picture"], lambda: chosen["number"]


@contextmanager
def told(message: widgets.HTML) -> Iterator[None]:
    """Errors meant for the user become the panel's message: a callback's exception would be lost in a log."""
    message.value = ""
    try:
        yield
    except TesseraeError as error:
        message.value = f"<b>{html.escape(str(error))}</b>"


def button(name: str, work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
    """A button that works, and says in the message what went wrong."""
    button = widgets.Button(description=name)

    def clicked(_: widgets.Button) -> None:
        button.disabled = True
        try:
            with told(message):
                work()
        finally:
            button.disabled = False

    button.on_click(clicked)
    return button


def another(controls: dict[str, widgets.Widget], work: Callable[[], None], message: widgets.HTML) -> widgets.Button:
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


def png(images: Tensor, columns: int = 6, smallest: int = round(SHOWN * 0.75)) -> bytes:
    """Pictures in rows as a PNG, enlarged where they are smaller than so many pixels."""
    pixels = figures.to_pixels(images)
    pixels = figures.resize(pixels, max(1, round(smallest / pixels.shape[1])))
    return png_bytes(figures.grid_image(rearrange(pixels, "b h w c -> b c h w"), columns, 4))


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()
