"""Every plot and grid: tensors, arrays and tables in, matplotlib figures or PIL images out.

A figure comes back closed (see style.new_figure): return it from a notebook's cell to see it, once.
"""

from tesserae.figures.charts import class_counts, curves, histogram, overlaid, scatter
from tesserae.figures.grids import grid_image, image_grid, reconstruction_grid, resize, to_pixels
from tesserae.figures.style import COLOURS, message, new_axes, new_figure

__all__ = [
    "COLOURS", "class_counts", "curves", "grid_image", "histogram", "image_grid", "message", "new_axes",
    "new_figure", "overlaid", "reconstruction_grid", "resize", "scatter", "to_pixels",
]
