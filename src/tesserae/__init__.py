"""tesserae: VQGAN + transformer image synthesis as notebooks, a pipeline and a small library."""

from tesserae.errors import TesseraeError
from tesserae.params import load_params

__version__ = "0.1.0"
__all__ = ["TesseraeError", "load_params"]
