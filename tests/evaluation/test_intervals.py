"""Bootstrap intervals: they hold what they should as often as they should, and numbers keep their protocol."""

import math

import pytest
import torch

from tesserae.evaluation.intervals import (
    RESAMPLES,
    Measures,
    interval,
    resampled_counts,
    resampled_means,
    resampled_medians,
    wilson_interval,
)


def test_resamples_are_as_large_as_the_set_and_always_the_same():
    counts = resampled_counts(17)
    assert counts.shape == (RESAMPLES, 17)
    assert (counts.sum(1) == 17).all()
    assert torch.equal(counts, resampled_counts(17))


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 3 + 5
    low, high = interval(float(values.mean()), resampled_means(values))
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 20, rel=0.15)
    assert (low + high) / 2 == pytest.approx(float(values.mean()))


def test_nineteen_of_twenty_intervals_hold_the_truth():
    sets = torch.randn(300, 60, generator=torch.Generator().manual_seed(0))
    held = [low <= 0 <= high for low, high in (interval(float(s.mean()), resampled_means(s)) for s in sets)]
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.035)


def test_medians_are_those_of_resamples():
    values = torch.arange(101.0)
    found = resampled_medians(values)
    assert found.shape == (RESAMPLES,)
    assert float(found.mean()) == pytest.approx(50, abs=2)
    assert float(found.std()) == pytest.approx(1.2533 * 29.2 / 101**0.5, rel=0.35)  # uniform: sqrt(pi/2) at most


def test_an_interval_stays_in_its_range():
    assert interval(0.99, torch.tensor([0.9, 1.0, 1.1]), 0.0, 1.0)[1] == 1.0


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (3, 48), (20, 20), (40, 80)])
def test_fractions_have_wilsons_interval(hits, count):
    """Also none and all of the pictures, of which every resample says the same."""
    from scipy.stats import binomtest

    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)
    found = Measures()
    found.add_fractions({"near_share": torch.arange(count) < hits}, {"features": "LPIPS"})
    assert found.values["near_share"] == hits / count
    assert found.values["near_share_low"] == pytest.approx(expected.low, abs=1e-6)
    assert found.protocol == [{"of": "near_share", "n": count, "features": "LPIPS",
                               "interval": "95 %: Wilson's score interval of a fraction of the pictures"}]


def test_each_number_has_its_protocol_and_bounds():
    found = Measures()
    found.add_means({"lpips": torch.tensor([0.1, 0.3])}, {"reference": "two pictures"}, prefix="val_")
    found.add("fid", 9.0, {"features": "Inception", "resampled": "the samples"}, torch.tensor([8.0, 9.0, 10.0]))
    assert set(found.values) == {"val_lpips", "val_lpips_low", "val_lpips_high", "fid", "fid_low", "fid_high"}
    assert found.values["val_lpips"] == pytest.approx(0.2)
    mine, other = found.protocol
    assert mine["of"] == "val_lpips"
    assert (mine["n"], mine["reference"]) == (2, "two pictures")
    assert "resamples of the pictures" in mine["interval"]
    assert other["interval"] == "95 %: 1.96 standard deviations over 3 resamples of the samples, seed 0"
    table = found.table()
    assert list(table.index) == ["val_lpips", "fid"]
    assert table.loc["fid", "low"] < 9 < table.loc["fid", "high"]


def test_one_picture_has_no_interval():
    found = Measures()
    found.add_means({"psnr": torch.tensor([20.0])}, {})
    assert found.values == {"psnr": 20.0}
    assert math.isnan(found.table().loc["psnr", "low"])


def test_resamples_that_are_all_alike_give_no_interval():
    """Constant pictures, or two: an interval of no width would say that nothing is uncertain."""
    found = Measures()
    found.add("frechet_vgg16", 600.8, {"resampled": "the samples"}, torch.full((200,), 600.8))
    found.add_means({"psnr": torch.full((5,), 21.0)}, {})
    assert set(found.values) == {"frechet_vgg16", "psnr"}
    assert all("all resamples are alike" in record["interval"] for record in found.protocol)
