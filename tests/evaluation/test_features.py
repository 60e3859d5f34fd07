"""Which network compares sets of pictures, under which name; weights that are bad are one sentence."""

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

from tesserae.errors import TesseraeError
from tesserae.evaluation import features
from tesserae.evaluation.features import INCEPTION_FILE, feature_network, set_features, vgg_features


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / INCEPTION_FILE


def test_vgg_features_are_the_means_of_the_last_activations():
    last = torch.rand(2, 512, 2, 2)
    found = vgg_features(torch.zeros(2, 3, 32, 32), lambda x: [torch.zeros(1), last])
    assert torch.allclose(found, last.mean((2, 3)))


def test_without_inception_numbers_are_named_after_vgg(no_cache, pictures, monkeypatch):
    network = feature_network(backbone=lambda x: [x.mean(1, keepdim=True)])
    names = [network.named(measure) for measure in ("frechet", "frechet_reconstructions", "kernel", "precision")]
    assert names == ["frechet_vgg16", "frechet_vgg16_reconstructions", "kernel_vgg16", "precision_vgg16"]
    assert str(no_cache) in network.description
    monkeypatch.setattr(Path, "home", lambda: no_cache.parents[2])
    described = feature_network(backbone=lambda x: [x]).description
    assert f"not at ~/hub/checkpoints/{INCEPTION_FILE}. For FID fetch" in described
    assert not network.published
    gathered, logits = set_features(pictures.split(3), network)
    assert gathered.shape == (4, 1)
    assert logits is None
    torch.testing.assert_close(gathered[:, 0], pictures.mean((1, 2, 3)), rtol=0, atol=2e-3)  # rounded to bytes


def test_bytes_and_floats_have_the_same_features(no_cache, pictures):
    network = feature_network(backbone=lambda x: [x])
    as_bytes = pictures.add(1).mul(127.5).round().to(torch.uint8)
    assert torch.equal(network(pictures), network(as_bytes))


def test_random_weights_compare_under_a_name_of_their_own(inception_weights, pictures):
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = feature_network(inception_weights)
    assert network.name == "inception_custom"
    assert network.named("frechet") == "frechet_inception_custom"
    assert network.named("score") == "score_inception_custom"
    assert "no FID is computed" in network.description
    found, logits = set_features(pictures.split(2), network)
    assert found.shape == (4, 2048)
    assert logits.shape == (4, 1008)
    own = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_weights), antialias=False)
    as_bytes = pictures.add(1).mul(127.5).round().to(torch.uint8)
    torch.testing.assert_close(found, own(as_bytes), rtol=1e-3, atol=1e-4)


def test_the_published_weights_give_the_published_names(inception_weights, monkeypatch, no_cache):
    """By their sha256, wherever they lie."""
    monkeypatch.setattr(features, "PUBLISHED", hashlib.sha256(inception_weights.read_bytes()).hexdigest()[:8])
    network = feature_network(inception_weights)
    assert network.published
    names = [network.named(measure) for measure in ("frechet", "frechet_reconstructions", "kernel", "score")]
    assert names == ["fid", "rfid", "kid", "inception_score"]
    no_cache.parent.mkdir(parents=True)
    no_cache.symlink_to(inception_weights)
    assert feature_network().name == "inception"


def test_another_file_in_the_cache_is_left_alone_and_said(no_cache):
    no_cache.parent.mkdir(parents=True)
    no_cache.write_bytes(b"half of a download")
    network = feature_network(backbone=lambda x: [x])
    assert network.name == "vgg16"
    assert "is not the published file" in network.description
    assert "delete it" in network.description


class Planted:
    """Runs when it is unpickled by one who runs what is in a pickle."""

    def __reduce__(self):
        return (pytest.fail, ("the file's own code was run",))


@pytest.mark.parametrize(("content", "words"), [
    (None, "no file is there"),
    (b"no weights", "damaged or no file of weights"),
    (pickle.dumps(Planted()), "damaged or no file of weights"),
    ([1, 2], "holds no tensors by name"),
    ({"fc.weight": torch.zeros(2, 2)}, "not laid out as Inception's"),
], ids=["missing", "words", "code", "a list", "another layout"])
def test_bad_weights_are_one_sentence(tmp_path, content, words):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(TesseraeError, match=words) as caught:
        feature_network(path)
    said = str(caught.value)
    assert said.startswith(f"evaluation.inception_weights names {path}")
    assert "\n" not in said
    assert said.endswith('or set the key to "".')


def test_a_layout_with_one_wrong_shape_is_refused(tmp_path, inception_weights):
    state = torch.load(inception_weights, weights_only=True)
    state["fc.weight"] = state["fc.weight"][:1000]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(TesseraeError, match=r"not laid out as Inception's of torch-fidelity \(.*fc\.weight"):
        feature_network(tmp_path / "other.pth")
