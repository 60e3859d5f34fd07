"""How near reconstructions are to their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tesserae.data.pictures import Pictures
from tesserae.data.views import View, view_of
from tesserae.evaluation.codebook import usage_statistics
from tesserae.models.vqgan import VQGAN

_SSIM_WINDOW = 11  # pixels a side; smaller pictures have no SSIM
Distance = Callable[[Tensor, Tensor], Tensor]  # (B,3,H,W) twice -> (B,)


def reconstruction_metrics(model: VQGAN, pictures: Pictures, indices: Sequence[int], batch_size: int,
                           lpips: Distance | None = None) -> dict[str, float]:
    """Measures of decode(encode(x)) over the pictures `indices`, each a mean over pictures.

    What `reconstruction_measures` gives of each, and usage and perplexity of the codebook on these pictures.
    """
    return mean_metrics(*reconstruction_measures(model, pictures, indices, batch_size, lpips))


def mean_metrics(each: dict[str, Tensor], counts: Tensor) -> dict[str, float]:
    """What `reconstruction_metrics` tells of pictures, from the measures of each, (N,), and counts of codes (K,).

    Pictures that have no measure, NaN, are left out of its mean.
    """
    statistics = usage_statistics(counts)
    means = {name: float(values.double().nanmean()) for name, values in each.items()}
    return means | {name: statistics[name] for name in ("usage", "perplexity")}


@torch.no_grad()
def reconstruction_measures(model: VQGAN, pictures: Pictures, indices: Sequence[int], batch_size: int,
                            lpips: Distance | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """Measures of decode(encode(x)) for each of the pictures `indices`, (N,) each, and their counts of codes (K,).

    The measures are those of the model's own view (`data.views`). Of pictures in colour: psnr in dB and ssim in
    [-1,1] of pixels in [0,1]; l1: |x - x_hat| of pixels in [-1,1]; lpips where an LPIPS is given. The model
    should be in eval mode; nothing here is random.
    """
    view, device = view_of(model.config), next(model.parameters()).device
    indices, parts = list(indices), []
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    for start in range(0, len(indices), batch_size):
        x = view.network_input(view.raw(pictures, indices[start:start + batch_size]).to(device))  # (B,C,H,W)
        codes = model.encode(x)
        parts.append(view_metrics(view, model.decode(codes), x, lpips))
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}, counts


def view_metrics(view: View, made: Tensor, real: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """All measures of reconstructions in a view's own form, (B,C,H,W) twice -> (B,) each."""
    return (picture_metrics(made, real, lpips) if view.perceptual else {}) | dict(view.measures(made, real))


def picture_metrics(made: Tensor, real: Tensor, lpips: Distance | None = None) -> dict[str, Tensor]:
    """psnr, ssim, l1 and, with a network, lpips of each picture: (B,3,H,W) in [-1,1] twice -> (B,) each."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # here, for it takes seconds to import

    x, y = (images.float().add(1).div(2).clamp(0, 1) for images in (real, made))
    psnr = peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
    measures = {"psnr": psnr, "ssim": _ssim(y, x), "l1": (made - real).abs().mean((1, 2, 3))}
    return measures if lpips is None else {**measures, "lpips": lpips(real, made)}


def _ssim(y: Tensor, x: Tensor) -> Tensor:
    """SSIM of pixels in [0,1], (B,C,H,W) twice -> (B,), over the windows that lie whole in the picture.

    That is Wang et al.'s and scikit-image's; torchmetrics' own mean takes in windows over a mirrored border.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    reach = _SSIM_WINDOW // 2
    if min(x.shape[-2:]) < _SSIM_WINDOW:
        return torch.full((len(x),), float("nan"))
    _, every = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none",
                                                   return_full_image=True)  # (B,C,H,W)
    return every[..., reach:-reach, reach:-reach].mean((1, 2, 3))
