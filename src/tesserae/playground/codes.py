"""The panel that shows a picture's codes and lets one replace them: click on a code, choose another, paint it."""

from __future__ import annotations

import math

import ipywidgets as widgets
import numpy as np
from torch import Tensor

from tesserae import figures
from tesserae.evaluation.codebook import code_colours
from tesserae.playground.parts import (
    FIXED,
    SHOWN,
    ClickPicture,
    Panel,
    arranged,
    button,
    picture_source,
    whole_number,
)
from tesserae.playground.work import Models, encode, paint


def codes_panel(models: Models) -> Panel:
    """Choose a picture, see its codes and their reconstruction; paint other codes over it.

    A click on the picture, its codes or the reconstruction moves the frame there; one on the codebook chooses a code.
    """
    message, colours = widgets.HTML(), code_colours(models.vqgan.codebook)
    history: list[tuple[Tensor, np.ndarray]] = []  # codes (h,w), and the picture decoded from them
    height, width = models.shape
    side = models.size * max(1, round(SHOWN / models.size))
    views = {name: ClickPicture(side, lambda x, y: move(y, x)) for name in ("picture shown", "codes", "decoded")}
    views["codebook"] = ClickPicture(SHOWN, lambda x, y: choose(y, x))

    def remember(codes: Tensor) -> None:
        history.append((codes, figures.to_pixels(models.vqgan.decode(codes[None]))))

    def start() -> None:
        history.clear()
        remember(encode(models, picture()))
        show()

    def show(_=None) -> None:
        position, (codes, decoded) = (controls["row"].value, controls["column"].value), history[-1]
        shown = {"picture shown": figures.to_pixels(picture()[None]), "codes": colours[codes.numpy()][None],
                 "decoded": decoded}
        for name, pixels in shown.items():
            views[name].show(_framed(pixels, side, models.shape, position))
        show_codebook()
        changed = int((codes != history[0][0]).sum())
        message.value = (f"The frame is on code {int(codes[position])}. The map has {len(codes.unique())} different "
                         f"codes at {height * width} positions, {changed} of them painted.")

    def show_codebook(_=None) -> None:
        views["codebook"].show(_codebook(colours, controls["code"].value))

    def move(y: float, x: float) -> None:
        controls["row"].value, controls["column"].value = int(y * height), int(x * width)

    def choose(y: float, x: float) -> None:
        columns = _columns(len(colours))
        code = int(y * columns) * columns + int(x * columns)
        if code < len(colours):
            controls["code"].value = code

    def put() -> None:
        position = controls["row"].value, controls["column"].value
        remember(paint(history[-1][0], *position, controls["code"].value, controls["brush"].value))
        show()

    def pick() -> None:
        controls["code"].value = int(history[-1][0][controls["row"].value, controls["column"].value])
        show()

    def undo() -> None:
        del history[max(1, len(history) - 1):]
        show()

    def reset() -> None:
        del history[1:]
        show()

    chosen, picture, _ = picture_source(models, message, start)
    controls = {**chosen, "row": whole_number("row", 0, height - 1, height // 2),
                "column": whole_number("column", 0, width - 1, width // 2),
                "code": whole_number("code", 0, models.vqgan.config.codebook_size - 1, 0),
                "brush": whole_number("brush", 1, max(height, width), 1)}
    for name, work in (("pick up", pick), ("paint", put), ("undo", undo), ("reset", reset)):
        controls[name] = button(name.capitalize(), work, message)
    for name in ("row", "column"):
        controls[name].observe(show, "value")
    controls["code"].observe(show_codebook, "value")
    start()
    captions = ("picture", "codes, a colour each", "decoded", "codebook: click on a code to paint with")
    shown = widgets.HBox([widgets.VBox([widgets.Label(caption), view.canvas], layout=FIXED)
                          for caption, view in zip(captions, views.values())], layout={"flex_flow": "row wrap"})
    return Panel(arranged(controls, shown, message), controls | views | {"message": message})


def _framed(pixels: np.ndarray, side: int, shape: tuple[int, int], position: tuple[int, int]) -> np.ndarray:
    """(1,H,W,3) uint8 enlarged to a side, with a frame around one code: (side,side,3)."""
    large = figures.resize(pixels, side // pixels.shape[1])[0].copy()
    code = side // shape[0]
    _frame(large, position[0] * code, position[1] * code, code)
    return large


def _codebook(colours: np.ndarray, chosen: int) -> np.ndarray:
    """(K,3) uint8 -> (SHOWN,SHOWN,3): all codes in rows, each in its colour, the chosen one in a frame."""
    columns = _columns(len(colours))
    numbers = np.arange(SHOWN) * columns // SHOWN  # the row, or the column, of each pixel
    codes = numbers[:, None] * columns + numbers
    pixels = colours[codes.clip(max=len(colours) - 1)]
    pixels[codes >= len(colours)] = 255
    top, left = (int(np.searchsorted(numbers, number)) for number in divmod(chosen, columns))
    _frame(pixels, top, left, max(1, SHOWN // columns))
    return pixels


def _columns(size: int) -> int:
    """Codes in a row of the codebook's picture, which has at most as many rows."""
    return math.ceil(math.sqrt(size))


def _frame(pixels: np.ndarray, top: int, left: int, side: int) -> None:
    """Outline a square in white and black, visible on any picture (H,W,3)."""
    for inset, colour in ((0, 255), (1, 0)):
        if side > 2 * inset:
            y, x = [top + inset, top + side - 1 - inset], [left + inset, left + side - 1 - inset]
            pixels[y, x[0]:x[1] + 1] = colour
            pixels[y[0]:y[1] + 1, x] = colour
