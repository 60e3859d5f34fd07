"""Every plot and grid: tensors, arrays and tables in, matplotlib figures or PIL images out.

A figure comes back closed (see style.new_figure): return it from a notebook's cell to see it, once.
"""

from tesserae.figures.charts import class_counts, curves, histogram, overlaid, scatter
from tesserae.figures.codes import code_maps, code_patches, occurrence, pair_matrix, pairs, projection, usage
from tesserae.figures.grids import (
    grid_image,
    image_grid,
    reconstruction_grid,
    resize,
    stacked_rows,
    to_pixels,
)
from tesserae.figures.latent import histograms, paired_bars, position_map, stacked
from tesserae.figures.legends import with_legend
from tesserae.figures.style import COLOURS, caption, message, new_axes, new_figure, shortened, styled

__all__ = [
    "COLOURS", "caption", "class_counts", "code_maps", "code_patches", "curves", "grid_image", "histogram",
    "histograms", "image_grid", "message", "new_axes", "new_figure", "occurrence", "overlaid", "pair_matrix",
    "paired_bars", "pairs", "position_map", "projection", "reconstruction_grid", "resize", "scatter",
    "shortened", "stacked", "stacked_rows", "styled", "to_pixels", "usage", "with_legend",
]
