"""Stage 1's network: x -> E -> z_hat -> nearest code -> z_q -> G -> x_hat (arXiv 2012.09841, section 3.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserae.codebook_params import downsampling, entries, fsq_levels
from tesserae.errors import TesseraeError
from tesserae.models.layers import Downsample, Level, Middle, Upsample, norm
from tesserae.models.quantizers import Quantized, make_quantizer
from tesserae.models.saving import SavedModel


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of a VQGAN; the defaults are the paper's for f=16 on 256x256 pictures.

    `patch` folds patch x patch pixels into channels before the first level (1: none), which spares convolutions at
    full resolution; `refine` adds a last layer of so many channels there, which removes the checkerboard that patches
    leave (0: none). `attention`: in the middle, at the lowest resolution; `attention_levels`: also after each
    residual block of those levels, counted from the highest resolution. `gradient`: see `quantizers.with_gradient`.
    view to float_range: what of a picture the network reads, for `data.views.view_of`. For FSQ, `codebook_size`
    becomes the product of `levels`, which follow from it.
    """

    view: str = "image"
    column: str = "image"
    colours: tuple[int, ...] = ()
    ignore_index: int = -1
    void_colour: int = 0
    whole_range: tuple[float, ...] = ()
    float_range: tuple[float, ...] = ()
    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    patch: int = 1
    refine: int = 0
    attention: bool = True
    attention_levels: tuple[int, ...] = ()
    z_channels: int = 256
    dropout: float = 0.0
    quantizer: str = "nearest"
    codebook_size: int = 1024
    codebook_dim: int = 256
    gradient: str = "straight_through"
    levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.quantizer == "fsq" and not self.levels:
            object.__setattr__(self, "levels", fsq_levels(self.codebook_size))
            object.__setattr__(self, "codebook_size", entries("fsq", self.codebook_size))

    @property
    def downsampling(self) -> int:
        """f: pixels a side that one code stands for."""
        return downsampling(self.patch, self.channel_mult)


class Encoder(nn.Module):
    """E: images (B,C,H,W) -> (B,z_channels,H/f,W/f)."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [c.channels * mult for mult in c.channel_mult]
        self.patch = c.patch
        self.conv_in = nn.Conv2d(c.in_channels * c.patch**2, c.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(i, o, c.res_blocks, n in c.attention_levels, c.dropout)
            for n, (i, o) in enumerate(zip([c.channels, *widths], widths))
        )
        self.downsample = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.middle = Middle(widths[-1], c.attention, c.dropout)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level, downsample in zip(self.levels, [*self.downsample, nn.Identity()]):
            x = downsample(level(x))
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """G: (B,z_channels,h,w) -> images (B,C,f h,f w). It mirrors E with one residual block more a level."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [c.channels * mult for mult in reversed(c.channel_mult)]
        last = len(widths) - 1
        self.patch = c.patch
        self.conv_in = nn.Conv2d(c.z_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], c.attention, c.dropout)
        self.levels = nn.ModuleList(
            Level(i, o, c.res_blocks + 1, last - n in c.attention_levels, c.dropout)
            for n, (i, o) in enumerate(zip([widths[0], *widths], widths))
        )
        self.upsample = nn.ModuleList(Upsample(width) for width in widths[:-1])
        self.norm_out = norm(widths[-1])
        if c.refine:
            self.unfold = nn.Conv2d(widths[-1], c.refine * c.patch**2, 3, padding=1)
            self.conv_out = nn.Conv2d(c.refine, c.out_channels, 3, padding=1)  # G_L, for lambda
        else:
            self.unfold = None
            self.conv_out = nn.Conv2d(widths[-1], c.out_channels * c.patch**2, 3, padding=1)  # G_L, for lambda

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_out(self.features(z))
        return x if self.unfold is not None else F.pixel_shuffle(x, self.patch)

    def features(self, z: Tensor) -> Tensor:
        """What the last layer G_L makes pictures of: (B,z_channels,h,w) -> (B,width,H,W), H and W folded or not."""
        x = self.middle(self.conv_in(z))
        for level, upsample in zip(self.levels, [*self.upsample, nn.Identity()]):
            x = upsample(level(x))
        x = F.silu(self.norm_out(x))
        return x if self.unfold is None else F.silu(F.pixel_shuffle(self.unfold(x), self.patch))


class VQGAN(SavedModel):
    """Encoder, quantizer and decoder, with 1x1 convolutions between z_channels and n_z on either side."""

    config_class = VQGANConfig

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.pre_quant = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.quantizer = make_quantizer(config.quantizer, config.codebook_size, config.codebook_dim, config.gradient,
                                        config.levels)
        self.post_quant = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """images (B,3,H,W) in [-1,1] -> x_hat of the same shape, and what the quantizer did."""
        quantized = self.quantizer(self.latents(images))
        return self.decode_latents(quantized.z_q), quantized

    def latents(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> z_hat (B,n_z,H/f,W/f). Raises TesseraeError where f does not divide H, W."""
        self.map_shape(images)
        return self.pre_quant(self.encoder(images.to(self.dtype)))

    def map_shape(self, images: Tensor) -> tuple[int, int]:
        """(h,w) of the code maps of images (...,H,W). Raises TesseraeError where f does not divide H, W."""
        f, (height, width) = self.config.downsampling, images.shape[-2:]
        if height % f or width % f:
            raise TesseraeError(f"pictures of {width}x{height} pixels do not divide into codes of {f}x{f} pixels: "
                                f"crop or resize them to multiples of {f}.")
        return height // f, width // f

    def decode_latents(self, z_q: Tensor) -> Tensor:
        """z_q (B,n_z,h,w) -> images (B,3,f h,f w), unclamped."""
        return self.decoder(self.post_quant(z_q.to(self.dtype)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> indices (B,h,w) int64, the same in any mode of the model.

        Raises TesseraeError for pictures of another form.
        """
        self._check_images(images)
        if not len(images):
            return images.new_zeros(0, *self.map_shape(images), dtype=torch.int64)
        with evaluating(self):
            return self.quantizer(self.latents(images)).indices

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """indices (B,h,w) int64 -> images (B,3,H,W) float32 in [-1,1].

        Of a VQGAN of classes: logits (B,classes,H,W), unbounded. As `encode`, the same in any mode. Raises
        TesseraeError for what are no indices of this codebook.
        """
        if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
            raise TesseraeError(f"indices are of the type {str(indices.dtype)[6:]}: whole numbers are needed, as "
                                "encode gives them.")
        if indices.ndim != 3 or not all(indices.shape[1:]):
            raise TesseraeError(f"indices have the shape {tuple(indices.shape)}: (pictures, rows, columns) is "
                                "needed, with a row and a column at least.")
        indices = indices.long()
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.config.codebook_size:
            raise TesseraeError(f"indices run from {int(indices.min())} to {int(indices.max())}: "
                                f"this codebook has 0 to {self.config.codebook_size - 1}.")
        with evaluating(self):
            made = self.decode_latents(self.quantizer.lookup(indices)).float()
        return made if self.config.colours else made.clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images)): (B,3,H,W) in [-1,1] -> the same; of a VQGAN of classes logits, as `decode`."""
        return self.decode(self.encode(images))

    def _check_images(self, images: Tensor) -> None:
        channels = self.config.in_channels
        if images.ndim != 4 or images.shape[1] != channels or not all(images.shape[2:]):
            raise TesseraeError(f"pictures have the shape {tuple(images.shape)}: (pictures, {channels}, height, "
                                "width) is needed, with a pixel at least.")
        if not images.is_floating_point():
            raise TesseraeError(f"pictures are of the type {str(images.dtype)[6:]}: floats are needed, those of "
                                "colours from -1 to 1.")

    @property
    def codebook(self) -> Tensor:
        """(K,n_z)."""
        return self.quantizer.codebook

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, which images and z_q are brought to."""
        return self.pre_quant.weight.dtype


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then every module has the mode again that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
