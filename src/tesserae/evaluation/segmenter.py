"""A small segmenter fit on real pairs, which says whether a drawn picture has the layout that was asked for.

It is a judge, not a result: it learns from pictures that are softened, tinted and grained by lot, so that what a
VQGAN does to texture and colour costs little, and what is in the wrong place costs all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from tesserae.data.batches import batch_indices, to_unit
from tesserae.errors import TesseraeError
from tesserae.models.layers import norm

WARMUP = 10  # steps
SOFTEST = 2.0  # pixels: the largest standard deviation of the blur that it learns to see through
REACH = 5  # pixels on each side that the blur takes in
TINT, GRAIN = 0.12, 0.06  # standard deviations of a picture's gain and shift a channel, and of its pixels' noise


class Segmenter(nn.Module):
    """A U-Net (arXiv 1505.04597) on patches of pixels folded into channels, which is quick on a CPU.

    `forward(images (B,3,H,W) in [-1,1]) -> logits (B,classes,H,W)`, for any H and W. widths: channels of each
    level, each at half the size of the last. patch: pixels a side that are folded, and unfolded at the end.
    """

    def __init__(self, classes: int, widths: tuple[int, ...] = (32, 64, 128), patch: int = 4) -> None:
        super().__init__()
        folded = 3 * patch**2
        self.classes, self.patch, self.multiple = classes, patch, patch * 2 ** (len(widths) - 1)
        self.stem = _block(folded, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(i, o, 2, stride=2), _block(o, o))
                                  for i, o in pairwise(widths))
        self.middle = _block(widths[-1], widths[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(o, i, 1) for i, o in reversed(list(pairwise(widths))))
        self.up = nn.ModuleList(_block(width, width) for width in reversed(widths[:-1]))
        self.head = nn.Conv2d(widths[0] + folded, classes * patch**2, 1)  # it sees the pixels again: sharp edges

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        padded = F.pad(images, (0, right, 0, below), mode="replicate") if below or right else images
        pixels = rearrange(padded, "b c (h p) (w q) -> b (c p q) h w", p=self.patch, q=self.patch)
        x, levels = self.stem(pixels), []
        for shrink in self.down:
            levels.append(x)
            x = shrink(x)
        x = x + self.middle(x)
        for narrow, mix, finer in zip(self.narrow, self.up, reversed(levels)):
            x = mix(F.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + finer)
        x = self.head(torch.cat([x, pixels.to(x.dtype)], 1))
        logits = rearrange(x, "b (k p q) h w -> b k (h p) (w q)", p=self.patch, q=self.patch)
        return logits[..., :height, :width]


def fit_segmenter(images: Tensor, masks: Tensor, classes: int, steps: int = 240, batch_size: int = 16, seed: int = 0,
                  seconds: float = 0.0, lr: float = 4e-3, dtype: torch.dtype = torch.float32,
                  device: torch.device | str = "cpu",
                  progress: Callable[[int, int], None] | None = None) -> Segmenter:
    """Fit a segmenter on pictures (N,3,H,W) uint8 and their masks (N,H,W) of indices below `classes`.

    Cross-entropy, AdamW, a rate that falls as a cosine to 0; half of the pictures are mirrored, all are softened,
    tinted and grained by lot. `seconds`: end, with the fall of the rate fitted in, after this time; 0: after
    `steps`, and then the weights follow from (pictures, seed) alone. dtype: torch.bfloat16 where the hardware is
    quick at it. progress(done, steps). The global generators stay as they are. Returns it in eval mode, frozen.
    Raises TesseraeError where masks and pictures do not fit.
    """
    _check(images, masks, classes)
    device, generator = torch.device(device), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        segmenter = Segmenter(classes)
    segmenter.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - began) / seconds if seconds else 0.0)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        chosen = torch.from_numpy(batch_indices(len(images), batch_size, step, seed))
        x, target = _mirrored(images[chosen], masks[chosen], generator)
        x = disturbed(to_unit(x), generator).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = segmenter(x)
        loss = F.cross_entropy(logits.float(), target.to(device).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress:
            progress(step + 1, steps)
    return segmenter.eval().requires_grad_(False)


@torch.no_grad()
def predicted(segmenter: Segmenter, images: Tensor, batch_size: int = 64) -> Tensor:
    """The likeliest class of each pixel: images (N,3,H,W), uint8 or floats in [-1,1] -> (N,H,W) int64."""
    device = next(segmenter.parameters()).device
    return torch.cat([segmenter(_unit(part).to(device)).argmax(1).cpu() for part in images.split(batch_size)])


def agreement(segmenter: Segmenter, images: Tensor, masks: Tensor, batch_size: int = 64) -> dict[str, float]:
    """How far the segmenter finds `masks` (N,H,W) in `images` (N,3,H,W), uint8 or floats in [-1,1].

    pixel_accuracy: share of pixels of the asked class; miou: intersection over union of the pixels of a class in
    the whole set, mean over the classes that the masks or the pictures show. Both in [0,1].
    """
    _check(images, masks, segmenter.classes)
    jaccard = MulticlassJaccardIndex(segmenter.classes, average="macro")
    for part, target in zip(images.split(batch_size), masks.split(batch_size)):
        jaccard.update(predicted(segmenter, part, batch_size), target.long())
    counts = jaccard.confmat.double()
    return {"pixel_accuracy": float(counts.trace() / counts.sum()), "miou": float(jaccard.compute())}


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1] as a VQGAN might return them: softened, tinted and grained, each by lot.

    The blur is Gaussian, its standard deviation uniform in [0, SOFTEST] pixels.
    """
    count, device = len(images), images.device
    sigma = torch.rand(count, generator=generator).mul(SOFTEST).clamp_min(0.05)
    taps = torch.arange(-REACH, REACH + 1)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None].to(device)  # (3B,1,taps)
    x = F.pad(rearrange(images, "b c h w -> 1 (b c) h w"), (REACH,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, kernel[..., None], groups=3 * count), kernel[:, :, None], groups=3 * count)
    x = rearrange(x, "1 (b c) h w -> b c h w", c=3)
    gain, shift = torch.randn(2, count, 3, 1, 1, generator=generator).mul(TINT).to(device)
    grain = torch.rand(count, 1, 1, 1, generator=generator) * GRAIN
    noise = torch.randn(images.shape, generator=generator).mul_(grain).to(device)
    return (x * (1 + gain) + shift + noise).clamp(-1, 1)


def _block(width: int, out_width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, out_width, 3, padding=1, bias=False), norm(out_width), nn.ReLU())


def _mirrored(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pairs, by lot, with left and right changed."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return (torch.where(turned[:, None, None, None], images.flip(-1), images),
            torch.where(turned[:, None, None], masks.flip(-1), masks))


def _unit(images: Tensor) -> Tensor:
    return to_unit(images) if images.dtype == torch.uint8 else images.float()


def _check(images: Tensor, masks: Tensor, classes: int) -> None:
    if images.ndim != 4 or masks.shape != (len(images), *images.shape[-2:]) or not len(images):
        raise TesseraeError(f"pictures {tuple(images.shape)} and masks {tuple(masks.shape)} are no pairs: give "
                            "(N,3,H,W) and (N,H,W) of the same pictures at the same size.")
    low, high = int(masks.min()), int(masks.max())
    if low < 0 or high >= classes:
        raise TesseraeError(f"the masks hold indices from {low} to {high}, and there are {classes} classes, 0 to "
                            f"{classes - 1}: mend the masks, or name more classes.")
