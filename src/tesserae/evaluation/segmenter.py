"""A small segmenter fitted to real pairs, which finds out whether a sample has the requested layout.

It measures and is not itself a result. It learns from pictures that are blurred, tinted and noisy at random, so that
a VQGAN's errors of texture and colour hardly count, and objects in the wrong position count fully.
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

from tesserae.data.batches import batch_indices, to_unit
from tesserae.data.palette import NO_CLASS
from tesserae.errors import TesseraeError
from tesserae.evaluation.streams import as_floats

WARMUP = 0.1  # fraction of the training in which the learning rate rises
RARE = 0.25  # a class has the weight frequency^-RARE, so that a small sun counts beside a large sky
GROUPS = 8  # of each GroupNorm: with one group a channel, a picture's brightness would be lost
SOFTEST = 0.8  # pixels: the largest standard deviation of the random blur
REACH = 3  # pixels on each side that the blur takes in
TINT, GRAIN = 0.05, 0.025  # standard deviation of a picture's gain and shift a channel; largest of its noise


class Segmenter(nn.Module):
    """A U-Net (arXiv 1505.04597) on patches of pixels folded into channels, which is quick on a CPU.

    `forward(images (B,3,H,W) in [-1,1]) -> logits (B,classes,H,W)`, for any H and W. widths: channels of each
    level, multiples of 8, each at half the size of the last. patch: pixels a side that are folded, and unfolded
    at the end.
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
        self.head = nn.Conv2d(widths[0] + folded, classes * patch**2, 1)  # it reads the pixels again, for sharp edges

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        return rearrange(self.folded(self.fold(images)), "b k (p q) h w -> b k (h p) (w q)",
                         p=self.patch)[..., :height, :width]

    def fold(self, pixels: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C p p,h,w)."""
        return rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=self.patch, q=self.patch)

    def folded(self, pixels: Tensor) -> Tensor:  # (B,3 p p,h,w) -> (B,classes,p p,h,w)
        x, levels = self.stem(pixels), []
        for shrink in self.down:
            levels.append(x)
            x = shrink(x)
        x = x + self.middle(x)
        for narrow, mix, finer in zip(self.narrow, self.up, reversed(levels)):
            x = mix(F.interpolate(narrow(x), scale_factor=2.0, mode="nearest") + finer)
        x = self.head(torch.cat([x, pixels.to(x.dtype)], 1))
        return rearrange(x, "b (k pq) h w -> b k pq h w", k=self.classes)


def fit_segmenter(images: Tensor, masks: Tensor, classes: int, steps: int = 350, batch_size: int = 8, seed: int = 0,
                  seconds: float = 0.0, lr: float = 2e-2, dtype: torch.dtype = torch.float32,
                  device: torch.device | str = "cpu",
                  progress: Callable[[int, int], None] | None = None) -> Segmenter:
    """Fit a segmenter on pictures (N,3,H,W) uint8 and their masks (N,H,W) of indices below `classes`, or NO_CLASS.

    Cross-entropy, AdamW, a rate that rises and falls as a cosine to 0; half of the pictures are mirrored, all are
    blurred, tinted and made noisy at random. `seconds`: end, with the fall of the rate fitted in, after this time; 0:
    after `steps`, and then the weights follow from (pictures, seed) alone. dtype: torch.bfloat16 where the
    hardware is quick at it. progress(done, steps). The global generators stay as they are. Returns it in eval
    mode, frozen. Raises TesseraeError where masks and pictures do not fit, or no pixel has a class.
    """
    _check(images, masks, classes)
    masks = masks.to(torch.int16)
    has_class = (masks != NO_CLASS).flatten(1).any(1)
    if not has_class.any():
        raise TesseraeError("no pixel of the masks has a class: a segmenter needs pictures with masks.")
    if not has_class.all():
        images, masks = images[has_class], masks[has_class]
    device, generator = torch.device(device), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        segmenter = Segmenter(classes).to(device)
    images, masks = (_enlarged(each, segmenter.multiple) for each in (images, masks))
    weight = _weights(masks, classes).to(device)
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - began) / seconds if seconds else 0.0)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = lr * _rate_factor(done)
        chosen = torch.from_numpy(batch_indices(len(images), batch_size, step, seed))
        x, target = _mirrored(images[chosen], masks[chosen], generator)
        x = segmenter.fold(disturbed(to_unit(x.to(device)), generator))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = segmenter.folded(x)  # (B,classes,pp,h,w)
        target = segmenter.fold(target[:, None]).to(device).long()  # (B,pp,h,w)
        loss = F.cross_entropy(logits.float(), target, weight=weight, ignore_index=NO_CLASS)
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
    return torch.cat([segmenter(as_floats(part).to(device)).argmax(1).cpu() for part in images.split(batch_size)])


def agreement(segmenter: Segmenter, images: Tensor, masks: Tensor, batch_size: int = 64) -> dict[str, float]:
    """How far the segmenter finds `masks` (N,H,W) in `images` (N,3,H,W), uint8 or floats in [-1,1]: `scores`."""
    found = scores(confusions(segmenter, images, masks, batch_size), torch.ones(1, len(masks)))
    return {name: float(values) for name, values in found.items()}


def confusions(segmenter: Segmenter, images: Tensor, masks: Tensor, batch_size: int = 64) -> Tensor:
    """Pixels of each picture by requested class (rows) and found class: (N,classes,classes) int64 on the CPU.

    images (N,3,H,W), uint8 or floats in [-1,1]; masks (N,H,W), whose pixels of NO_CLASS are not counted.
    """
    _check(images, masks, segmenter.classes)
    found, classes = [], segmenter.classes
    for part, target in zip(images.split(batch_size), masks.split(batch_size)):
        target = target.long()
        known = (target != NO_CLASS).flatten(1).long()
        pairs = (target * classes + predicted(segmenter, part, batch_size)).flatten(1) * known  # (B,HW)
        counts = torch.zeros(len(pairs), classes**2, dtype=torch.int64)
        found.append(counts.scatter_add_(1, pairs, known).unflatten(1, (classes, classes)))
    return torch.cat(found)


def scores(counts: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of `confusions` (N,classes,classes), for each row of weights (B,N), how often each picture counts: (B,) each.

    pixel_accuracy: fraction of pixels of the requested class; miou: intersection over union of a class's pixels in
    the whole set, mean over the classes that the masks or the pictures show. Both in [0,1].
    """
    total = torch.einsum("bn,nij->bij", weights.double(), counts.double())
    both = total.diagonal(dim1=1, dim2=2)  # (B,classes)
    union = total.sum(1) + total.sum(2) - both
    shown = union > 0
    miou = (both / union.clamp_min(1)).sum(1) / shown.sum(1).clamp_min(1)
    return {"pixel_accuracy": both.sum(1) / total.sum((1, 2)).clamp_min(1), "miou": miou}


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B,3,H,W) in [-1,1] like a VQGAN's: blurred, tinted and noisy, each at random.

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
    return nn.Sequential(nn.Conv2d(width, out_width, 3, padding=1, bias=False), 
                         nn.GroupNorm(GROUPS, out_width), nn.ReLU())


def _rate_factor(done: float) -> float:
    if done < WARMUP:
        return max(0.02, done / WARMUP)
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))


def _weights(masks: Tensor, classes: int) -> Tensor:
    """Of each class in the loss, (classes,), 1 on average over the pixels; those that never occur have none."""
    known = masks[masks != NO_CLASS].long()
    frequency = torch.bincount(known, minlength=classes).double() / known.numel()
    weights = torch.where(frequency > 0, frequency.clamp_min(1e-6) ** -RARE, 0.0)
    return (weights / (weights * frequency).sum()).float()


def _enlarged(pixels: Tensor, multiple: int) -> Tensor:
    """(...,H,W) uint8 or indices -> sides that are multiples, by repeating the last row and column."""
    rows, columns = (torch.arange(side + -side % multiple).clamp_max(side - 1) for side in pixels.shape[-2:])
    return pixels[..., rows[:, None], columns] if len(rows) + len(columns) > sum(pixels.shape[-2:]) else pixels


def _mirrored(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pairs, at random, with left and right exchanged."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return (torch.where(mirrored[:, None, None, None], images.flip(-1), images),
            torch.where(mirrored[:, None, None], masks.flip(-1), masks))


def _check(images: Tensor, masks: Tensor, classes: int) -> None:
    if images.ndim != 4 or masks.shape != (len(images), *images.shape[-2:]) or not len(images):
        raise TesseraeError(f"pictures {tuple(images.shape)} and masks {tuple(masks.shape)} are no pairs: give "
                            "(N,3,H,W) and (N,H,W) of the same pictures at the same size.")
    known = masks[masks != NO_CLASS] if masks.dtype != torch.uint8 else masks
    low, high = (int(known.min()), int(known.max())) if known.numel() else (0, 0)
    if low < 0 or high >= classes:
        raise TesseraeError(f"the masks hold indices from {low} to {high}, and there are {classes} classes, 0 to "
                            f"{classes - 1}: correct the masks, or name more classes.")
