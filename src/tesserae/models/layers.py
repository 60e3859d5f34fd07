"""The blocks that encoder and decoder are made of (arXiv 2012.09841, appendix; names of the paper)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm(32), with fewer groups where 32 do not divide the channels."""
    groups = next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 convolution on x where the width changes."""

    def __init__(self, width: int, out_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(out_width)
        self.conv1 = nn.Conv2d(width, out_width, 3, padding=1)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if width == out_width else nn.Conv2d(width, out_width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C',H,W)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.shortcut(x) + h


class Attention(nn.Module):
    """One head of self-attention over all positions, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C,H,W)
        height = x.shape[2]
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b 1 (h w) c -> b c h w", h=height))


class Downsample(nn.Module):
    """Half the size by a strided convolution; one column and row of zeros are added right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C,H/2,W/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B,C,H,W) -> (B,C,2H,2W)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where `attention` is set."""

    def __init__(self, width: int, out_width: int, blocks: int, attention: bool, dropout: float) -> None:
        super().__init__()
        widths = [width] + [out_width] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(i, o, dropout) for i, o in pairwise(widths))
        self.attention = nn.ModuleList(Attention(out_width) if attention else nn.Identity() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block, attend in zip(self.blocks, self.attention):
            x = attend(block(x))
        return x


class Middle(nn.Module):
    """Residual, self-attention, residual at the lowest resolution."""

    def __init__(self, width: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block1 = ResidualBlock(width, width, dropout)
        self.attention = Attention(width) if attention else nn.Identity()
        self.block2 = ResidualBlock(width, width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.attention(self.block1(x)))
