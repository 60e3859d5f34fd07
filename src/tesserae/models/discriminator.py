"""The patch discriminator (PatchGAN, arXiv 1611.07004): one logit for each overlapping patch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


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


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
