"""Widgets to play with trained models in a notebook: draw, complete, take a picture apart into its codes."""

from tesserae.playground.panels import Panel, codes_panel, complete_panel, draw_panel
from tesserae.playground.work import Models, load_models

__all__ = ["Models", "Panel", "codes_panel", "complete_panel", "draw_panel", "load_models"]
