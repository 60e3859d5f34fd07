"""How near reconstructions are to pictures, and sets of pictures to each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tesserae.data.pictures import Pictures
from tesserae.data.views import View, view_of
from tesserae.evaluation.codebook import usage_statistics
from tesserae.models.perceptual import LPIPS, Backbone
from tesserae.models.vqgan import VQGAN

_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # the file that published FIDs are measured with
VGG_SIDE = 64  # pixels that VGG looks at for a Fréchet distance: its time grows with them, ranks change little
_SSIM_WINDOW = 11  # pixels a side; smaller pictures have no SSIM
Distance = Callable[[Tensor, Tensor], Tensor]  # (B,3,H,W) twice -> (B,)


def reconstruction_metrics(model: VQGAN, pictures: Pictures, indices: Sequence[int], batch_size: int,
                           lpips: Distance | None = None) -> dict[str, float]:
    """Measures of decode(encode(x)) over the pictures `indices`, each a mean over pictures.

    What `reconstruction_measures` gives of each, and usage and perplexity of the codebook on these pictures.
    """
    each, codes = reconstruction_measures(model, pictures, indices, batch_size, lpips)
    statistics = usage_statistics(codes)
    means = {name: float(values.double().mean()) for name, values in each.items()}
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
        x = view.seen(view.stored(pictures, indices[start:start + batch_size]).to(device))  # (B,C,H,W)
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


def frechet_distance(features_a: Tensor | np.ndarray, features_b: Tensor | np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features, (N,D) and (M,D), N, M >= 2.

    Heusel et al. (arXiv 1706.08500). The last trace is the sum of the singular values of A B^T, A and B the
    centred features over sqrt(N - 1) and sqrt(M - 1): exact also where there are fewer pictures than
    dimensions.
    """
    a, b = (np.asarray(features, dtype=np.float64) for features in (features_a, features_b))
    if a.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} are no two sets of pictures")
    between = np.square(a.mean(0) - b.mean(0)).sum()
    roots = [_root(features) for features in (a, b)]
    traces = sum(np.square(root).sum() for root in roots)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(0.0, between + traces - 2 * shared))


def _root(features: np.ndarray) -> np.ndarray:
    """R with R^T R = the covariance, (min(N,D),D)."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred


@torch.no_grad()
def vgg_features(images: Tensor, backbone: Backbone) -> Tensor:
    """Images (B,3,H,W) in [-1,1] -> the mean over positions of VGG16's last activations (B,512)."""
    return backbone(images)[-1].float().mean((2, 3))


def feature_network(backbone: Backbone | None = None) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The features for a Fréchet distance, and the distance's honest name: (name, images -> (B,D)).

    "fid_inception" where the published Inception weights lie in torch's cache and torch-fidelity, which knows
    their network, is installed; else "frechet_vgg" on VGG16, of pictures of at most VGG_SIDE pixels, comparable only
    with itself. Images are
    (B,3,H,W) in [-1,1]. backbone: VGG16's, loaded where it is not given.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION
    if weights.is_file() and importlib.util.find_spec("torch_fidelity"):
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
        return "fid_inception", lambda images: network(_bytes(images)).reshape(len(images), -1)
    backbone = backbone or LPIPS.load("vgg").backbone
    return "frechet_vgg", lambda images: vgg_features(at_most(images), backbone)


def at_most(images: Tensor, side: int = VGG_SIDE) -> Tensor:
    """Images (B,C,H,W), made smaller where their longer side is more than `side` pixels."""
    scale = side / max(images.shape[-2:])
    if scale >= 1:
        return images
    size = [max(1, round(own * scale)) for own in images.shape[-2:]]
    return F.interpolate(images.float(), size=size, mode="bilinear", antialias=True, align_corners=False)


def set_features(batches: Iterable[Tensor], features: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Features of a whole set, (N,D) float64, batch by batch."""
    return np.concatenate([features(images).cpu().double().numpy() for images in batches])


def _bytes(images: Tensor) -> Tensor:
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
