"""Image measures against scikit-image, SciPy and torchmetrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image.fid import _compute_fid

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


def _gaussian(count, dimensions, shift=0.0, seed=0):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dimensions, dimensions))
    return generator.normal(size=(count, dimensions)) @ mixing + shift


@pytest.mark.parametrize("counts", [(200, 150), (9, 200), (7, 9)])
def test_frechet_distance_agrees_with_the_matrix_square_root(counts):
    a, b = _gaussian(counts[0], 12), _gaussian(counts[1], 12, 1.0, seed=1)
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s_a @ s_b + 1e-13 * np.eye(12)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b - 2 * root)
    assert images.frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert images.frechet_distance(a, b) == pytest.approx(images.frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_agrees_with_torchmetrics():
    a, b = (torch.from_numpy(_gaussian(300, 8, shift, seed)) for shift, seed in ((0, 0), (0.5, 1)))
    expected = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert images.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square_and_of_the_same_set_zero():
    a = _gaussian(50, 6)
    assert images.frechet_distance(a, a) == pytest.approx(0, abs=1e-8)
    assert images.frechet_distance(a, a + 2.0) == pytest.approx(6 * 4)


@pytest.mark.parametrize("shapes", [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5,))])
def test_frechet_distance_refuses_what_has_no_covariance(shapes):
    with pytest.raises(ValueError, match="no two sets"):
        images.frechet_distance(*(np.zeros(shape) for shape in shapes))


def test_vgg_features_are_the_means_of_the_last_activations():
    last = torch.rand(2, 512, 2, 2)
    found = images.vgg_features(torch.zeros(2, 3, 32, 32), lambda x: [torch.zeros(1), last])
    assert torch.allclose(found, last.mean((2, 3)))


def test_without_inception_the_distance_is_named_after_vgg(monkeypatch, tmp_path, pair):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name, features = images.feature_network(lambda x: [x.mean(1, keepdim=True)])
    assert name == "frechet_vgg"
    gathered = images.set_features(pair[0].split(3), features)
    assert gathered.shape == (4, 1)
    assert gathered[:, 0] == pytest.approx(pair[0].mean((1, 2, 3)).numpy(), abs=1e-6)


def test_inception_is_taken_where_its_weights_are(monkeypatch, tmp_path, pair):
    seen = {}

    class Network:
        def __init__(self, name, features, path):
            seen.update(name=name, features=features, path=path)

        def __call__(self, images):
            seen["images"] = images
            return torch.zeros(len(images), 2048)

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / images._INCEPTION).touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Network)
    name, features = images.feature_network()
    assert name == "fid_inception"
    assert features(pair[0]).shape == (4, 2048)
    assert seen["images"].dtype == torch.uint8
