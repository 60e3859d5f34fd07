"""Measures of reconstructions against scikit-image."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tesserae.data.batches import to_unit
from tesserae.evaluation import images


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator)
    real = torch.nn.functional.interpolate(coarse, 32, mode="bilinear") * 2 - 1
    return real, (real + 0.2 * torch.randn(real.shape, generator=generator)).clamp(-1, 1)


def test_psnr_and_ssim_agree_with_scikit_image(pair):
    real, made = pair
    measures = images.picture_metrics(made, real)
    for number in range(4):
        x, y = (((each[number] + 1) / 2).permute(1, 2, 0).numpy() for each in (real, made))
        psnr = peak_signal_noise_ratio(x, y, data_range=1)
        assert float(measures["psnr"][number]) == pytest.approx(psnr, abs=1e-3)
        ssim = structural_similarity(x, y, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False)
        assert float(measures["ssim"][number]) == pytest.approx(ssim, abs=1e-4)


def test_the_same_picture_is_perfect(pair):
    measures = images.picture_metrics(pair[0], pair[0])
    assert measures["ssim"].numpy() == pytest.approx(1, abs=1e-6)
    assert float(measures["l1"].max()) == 0


def test_pictures_too_small_for_ssim_have_none(pair):
    measures = images.picture_metrics(pair[0][..., :8, :8], pair[1][..., :8, :8])
    assert measures["ssim"].isnan().all()
    assert measures["psnr"].isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_metrics_of_a_set_are_means_over_pictures_whatever_the_batches(vqgan, pictures, batch_size):
    lpips = lambda x, y: (x - y).square().mean((1, 2, 3))  # noqa: E731
    found = images.reconstruction_metrics(vqgan, pictures, range(3, 20), batch_size, lpips)
    x = to_unit(pictures.batch(range(3, 20)))
    codes = vqgan.encode(x)
    x_hat = vqgan.decode(codes)
    assert found["l1"] == pytest.approx(float((x - x_hat).abs().mean()), rel=1e-3)
    assert found["lpips"] == pytest.approx(float((x - x_hat).square().mean()), rel=1e-3)
    assert found["usage"] == pytest.approx(len(codes.unique()) / 24, abs=0.05)
    assert set(found) == {"psnr", "ssim", "l1", "lpips", "usage", "perplexity"}


def test_measures_are_of_each_picture_in_the_order_asked_for(vqgan, pictures):
    chosen = [5, 2, 9, 14]
    each, codes = images.reconstruction_measures(vqgan, pictures, chosen, 3)
    assert set(each) == {"psnr", "ssim", "l1"}
    assert codes.sum() == vqgan.encode(to_unit(pictures.batch(chosen))).numel()
    for place, number in enumerate(chosen):
        alone, _ = images.reconstruction_measures(vqgan, pictures, [number], 1)
        for name, values in each.items():
            assert float(values[place]) == pytest.approx(float(alone[name][0]), rel=1e-4)


def test_metrics_without_a_perceptual_network(vqgan, pictures):
    assert "lpips" not in images.reconstruction_metrics(vqgan, pictures, range(2), 2)
