"""Widgets to play with trained models in a notebook: sample, complete, paint a layout, change a picture's codes."""

from tesserae.playground.codes import codes_panel
from tesserae.playground.painter import paint_panel
from tesserae.playground.panels import complete_panel, sample_panel
from tesserae.playground.parts import ClickPicture, Panel
from tesserae.playground.work import Models, load_models

__all__ = ["ClickPicture", "Models", "Panel", "codes_panel", "complete_panel", "load_models", "paint_panel",
           "sample_panel"]
