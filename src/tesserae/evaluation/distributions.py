"""How similar two sets of pictures are, by their features: Fréchet and kernel distance, precision, recall, score.

All of it is float64, in blocks of bounded size, on the device of the features where that supports float64. Each
measure is also computed for bootstrap resamples of the generated pictures, with the same reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tesserae.evaluation.intervals import RESAMPLES, resampled_counts

BLOCK = 1 << 24  # elements of the largest matrix between two sets that is held at once
NEAREST = 3  # k of precision and recall, as published
CHEAP = 300  # side of the matrices of which RESAMPLES spectra take seconds; of larger ones there are fewer
LEAST_RESAMPLES = 20


def exact(values: Tensor) -> Tensor:
    """float64, on the values' own device or, where that has none (Apple's), on the CPU."""
    try:
        return values.double()
    except TypeError:
        return values.cpu().double()


@dataclass(frozen=True)
class SetStatistics:
    """A set of N pictures: features (N,D) float32; float64: their mean (D,), R (r,D) with R^T R their covariance."""

    features: Tensor
    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> SetStatistics:
        """Of features (N,D), N >= 2. r = min(N,D)."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features of shape {tuple(features.shape)} are no set of pictures")
        x = exact(features)
        mean = x.mean(0)
        root = (x - mean) / (len(x) - 1) ** 0.5
        if len(root) > root.shape[1]:
            root = torch.linalg.qr(root, mode="r").R
        return cls(features.float(), mean, root)

    def to(self, device: torch.device) -> SetStatistics:
        """On another device."""
        return SetStatistics(self.features.to(device), self.mean.to(device), self.root.to(device))

    def __len__(self) -> int:
        return len(self.features)


def frechet(a: SetStatistics, b: SetStatistics) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. (arXiv 1706.08500).

    The last trace is the sum of the singular values of R_a R_b^T: exact also where there are fewer pictures than
    dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions do not compare")
    between = (a.mean - b.mean).square().sum()
    product = torch.linalg.svdvals(a.root @ b.root.T).sum()
    return max(0.0, float(between + a.root.square().sum() + b.root.square().sum() - 2 * product))


def frechet_resampled(features: Tensor, reference: SetStatistics) -> Tensor:
    """`frechet` of bootstrap resamples of features (N,D) to the reference: (B,), B at most RESAMPLES.

    Resamples of thousands of pictures in thousands of dimensions take seconds each: there are fewer of them, at least
    LEAST_RESAMPLES.
    """
    x = exact(features) - reference.mean
    count, product = len(x), x @ reference.root.T  # (N,D), (N,r)
    side = max(1, min(count, len(reference.root)))
    resamples = int(min(RESAMPLES, max(LEAST_RESAMPLES, RESAMPLES * (CHEAP / side) ** 3)))
    weights = resampled_counts(count, resamples).to(x.device)  # (B,N)
    means = weights @ x / count  # (B,D), of x - m_b
    between = means.square().sum(1)
    trace = (weights @ x.square().sum(1) - count * between) / (count - 1)
    roots = torch.stack([_trace_of_root(product, weight) for weight in weights])
    return (between + trace + reference.root.square().sum() - 2 * roots).clamp_min(0).cpu()


def _trace_of_root(product: Tensor, weight: Tensor) -> Tensor:
    """tr (S_a S_b)^(1/2) of one resample, from x R_b^T (N,r) and how often each row counts (N,)."""
    count = weight.sum()
    rows = (product - weight @ product / count)[weight > 0] * (weight[weight > 0] / (count - 1)).sqrt()[:, None]
    square = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return torch.linalg.eigvalsh(square).clamp_min(0).sqrt().sum()


def kernel_distance(features: Tensor, reference: Tensor) -> tuple[float, Tensor]:
    """The unbiased squared MMD with k(x,y) = (x.y / D + 1)^3, Binkowski et al. (arXiv 1801.01401).

    features (N,D) and reference (M,D), N, M >= 2 -> (value, its resamples, RESAMPLES at most). All pairs count, so
    the value is the mean over all subsets, of which other implementations sample some. Pairs of a picture with itself
    do not count in resamples, either.
    """
    from torchmetrics.image.kid import poly_kernel  # here, for it takes seconds to import

    x, y = exact(features), exact(reference)
    weights = torch.cat([torch.ones(1, len(x), dtype=torch.float64), resampled_counts(len(x))])  # (1+B,N)
    weights = weights.to(x.device)
    within, across = torch.zeros(len(weights), dtype=torch.float64, device=x.device), []
    for rows in torch.arange(len(x), device=x.device).split(_rows(max(len(x), len(y)))):
        kernel = poly_kernel(x[rows], x)  # (R,N)
        kernel[torch.arange(len(rows)), rows] = 0
        within += (weights[:, rows] * (weights @ kernel.T)).sum(1)
        across.append(poly_kernel(x[rows], y).mean(1))
    pairs = weights.sum(1).square() - weights.square().sum(1)  # of two different pictures
    known = sum(float(poly_kernel(part, y).sum()) for part in y.split(_rows(len(y))))
    known -= float((y.square().sum(1) / y.shape[1] + 1).pow(3).sum())
    values = within / pairs + known / (len(y) * (len(y) - 1)) - 2 * weights @ torch.cat(across) / len(x)
    return float(values[0]), values[1:][pairs[1:] > 0].cpu()  # of few pictures, a resample may be one of them alone


def precision_recall(features: Tensor, reference: Tensor, k: int = NEAREST) -> tuple[Tensor, Tensor]:
    """Which generated pictures lie in the reference's manifold, (N,), and which real ones in theirs, (M,): 0 or 1.

    Kynkäänniemi et al. (arXiv 1904.06991): a manifold is the union of balls about its pictures, each reaching to the
    k-th nearest other one. The means are precision and recall. N, M > k.
    """
    x, y = exact(features), exact(reference)
    return _covered(x, y, _radii(y, k)).cpu(), _covered(y, x, _radii(x, k)).cpu()


def _radii(points: Tensor, k: int) -> Tensor:
    """The distance of each to its k-th nearest other one, (N,D) -> (N,)."""
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in points.split(_rows(len(points)))])


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    return torch.cat([(torch.cdist(part, centres) <= radii).any(1) for part in points.split(_rows(len(centres)))]
                     ).double()


def inception_score(logits: Tensor, splits: int = 1) -> tuple[float, Tensor]:
    """exp of the mean KL(p(y|x) || p(y)), Salimans et al. (arXiv 1606.03498), mean over `splits` parts of the set.

    logits (N,C), without the last layer's bias -> (value, (RESAMPLES,) of resamples of the whole set). Parts are
    taken from an order that has nothing to do with the set's, the same in every run.
    """
    logs = exact(logits).log_softmax(1)
    p = logs.exp()
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0)).to(p.device)
    parts = order.chunk(splits)
    ones = [torch.ones(1, len(part), dtype=torch.float64, device=p.device) for part in parts]
    scores = [_score(p[part], logs[part], one) for part, one in zip(parts, ones)]
    weights = resampled_counts(len(p)).to(p.device)
    return float(torch.cat(scores).mean()), _score(p, logs, weights).cpu()


def _score(p: Tensor, logs: Tensor, weights: Tensor) -> Tensor:
    """One score for each row of weights (B,N), how often each picture counts: (B,)."""
    total = weights.sum(1)
    marginal = weights @ p / total[:, None]  # (B,C)
    entropy = torch.special.xlogy(marginal, marginal).sum(1)
    return (weights @ (p * logs).sum(1) / total - entropy).exp()


def _rows(columns: int) -> int:
    return max(1, BLOCK // max(1, columns))
