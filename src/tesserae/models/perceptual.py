"""LPIPS, the learned perceptual distance (Zhang et al., arXiv 1801.03924); its weights: `tesserae.pretrained`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserae.errors import TesseraeError
from tesserae.pretrained import NAMES, imagenet_convolutions, lpips_heads

FeaturePair = tuple[list[Tensor], list[Tensor]]  # a layer's maps (B,C,h,w) each, of x and of x_hat
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_SIDE = {"vgg": 16, "alex": 31}  # pixels a side of which the last tapped layer keeps one
# Convolutions (width, kernel, stride, padding) by stages, each of which ends with a tapped layer.
_STAGES = {
    "vgg": [2 * [(64, 3, 1, 1)], 2 * [(128, 3, 1, 1)], 3 * [(256, 3, 1, 1)], 3 * [(512, 3, 1, 1)],
            3 * [(512, 3, 1, 1)]],
    "alex": [[(64, 11, 4, 2)], [(192, 5, 1, 2)], [(384, 3, 1, 1)], [(256, 3, 1, 1)], [(256, 3, 1, 1)]],
}
_POOLING = {"vgg": (2, range(1, 5)), "alex": (3, range(1, 3))}  # its kernel, and the stages that begin with it


class Backbone(nn.Module):
    """ImageNet convolutions up to the last tapped activation.

    `forward(images (B,3,H,W) in [-1,1]) -> list of feature maps`, one for each of LPIPS's five layers.
    Weights are frozen. Raises TesseraeError for pictures with a side below MIN_SIDE.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net, self.stages = net, _STAGES[net]
        layers = [layer for stage in self.stages for layer in stage]
        inputs = [3, *(layer[0] for layer in layers)]
        self.convs = nn.ModuleList(nn.Conv2d(width, *layer) for width, layer in zip(inputs, layers))
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])

    def forward(self, images: Tensor) -> list[Tensor]:
        if min(images.shape[-2:]) < MIN_SIDE[self.net]:
            height, width = images.shape[-2:]
            raise TesseraeError(f"pictures of {width}x{height} pixels are too small for {NAMES[self.net]}, which "
                                f"needs {MIN_SIDE[self.net]} a side: take larger ones.")
        weight = self.convs[0].weight
        x = ((images.float() - self.shift) / self.scale).to(weight.dtype)
        taps, convs = [], iter(self.convs)
        kernel, pooled = _POOLING[self.net]
        for number, stage in enumerate(self.stages):
            if number in pooled:
                x = F.max_pool2d(x, kernel, 2)
            for _ in stage:
                x = F.relu(next(convs)(x), inplace=True)
            taps.append(x)
        return taps

    @property
    def widths(self) -> list[int]:
        """Channels of each tapped layer."""
        return [stage[-1][0] for stage in self.stages]


class LPIPS(nn.Module):
    """d(x, y) = sum_l mean_ij sum_c w_lc (x_lcij / |x_lij| - y_lcij / |y_lij|)^2.

    `forward(x, y) -> (B,)` for images (B,3,H,W) in [-1,1]. Gradients go to `y` alone: `x` is the real picture.
    """

    def __init__(self, net: str = "vgg") -> None:
        super().__init__()
        self.net = net
        self.backbone = Backbone(net)
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(width)) for width in self.backbone.widths)

    @classmethod
    def load(cls, net: str = "vgg", dtype: torch.dtype = torch.float32) -> LPIPS:
        """LPIPS with its published weights; `net` is "vgg" or "alex", `dtype` that of the convolutions.

        Raises TesseraeError where no ImageNet weights can be had.
        """
        model = cls(net)
        for conv, (weight, bias) in zip(model.backbone.convs, imagenet_convolutions(net)):
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)
        for head, weight in zip(model.heads, lpips_heads(net)):
            head.data.copy_(weight)
        model.backbone.convs.to(dtype)
        return model.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.distance(*feature_pair(self.backbone, x, y))

    def distance(self, real: list[Tensor], made: list[Tensor]) -> Tensor:
        """The same of features that are there already, those of `feature_pair`: -> (B,)."""
        with torch.autocast(made[0].device.type, enabled=False):
            layers = [layer_distance(a, b, head) for a, b, head in zip(real, made, self.heads)]
        return torch.stack(layers).sum(0)


def feature_pair(backbone: nn.Module, x: Tensor, y: Tensor) -> FeaturePair:
    """A frozen network's features of images (B,3,H,W) in [-1,1]: those of `x` without a graph, those of `y` with one.

    They are computed in the network's own precision, also under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            real = backbone(x)
        return real, backbone(y)


def layer_distance(a: Tensor, b: Tensor, head: Tensor, eps: float = 1e-10) -> Tensor:
    """One layer's part of d(x, y), of its features (B,C,H,W) for x and y and its weights (C,): -> (B,)."""
    unit_a, unit_b = (part / (torch.linalg.vector_norm(part, dim=1, keepdim=True) + eps) for part in (a, b))
    weighted = (unit_a - unit_b).square() * head.to(a.dtype)[:, None, None]
    full = torch.promote_types(b.dtype, torch.float32)
    return weighted.sum(1, dtype=full).mean((1, 2))
