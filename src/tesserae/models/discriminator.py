"""The discriminators: PatchGAN (arXiv 1611.07004) on pixels, and heads on the features of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from tesserae.models.perceptual import Backbone

FIRST_LAYER = 1  # of the tapped ones: the one before it is at full resolution, where a head costs most


class PatchDiscriminator(nn.Module):
    """D: images (B,3,H,W) in [-1,1] -> logits (B,1,h,w).

    `layers` strided convolutions, the first of `channels` width, doubling up to eight times that;
    LeakyReLU 0.2, BatchNorm but for the first; weights N(0, 0.02), as the reference starts them.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(layers + 1)]
        blocks = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for n, (width, out_width) in enumerate(pairwise(widths), start=1):
            stride = 2 if n < layers else 1
            blocks += [nn.Conv2d(width, out_width, 4, stride=stride, padding=1, bias=False),
                       nn.BatchNorm2d(out_width), nn.LeakyReLU(0.2, inplace=True)]
        self.net = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class FeatureDiscriminator(nn.Module):
    """D on the features of a frozen network, after projected GANs (arXiv 2111.01007): a small head for each layer.

    `forward(features) -> logits`, a map (B,1,h_l,w_l) for each of `layers` tapped layers of `backbone`, from the
    second on; features: maps (B,C_l,h_l,w_l) of all tapped layers, as `backbone(images)` gives them. `backbone` is no
    part of D: it is neither trained nor saved with it, nor moved to a device.

    A head is a 1x1 and a 3x3 convolution of `channels` width with LeakyReLU 0.2, and a 1x1 to the logit. Each
    position's features are scaled to a mean square of 1 first, as LPIPS scales them to unit length, so that layers
    weigh alike. There is no BatchNorm: a logit depends on its own picture alone, however many processes share the
    batch. Raises ValueError where the backbone has fewer layers.
    """

    def __init__(self, backbone: Backbone, channels: int = 32, layers: int = 3) -> None:
        super().__init__()
        self._frozen = (backbone,)  # in a tuple, where torch looks for no weights
        widths = backbone.widths[FIRST_LAYER:]
        if layers > len(widths):
            raise ValueError(f"layers = {layers} must be at most {len(widths)}, the tapped layers from the second on")
        self.heads = nn.ModuleList(_head(width, channels) for width in widths[:layers])

    @property
    def backbone(self) -> Backbone:
        """The frozen network."""
        return self._frozen[0]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [head(_unit_square(layer)) for layer, head in zip(features[FIRST_LAYER:], self.heads)]


def _head(width: int, channels: int) -> nn.Sequential:
    head = nn.Sequential(nn.Conv2d(width, channels, 1), nn.LeakyReLU(0.2),
                         nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 1))
    for conv in head[::2]:
        nn.init.kaiming_normal_(conv.weight, 0.2)
        nn.init.zeros_(conv.bias)
    nn.init.normal_(head[-1].weight, 0.0, 0.02)  # undecided at first
    return head


def _unit_square(features: Tensor) -> Tensor:
    """(B,C,h,w), at every position divided by the root of its mean square; float32 or wider."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-12)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
