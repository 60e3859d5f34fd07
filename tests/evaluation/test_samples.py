"""Numbers about samples: copies are called so, among as many training pictures as were asked for; and files."""

import numpy as np
import pytest
import torch
from PIL import Image

from tesserae.data.codes import CodeMaps
from tesserae.evaluation import samples as quality
from tesserae.evaluation.neighbours import Neighbours, lpips_vectors
from tesserae.evaluation.samples import Bank, Nearness
from tesserae.evaluation.streams import of_codes
from tesserae.models.perceptual import LPIPS
from tesserae.models.vqgan import VQGAN, VQGANConfig

K = 32


@pytest.fixture(scope="module")
def embed():
    return lpips_vectors(LPIPS.load("alex"))


@pytest.fixture(scope="module")
def house():
    """A random VQGAN, 40 training maps and 20 held-out ones of it, two classes."""
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
    return vqgan, train, held_out


def test_copies_are_called_copies(house, embed):
    vqgan, train, held_out = house
    copies, bank = train.indices[:10, 0].long(), Bank.of(40)
    found = quality.nearness(of_codes(vqgan, copies), vqgan, (train, held_out), embed, bank, k=2)
    assert found.samples.indices[:, 0].tolist() == list(range(10))
    measures = found.measures(train.labels[:10], train, held_out)
    metrics = measures.values
    assert metrics["near_share"] == 1
    assert metrics["distance"] < 1e-4 < metrics["distance_held_out"]
    assert metrics["class_agreement"] == 1
    overlap = quality.overlaps(copies, train, held_out, bank).values
    assert overlap["code_overlap"] == 1
    assert overlap["code_overlap_held_out"] < 0.6
    assert metrics["bank_images"] == 40
    assert {record["reference"] for record in measures.protocol} == {"all 40 training pictures"}


def test_a_bank_is_spread_over_the_set_and_says_how_large_it_is(house, embed):
    """Of 40 training pictures ten: copies of these are found under their own numbers, of others they are not."""
    vqgan, train, held_out = house
    bank = Bank.of(40, 10)
    assert bank.numbers.tolist() == list(range(2, 40, 4))
    assert bank.description == "10 of 40 training pictures"
    copied = torch.tensor([6, 7, 34])
    samples = train.indices[copied, 0].long()
    found = quality.nearness(of_codes(vqgan, samples), vqgan, (train, held_out), embed, bank)
    near = found.samples.distances[:, 0]
    assert found.samples.indices[[0, 2], 0].tolist() == [6, 34]
    assert float(near[[0, 2]].max()) < 1e-4 < float(near[1])
    assert found.measures(None, train, held_out).values["bank_images"] == 10
    overlap = quality.overlaps(samples, train, held_out, bank)
    assert 2 / 3 <= overlap.values["code_overlap"] < 1
    assert overlap.protocol[0]["reference"] == bank.description


def test_a_share_below_a_twentieth_of_the_held_out_needs_twenty_of_them(house, embed):
    vqgan, train, held_out = house
    few = CodeMaps(held_out.indices[:19], None, [], held_out.codebook_size)
    found = quality.nearness(of_codes(vqgan, few.indices[:, 0]), vqgan, (train, few), embed, Bank.of(40))
    measures = found.measures(None, train, few)
    assert "near_share" not in measures.values
    assert "distance" in measures.values
    assert measures.notes == ["near_share is left out: the limit below which 5% of the held-out pictures fall needs "
                              "20 of them, here are 19 (prepare.holdout sets how many)."]


def test_unseen_maps_are_not_copies(house, embed):
    vqgan, train, held_out = house
    found = quality.nearness(of_codes(vqgan, held_out.indices[:, 0]), vqgan, (train, held_out), embed, Bank.of(40))
    assert found.measures(None, train, held_out).values["near_share"] <= 0.06  # by definition of the quantile
    torch.testing.assert_close(found.samples.distances, found.held_out.distances, rtol=0, atol=1e-5)


def test_pictures_as_files(tmp_path):
    images = torch.linspace(-1, 1, 3)[:, None, None, None].expand(-1, 3, 8, 8)
    folder = tmp_path / "samples" / "class"
    quality.write_pictures(folder, images, ["a", "b/ü", "a"])
    quality.write_pictures(folder, images, ["a", "b/ü", "a"])  # again, over the old ones
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == [
        "a/0000.png", "a/0001.png", "b_ü/0000.png"]
    assert np.asarray(Image.open(folder / "a/0001.png")).min() == 255
    assert [path.name for path in folder.parent.iterdir()] == ["class"]


def test_folders_of_pictures_may_have_any_class_for_a_name(tmp_path):
    names = ["\U0001f436" * 200, "\U0001f436" * 199 + "x", "two\nlines", "..", "a/b"]
    quality.write_pictures(tmp_path / "samples", torch.zeros(5, 3, 8, 8), names)
    folders = {path.name for path in (tmp_path / "samples").iterdir()}
    assert len(folders) == 5
    assert {"two_lines", "_", "a_b"} < folders
    assert max(len(name.encode()) for name in folders) <= 120


def test_copies_are_told_from_new_pictures():
    generator = torch.Generator().manual_seed(0)
    unseen = torch.rand(1000, 1, generator=generator) + 1

    def measured(distances):
        nearest = (Neighbours(each, torch.zeros(1000, 1, dtype=torch.int64)) for each in (distances, unseen))
        return Nearness(*nearest, torch.arange(1000), Bank.of(10)).measures(None, None, None).values

    fresh = measured(torch.rand(1000, 1, generator=generator) + 1)
    copied = measured(torch.rand(1000, 1, generator=generator) * 0.1)
    assert fresh["near_share"] == pytest.approx(0.05, abs=0.03)
    assert copied["near_share"] == 1
    assert copied["distance"] < 0.1 < copied["distance_held_out"]
