"""Measures between sets against SciPy, torchmetrics, torch-fidelity and the definitions written out."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from tesserae.evaluation import distributions
from tesserae.evaluation.distributions import (
    SetStatistics,
    exact,
    frechet,
    frechet_resampled,
    inception_score,
    kernel_distance,
    precision_recall,
)
from tesserae.evaluation.intervals import RESAMPLES, resampled_counts


def gaussian(count, dimensions, shift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dimensions, dimensions))
    return torch.from_numpy(generator.normal(size=(count, dimensions)) @ mixing + shift)


def distance(a, b):
    return frechet(SetStatistics.of(a), SetStatistics.of(b))


@pytest.mark.parametrize("counts", [(200, 150), (9, 200), (7, 9)])
def test_frechet_distance_agrees_with_the_matrix_square_root(counts):
    a, b = gaussian(counts[0], 12), gaussian(counts[1], 12, 1.0, seed=1)
    s_a, s_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = scipy.linalg.sqrtm(s_a @ s_b + 1e-13 * np.eye(12)).real
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(s_a + s_b - 2 * root)
    assert distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)


def test_frechet_distance_agrees_with_torchmetrics():
    a, b = gaussian(300, 8), gaussian(300, 8, 0.5, 1)
    expected = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert distance(a, b) == pytest.approx(float(expected), rel=1e-6)


class Pooled(nn.Module):
    """Features of bytes, as torchmetrics takes them of a network."""

    num_features = 12

    def forward(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)


def test_frechet_distance_agrees_with_torchmetrics_on_pictures():
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randint(high, (60, 3, 16, 16), generator=generator, dtype=torch.uint8) for high in (255, 180)]
    metric = FrechetInceptionDistance(Pooled(), input_img_size=(3, 16, 16)).set_dtype(torch.float64)
    for images, real in zip(sets, (True, False)):
        metric.update(images, real=real)
    assert distance(*(Pooled()(images) for images in sets)) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square_and_of_the_same_set_zero():
    a = gaussian(50, 6)
    assert distance(a, a) == pytest.approx(0, abs=1e-8)
    assert distance(a, a + 2.0) == pytest.approx(6 * 4)


def test_frechet_distance_refuses_what_has_no_covariance_or_other_dimensions():
    for shape in ((1, 4), (5,)):
        with pytest.raises(ValueError, match="no set of pictures"):
            SetStatistics.of(torch.zeros(shape))
    with pytest.raises(ValueError, match="do not compare"):
        distance(torch.zeros(5, 4), torch.zeros(5, 3))


@pytest.mark.parametrize(("count", "known", "dimensions"), [(30, 50, 6), (8, 50, 20), (9, 7, 20)])
def test_resampled_frechet_distances_are_those_of_the_resamples(count, known, dimensions):
    """Brute force: each resample is made of its pictures, as often as they are in it."""
    a, reference = gaussian(count, dimensions), SetStatistics.of(gaussian(known, dimensions, 0.5, 1))
    found = frechet_resampled(a, reference)
    counts = resampled_counts(count, len(found)).long()
    for place in (0, 1, len(found) - 1):
        resample = a.repeat_interleave(counts[place], 0)
        assert float(found[place]) == pytest.approx(frechet(SetStatistics.of(resample), reference), rel=1e-5)


def test_spectra_that_take_long_have_fewer_resamples(monkeypatch):
    monkeypatch.setattr(distributions, "CHEAP", 10)
    a, reference = gaussian(40, 30), SetStatistics.of(gaussian(40, 30, seed=1))
    assert len(frechet_resampled(a, reference)) == distributions.LEAST_RESAMPLES
    assert len(frechet_resampled(a[:, :5], SetStatistics.of(reference.features[:, :5]))) == RESAMPLES


def test_kernel_distance_agrees_with_torchmetrics():
    """A subset as large as the sets: torchmetrics then sees all pairs."""
    a, b = gaussian(24, 12).float() * 40 + 128, gaussian(24, 12, 0.5, 1).float() * 40 + 128
    metric = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=24).set_dtype(torch.float64)
    metric.update(b, real=True)
    metric.update(a, real=False)
    assert kernel_distance(a, b)[0] == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def kernel(x, y):
    return float((x @ y / len(x) + 1) ** 3)


@pytest.mark.parametrize("block", [1, 1 << 24])
def test_kernel_distance_and_its_resamples_are_the_definition(monkeypatch, block):
    monkeypatch.setattr(distributions, "BLOCK", block)
    a, b = gaussian(6, 4), gaussian(9, 4, 1.0, 1)
    value, resampled = kernel_distance(a, b)

    def by_hand(rows):  # pairs of a picture with itself do not count, also where it is there twice
        pairs = [kernel(a[i], a[j]) for i in rows for j in rows if i != j]
        known = [kernel(b[i], b[j]) for i in range(9) for j in range(9) if i != j]
        across = [kernel(a[i], b[j]) for i in rows for j in range(9)]
        return sum(pairs) / len(pairs) + sum(known) / len(known) - 2 * sum(across) / len(across)

    assert value == pytest.approx(by_hand(range(6)))
    for place in range(3):
        rows = torch.arange(6).repeat_interleave(resampled_counts(6)[place].long()).tolist()
        assert float(resampled[place]) == pytest.approx(by_hand(rows))


def test_kernel_distance_of_pictures_like_the_real_ones_is_about_zero():
    half = gaussian(400, 8)
    near, resampled = kernel_distance(half[:200], half[200:])
    far, _ = kernel_distance(half[:200] + 1, half[200:])
    assert abs(near) < 3 * float(resampled.std())
    assert far > 10 * abs(near)


@pytest.mark.parametrize("block", [64, 1 << 24])
def test_precision_and_recall_agree_with_brute_force_and_with_torch_fidelity(monkeypatch, block):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    monkeypatch.setattr(distributions, "BLOCK", block)
    a, b = gaussian(40, 5), gaussian(30, 5, 1.5, 1)

    def covered(points, centres, k=3):
        within = [sorted(float((c - other).norm()) for other in centres)[k] for c in centres]
        return [float(any(float((p - c).norm()) <= radius for c, radius in zip(centres, within))) for p in points]

    precision, recall = precision_recall(a, b)
    assert precision.tolist() == covered(a, b)
    assert recall.tolist() == covered(b, a)
    assert 0 < precision.mean() < 1
    assert 0 < recall.mean() < 1
    expected = calculate_precision_recall_full(a, b)
    assert (float(precision.mean()), float(recall.mean())) == pytest.approx(expected)


def test_inception_score_agrees_with_torchmetrics_and_torch_fidelity():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.randn(60, 10, generator=torch.Generator().manual_seed(0)) * 3
    value, resampled = inception_score(logits)
    metric = InceptionScore(nn.Identity(), splits=1)
    metric.update(logits)
    assert value == pytest.approx(float(metric.compute()[0]), rel=1e-4)
    assert value == pytest.approx(isc_features_to_metric(logits, splits=1)["inception_score_mean"])
    assert 1 < float(resampled.mean()) < 10
    rows = torch.arange(60).repeat_interleave(resampled_counts(60)[0].long())
    assert float(resampled[0]) == pytest.approx(inception_score(logits[rows])[0])


def test_inception_score_of_parts_is_their_mean():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(1)) * 2
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    expected = [inception_score(logits[part])[0] for part in order.chunk(5)]
    assert inception_score(logits, splits=5)[0] == pytest.approx(sum(expected) / 5)


def test_nothing_asks_a_device_without_float64_for_it():
    class Apples:
        """A tensor's stand-in on a device that refuses float64."""

        device = torch.device("mps")

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self):
            return torch.ones(2)

    assert exact(Apples()).dtype == torch.float64
