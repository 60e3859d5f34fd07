"""params.yaml: every key with its type, its range, its default and its comment, and one clear error for a bad one.

`types` and the blocks (`vqgan`, `transformer`, `blocks`, `project`) are the schema; `sizes` is the dial, `defaults`
fills what a file leaves out, `renamed` knows the names of earlier versions, `reading` reads, `compose` writes.
"""

from tesserae.params.blocks import (
    CodebookParams,
    EvaluationParams,
    HighresParams,
    PrepareParams,
    SampleParams,
    ScenesParams,
)
from tesserae.params.project import MIN_VGG_SIDE, Params
from tesserae.params.reading import check_params, load_params, settings
from tesserae.params.transformer import PLAIN_CONDITIONS, TransformerParams
from tesserae.params.types import ParamsError
from tesserae.params.vqgan import COLOURED, VQGANParams

__all__ = [
    "COLOURED",
    "MIN_VGG_SIDE",
    "PLAIN_CONDITIONS",
    "CodebookParams",
    "EvaluationParams",
    "HighresParams",
    "Params",
    "ParamsError",
    "PrepareParams",
    "SampleParams",
    "ScenesParams",
    "TransformerParams",
    "VQGANParams",
    "check_params",
    "load_params",
    "settings",
]
