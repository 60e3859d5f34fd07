"""Widgets to play with trained models in a notebook: draw, complete, paint a layout, take a picture apart."""

from tesserae.playground.codes import codes_panel
from tesserae.playground.painter import paint_panel
from tesserae.playground.panels import complete_panel, draw_panel
from tesserae.playground.parts import ClickPicture, Panel
from tesserae.playground.work import Models, load_models

__all__ = ["ClickPicture", "Models", "Panel", "codes_panel", "complete_panel", "draw_panel", "load_models",
           "paint_panel"]
