"""How many rows go through a transformer's blocks, by whichever way."""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from tesserae.models.packing import PackedLinear

PRODUCTS = (F.linear, torch.ops.mkldnn._linear_pointwise.default)


class Rows(TorchFunctionMode):
    """Within it `count` grows by the rows of the first block's widest product."""

    def __init__(self, model):
        self.block, self.count = model.blocks[0], 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, layer = kwargs or {}, self.block.up
        if function in PRODUCTS:
            weight = kwargs["weight"] if "weight" in kwargs else args[1]
            if weight is (layer.blocks if isinstance(layer, PackedLinear) else layer.weight):
                self.count += args[0][..., 0].numel()
        return function(*args, **kwargs)
