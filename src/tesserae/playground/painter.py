"""Paint a layout with a brush of classes, and sample pictures for it, at any size."""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np
import torch
from ipycanvas import Canvas, hold_canvas

from tesserae.data.external import external_condition
from tesserae.figures import to_pixels
from tesserae.playground.parts import (
    FIXED,
    LABELS,
    Panel,
    arranged,
    button,
    class_menu,
    filter_controls,
    message_panel,
    picture_view,
    png,
    values,
    whole_number,
)
from tesserae.playground.work import Models, save_layout, stroke
from tesserae.scenes.render import SEGMENT_NAMES, SEGMENT_PALETTE

SCREEN = 384  # pixels of the canvas's longer side
SIZES = {"as the set's pictures": (1, 1), "twice as large": (2, 2), "wide": (1, 4), "four times as large": (4, 4)}


def paint_panel(models: Models) -> Panel:
    """Paint a layout on a canvas; sample pictures for it, or save it as a picture of classes."""
    if models.sampler is None:
        return message_panel(models.absent)
    if models.paintable is None:
        return message_panel("This transformer has no map of classes as its only map, so there is nothing to paint: "
                             "open the playground with the target of one that has, layout for instance.")
    view, message, board = picture_view(), widgets.HTML(), _Board(models)
    colours = board.view.colours
    names = SEGMENT_NAMES[:len(colours)] if colours == list(SEGMENT_PALETTE[:len(colours)]) else range(len(colours))
    controls = {
        "paint with": widgets.Dropdown(description="paint with", style=LABELS,
                                       options=[(str(name), number) for number, name in enumerate(names)]),
        "brush": whole_number("brush", 2, models.size // 2, models.size // 10),
        "size": widgets.Dropdown(options=list(SIZES), description="size", style=LABELS), "class": class_menu(models),
        **filter_controls(models, count=1),
    }
    swatch = widgets.HTML()

    def recolour(_=None) -> None:
        r, g, b = colours[controls["paint with"].value]
        swatch.value = f'<div style="width:{SCREEN}px;height:14px;background:rgb({r},{g},{b})"></div>'

    def progress(done: int, total: int) -> None:
        message.value = f"{done:,} of {total:,} codes"

    def work() -> None:
        height, width = board.layout.shape
        raw = torch.from_numpy(board.layout)[None, None]
        made = models.sampler.sample(controls["class"].value, {models.paintable: raw}, (height, width),
                                     progress=progress, **values(controls))
        view.value = png(to_pixels(made), columns=1 if width > height else 3, smallest=SCREEN)
        message.value = ""

    def fill() -> None:
        board.fill(controls["paint with"].value)

    def save() -> None:
        path = save_layout(models, torch.from_numpy(board.layout))
        message.value = (f"Saved as {path}: write sample.{models.target}.condition_image: {path} into params.yaml, "
                         "and that stage samples pictures for it, too.")

    board.brush = lambda: (controls["brush"].value, controls["paint with"].value)
    controls["paint with"].observe(recolour, "value")
    controls["size"].observe(lambda change: board.resize(SIZES[change["new"]]), "value")
    for name, does in (("Sample", work), ("Fill", fill), ("Example", board.example), ("Save", save)):
        controls[name.lower()] = button(name, does, message)
    recolour()
    board.example()
    shown = widgets.HBox([widgets.VBox([swatch, board.canvas], layout=FIXED), view], layout={"flex_flow": "row wrap"})
    return Panel(arranged(controls, shown, message), controls | {"view": view, "message": message, "board": board})


class _Board:
    """A layout (H,W) uint8 of classes, and the canvas that shows it. `brush` returns radius and class."""

    def __init__(self, models: Models) -> None:
        self.size, self.view = models.size, models.condition_views[models.paintable]
        self.colours = np.asarray(self.view.colours, np.uint8)
        self.canvas, self.last = Canvas(width=SCREEN, height=SCREEN, layout=FIXED), None
        self.brush = lambda: (8, 0)
        self.layout = np.zeros((self.size, self.size), np.uint8)
        self.canvas.on_mouse_down(self.down)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(self.up)
        self.canvas.on_mouse_out(self.up)

    @property
    def zoom(self) -> float:
        """Canvas pixels a pixel of the layout."""
        return self.canvas.width / self.layout.shape[1]

    def down(self, x: float, y: float) -> None:
        """The brush is set down."""
        self.last = x, y
        self.move(x, y)

    def move(self, x: float, y: float) -> None:
        """The brush moves to (x, y), in canvas pixels, and paints while it is down."""
        if self.last is None:
            return
        radius, value = self.brush()
        start, end = ((px / self.zoom, py / self.zoom) for px, py in (self.last, (x, y)))
        stroke(self.layout, start, end, radius * self.layout.shape[0] / self.size, value)
        self.last = x, y
        self.show()

    def up(self, x: float = 0, y: float = 0) -> None:
        """The brush is lifted."""
        self.last = None

    def fill(self, value: int) -> None:
        """Set all pixels to one class."""
        self.layout[:] = value
        self.show()

    def example(self) -> None:
        """A painted landscape, where the classes are the built-in scenes'; else bands."""
        found = external_condition("", {"layout": self.view}, self.layout.shape, None)
        if found:
            self.layout[:] = found["layout"][0, 0].numpy()
        else:
            bands = np.arange(self.layout.shape[0]) * len(self.colours) // self.layout.shape[0]
            self.layout[:] = bands[:, None]
        self.show()

    def resize(self, times: tuple[int, int]) -> None:
        """Take another size, and stretch the layout over it."""
        height, width = (self.size * each for each in times)
        rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), self.layout.shape))
        self.layout = np.ascontiguousarray(self.layout[rows[:, None], columns])
        self.canvas.width = SCREEN if width <= height else 2 * SCREEN
        self.canvas.height = self.canvas.width * height // width
        self.show()

    def show(self) -> None:
        """Show the layout in its classes' colours."""
        pixels = self.colours[self.layout]
        rows = (np.arange(self.canvas.height) * self.layout.shape[0]) // self.canvas.height
        columns = (np.arange(self.canvas.width) * self.layout.shape[1]) // self.canvas.width
        with hold_canvas(self.canvas):
            self.canvas.put_image_data(pixels[rows[:, None], columns], 0, 0)
