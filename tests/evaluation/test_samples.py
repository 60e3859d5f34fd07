"""Numbers about samples: perfect ones score as reconstructions, copies are called so."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from tesserae.data.codes import CodeMaps
from tesserae.evaluation import samples as quality
from tesserae.models.vqgan import VQGAN, VQGANConfig

K = 32


class Held:
    """Pictures in memory, as `Pictures` gives them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[list(indices)]


def drawn(vqgan, codes):
    return torch.cat(list(quality.decoded(vqgan, codes)))


@pytest.fixture(scope="module")
def house():
    """A random VQGAN, 40 training maps and 20 held-out ones of it, their pictures, two classes."""
    torch.manual_seed(0)
    vqgan = VQGAN(VQGANConfig(channels=32, channel_mult=(1, 1), res_blocks=1, patch=4, attention=False,
                              z_channels=32, codebook_size=K, codebook_dim=8)).eval()
    torch.nn.init.normal_(vqgan.quantizer.codebook)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    indices = torch.randint(K // 2, (60, 1, 4, 4), generator=generator)
    indices += (K // 2) * labels[:, None, None, None]
    train, held_out = (CodeMaps(indices[part].int(), labels[part], ["a", "b"], K)
                       for part in (slice(40), slice(40, 60)))
    images = torch.cat(list(quality.decoded(vqgan, train.indices[:, 0])))
    return vqgan, train, held_out, Held(((images + 1) * 127.5).round().to(torch.uint8))


def test_copies_are_called_copies(house):
    vqgan, train, held_out, _ = house
    copies = train.indices[:10, 0].long()
    found = quality.nearness(vqgan, drawn(vqgan, copies), train, held_out, k=2)
    assert found.samples.indices[:, 0].tolist() == list(range(10))
    metrics = found.metrics(train.labels[:10], train, held_out)
    assert metrics["near_share"] == 1
    assert metrics["distance"] < 1e-4 < metrics["distance_held_out"]
    assert metrics["class_agreement"] == 1
    assert quality.overlaps(copies, train, held_out)["code_overlap"] == 1
    assert quality.overlaps(copies, train, held_out)["code_overlap_held_out"] < 0.6


def test_unseen_maps_are_not_copies(house):
    vqgan, train, held_out, _ = house
    found = quality.nearness(vqgan, drawn(vqgan, held_out.indices[:, 0]), train, held_out)
    assert found.metrics(None, train, held_out)["near_share"] <= 0.06  # by definition of the quantile
    assert torch.equal(found.samples.distances, found.held_out.distances)


def test_realism_orders_samples(house):
    """Maps of the training set itself are as real as reconstructions; maps of one code are not."""
    vqgan, train, _, pictures = house
    alike = quality.realism(vqgan, drawn(vqgan, train.indices[1::2, 0]), train, pictures)
    name = min(alike, key=len)
    assert set(alike) == {name, f"{name}_real", f"{name}_reconstructions"}
    assert alike[name] == pytest.approx(alike[f"{name}_reconstructions"])
    assert alike[name] == pytest.approx(alike[f"{name}_real"], rel=0.1, abs=1e-3)
    flat = quality.realism(vqgan, drawn(vqgan, torch.zeros(20, 4, 4, dtype=torch.int64)), train, pictures)
    assert flat[name] > 1.5 * alike[name]
    assert all(math.isfinite(value) for value in flat.values())


def test_a_set_sorted_by_class_is_measured_over_all_its_classes(house, monkeypatch):
    """Fewer samples than pictures: the pictures they are measured beside must not be the first classes alone."""
    vqgan, train, _, pictures = house
    order = train.labels.argsort(stable=True)
    maps = CodeMaps(train.indices[order], train.labels[order], train.class_names, K)
    seen = []

    def watched(held, indices, batch_size=quality.AT_ONCE):
        seen.append(maps.labels[list(indices)])
        return genuine(held, indices, batch_size)

    genuine = quality.real
    monkeypatch.setattr(quality, "real", watched)
    quality.realism(vqgan, drawn(vqgan, maps.indices[::4, 0]), maps, Held(pictures.images[order]))
    assert [torch.bincount(labels, minlength=2).tolist() for labels in seen] == [[10, 10], [5, 5]]


@pytest.mark.parametrize(("total", "count"), [(10, 10), (10, 3), (716, 480), (5, 1)])
def test_spread_takes_each_once_and_from_everywhere(total, count):
    places = quality.spread(total, count)
    assert len(places.unique()) == count
    assert 0 <= places.min() <= places.max() < total
    gaps = torch.cat([places, places[:1] + total]).diff()
    assert gaps.max() - gaps.min() <= 1


def test_too_few_pictures_have_no_distance(house):
    vqgan, train, _, pictures = house
    few = CodeMaps(train.indices[:3], None, [], K)
    assert quality.realism(vqgan, drawn(vqgan, train.indices[:1, 0]), few, Held(pictures.images[:3])) == {}


def test_pictures_as_files(tmp_path):
    images = torch.linspace(-1, 1, 3)[:, None, None, None].expand(-1, 3, 8, 8)
    folder = tmp_path / "samples" / "class"
    quality.write_pictures(folder, images, ["a", "b/ü", "a"])
    quality.write_pictures(folder, images, ["a", "b/ü", "a"])  # again, over the old ones
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == [
        "a/0000.png", "a/0001.png", "b_ü/0000.png"]
    assert np.asarray(Image.open(folder / "a/0001.png")).min() == 255
    assert [path.name for path in folder.parent.iterdir()] == ["class"]
