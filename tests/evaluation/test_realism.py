"""Samples and reconstructions as sets: perfect samples score as reconstructions, and each number says how it came."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tesserae.data.batches import to_unit
from tesserae.data.codes import CodeMaps
from tesserae.data.views import Viewed, view_of
from tesserae.evaluation import features, realism
from tesserae.evaluation.distributions import SetStatistics, frechet
from tesserae.evaluation.features import FeatureNetwork, feature_network
from tesserae.evaluation.realism import RealSet, reconstruction_realism, sample_realism
from tesserae.evaluation.streams import Images, of_codes, of_tensor

K = 24


def counting(name="vgg16", classes=0):
    """Features of pixels averaged over 4 x 4 squares, and how many pictures they were asked of."""
    seen = []

    def extract(pixels):
        seen.append(len(pixels))
        x = torch.nn.functional.adaptive_avg_pool2d(to_unit(pixels), 2).flatten(1)
        return x, (x[:, :classes] if classes else None)

    return FeatureNetwork(name, "abc", "squares", "", torch.device("cpu"), extract), seen


@pytest.fixture(scope="module")
def house(vqgan, pictures):
    """The VQGAN, its view of the pictures, and their codes: every third picture is held out."""
    train, held_out = ([n for n in range(21) if (n % 3 == 1) is out] for out in (False, True))
    codes = vqgan.encode(to_unit(pictures.batch(range(21))))[:, None].int()
    maps = tuple(CodeMaps(codes[part], torch.tensor(part) % 2, ["a", "b"], K) for part in (train, held_out))
    view = view_of(vqgan.config)
    return vqgan, tuple(Viewed(Some(pictures, part), view) for part in (train, held_out)), maps


class Some:
    """Some of the pictures."""

    def __init__(self, pictures, chosen):
        self.pictures, self.chosen, self.size = pictures, chosen, pictures.size

    def __len__(self):
        return len(self.chosen)

    def batch(self, indices, column="image", form="raw"):
        return self.pictures.batch([self.chosen[index] for index in indices], column, form)

    def fingerprint_of(self, column):
        return self.pictures.fingerprint_of(column) + str(self.chosen)


def measured(house, samples, count=10, network=None, cache=None):
    vqgan, (train, held_out), maps = house
    network = network or counting()[0]
    return sample_realism(vqgan, samples, RealSet(train, "train", count, cache), maps, held_out, network)


def test_perfect_samples_are_as_real_as_reconstructions_and_flat_ones_are_not(house):
    vqgan, _, (_, held_out) = house
    alike = measured(house, of_codes(vqgan, held_out.indices[:, 0])).values
    assert alike["frechet_vgg16"] == pytest.approx(alike["frechet_vgg16_reconstructions"])
    flat = measured(house, of_codes(vqgan, torch.zeros(7, 4, 4, dtype=torch.int64))).values
    assert flat["frechet_vgg16"] > alike["frechet_vgg16"]
    assert flat["precision_vgg16"] <= alike["precision_vgg16"]
    assert all(math.isfinite(value) for value in (*alike.values(), *flat.values()))


def test_every_number_has_a_protocol_and_an_interval(house):
    vqgan, _, (_, held_out) = house
    found = measured(house, of_codes(vqgan, held_out.indices[:, 0]))
    names = {"frechet_vgg16", "frechet_vgg16_real", "frechet_vgg16_reconstructions", "kernel_vgg16",
             "precision_vgg16", "recall_vgg16"}
    assert set(found.values) == {name + ending for name in names for ending in ("", "_low", "_high")}
    assert {record["of"] for record in found.protocol} == names
    for record in found.protocol:
        assert record["features"] == "squares"
        assert record["reference"] == "train split, 10 of 14 pictures, evenly spread"
        assert record["size"] == "32 x 32 pixels, as prepared, not cropped"
        assert record["pixels"].startswith("uint8")
        assert (record["n_generated"], record["n_reference"]) == (7, 10)
        assert "compare only with numbers of as many" in record["note"]
        share = record["of"].startswith(("precision", "recall"))
        assert ("Wilson" if share else "resamples of the generated pictures") in record["interval"]
        low, value, high = (found.values[record["of"] + ending] for ending in ("_low", "", "_high"))
        assert low <= value <= high


def test_names_are_the_published_ones_only_with_the_published_weights_and_enough_pictures(house, monkeypatch):
    vqgan, (_, held_out), (_, maps) = house
    samples = of_codes(vqgan, maps.indices[:, 0])
    own = {"fid", "fid_real", "fid_reconstructions", "kid", "precision", "recall", "inception_score"}
    few = measured(house, samples, network=counting("inception", classes=5)[0])
    assert not own & set(few.values)
    assert {"frechet_inception", "frechet_inception_real", "kernel_inception", "score_inception"} <= set(few.values)
    assert "frechet_inception_reconstructions" in reconstruction_realism(
        vqgan, RealSet(held_out, "validation", 5), counting("inception")[0]).values
    monkeypatch.setattr(features, "COMPARABLE", 5)
    published = measured(house, samples, network=counting("inception", classes=5)[0])
    assert {record["of"] for record in published.protocol} == own
    custom = measured(house, samples, network=counting("inception_custom", classes=5)[0])
    assert not own & set(custom.values)
    assert "frechet_inception_custom" in custom.values
    real = RealSet(held_out, "validation", 5)
    for name, key in (("inception", "rfid"), ("vgg16", "frechet_vgg16_reconstructions")):
        found = reconstruction_realism(vqgan, real, counting(name)[0]).values
        assert set(found) == {key, f"{key}_low", f"{key}_high"}


def test_the_numbers_are_those_of_the_whole_sets_at_once(house):
    vqgan, (train, held_out), (_, maps) = house
    network, _ = counting()
    samples = vqgan.decode(maps.indices[:, 0].long())
    found = measured(house, of_tensor(samples), count=14).values
    known = SetStatistics.of(network(train.batch(range(14))))
    assert found["frechet_vgg16"] == pytest.approx(frechet(SetStatistics.of(network(samples)), known))
    real = SetStatistics.of(network(held_out.batch(range(7))))
    assert found["frechet_vgg16_real"] == pytest.approx(frechet(real, known))
    rebuilt = reconstruction_realism(vqgan, RealSet(held_out, "validation", 99), network).values
    made = SetStatistics.of(network(vqgan.decode(vqgan.encode(to_unit(held_out.batch(range(7)))))))
    assert rebuilt["frechet_vgg16_reconstructions"] == pytest.approx(frechet(made, real))


def test_real_pictures_are_as_many_as_samples_and_none_of_the_reference(house):
    """Held-out pictures first, then training pictures that the reference leaves: 7 and 4 of 14."""
    vqgan, _, (train, _) = house
    found = measured(house, of_codes(vqgan, train.indices[:11, 0]), count=8)
    (record,) = (each for each in found.protocol if each["of"] == "frechet_vgg16_real")
    assert (record["n_generated"], record["n_reference"]) == (11, 8)
    assert record["generated"] == "real pictures, validation split and training pictures outside the reference"
    more = measured(house, of_codes(vqgan, train.indices[:, 0]), count=14)
    (record,) = (each for each in more.protocol if each["of"] == "frechet_vgg16_real")
    assert record["n_generated"] == 7  # there are no more


def test_a_set_sorted_by_class_is_measured_over_all_of_it(house):
    train = house[1][0]
    assert RealSet(train, "train", 4).numbers == [1, 5, 8, 12]
    assert realism._floor_numbers(3, 7, 5).tolist() == [1, 3, 5]
    assert realism._floor_numbers(9, 7, 5).tolist() == [*range(7), 7 + 1, 7 + 3]


@pytest.mark.parametrize(("count", "names"), [
    (1, set()), (2, {"frechet_vgg16", "kernel_vgg16"}), (3, {"frechet_vgg16", "kernel_vgg16"}),
    (4, {"frechet_vgg16", "kernel_vgg16", "precision_vgg16", "recall_vgg16"})])
def test_what_needs_more_pictures_than_there_are_is_left_out(house, count, names):
    vqgan, _, (train, _) = house
    found = measured(house, of_codes(vqgan, train.indices[:count, 0]))
    of_samples = {record["of"] for record in found.protocol if record["generated"].startswith("samples")}
    assert of_samples == names


def test_the_reference_is_computed_once_and_kept(house, tmp_path):
    vqgan, _, maps = house
    network, seen = counting()
    samples = of_tensor(vqgan.decode(maps[1].indices[:, 0].long()))
    first = measured(house, samples, network=network, cache=tmp_path).values
    before = sum(seen)
    again = measured(house, samples, network=network, cache=tmp_path).values
    assert again == first
    assert sum(seen) - before == before - 10  # all but the ten of the reference
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["network", "weights", "count", "split", "data"])
def test_the_kept_reference_is_another_for_anything_it_follows_from(house, tmp_path, change):
    _, (train, held_out), _ = house
    network = counting()[0]
    RealSet(train, "train", 6, tmp_path).statistics(network)
    other = FeatureNetwork("vgg16", "abd", "squares", "", network.device, network.extract)
    {"network": lambda: RealSet(train, "train", 6, tmp_path).statistics(counting("inception")[0]),
     "weights": lambda: RealSet(train, "train", 6, tmp_path).statistics(other),
     "count": lambda: RealSet(train, "train", 5, tmp_path).statistics(network),
     "split": lambda: RealSet(train, "validation", 6, tmp_path).statistics(network),
     "data": lambda: RealSet(held_out, "train", 6, tmp_path).statistics(network)}[change]()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"half of a file", None])
def test_a_damaged_reference_is_made_anew(house, tmp_path, content):
    network, real = counting()[0], RealSet(house[1][0], "train", 6, tmp_path)
    good = real.statistics(network)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content) if content is not None else save_file({"features": torch.zeros(1)}, path)
    again = real.statistics(network)
    assert torch.equal(again.root, good.root)
    assert set(load_file(path)) == {"features", "mean", "root"}


def test_old_references_go(house, tmp_path):
    real = house[1][0]
    for count in range(2, 2 + realism.KEPT + 3):
        RealSet(real, "train", count, tmp_path).statistics(counting()[0])
    assert len(list(tmp_path.iterdir())) == realism.KEPT


def test_random_inception_weights_go_all_the_way(house, inception_weights):
    vqgan, _, (_, maps) = house
    found = measured(house, of_codes(vqgan, maps.indices[:4, 0]), count=5,
                     network=feature_network(inception_weights)).values
    assert {"frechet_inception_custom", "kernel_inception_custom", "score_inception_custom",
            "precision_inception_custom", "recall_inception_custom"} <= set(found)
    assert all(math.isfinite(value) for value in found.values())


def test_memory_holds_a_batch_and_not_the_set():
    """Pictures are made as they are read: never more than a batch of them at once."""
    made = []

    def make(numbers):
        made.append(len(numbers))
        return torch.zeros(len(numbers), 3, 16, 16)

    network, _ = counting()
    realism.set_features(Images(1000, make), network)
    assert sum(made) == 1000
    assert max(made) <= 32


def test_a_cache_that_cannot_be_written_costs_time_alone(house, tmp_path, capsys):
    vqgan, _, (_, held_out) = house
    (tmp_path / "cache").write_text("a file in the folder's place")
    samples = of_codes(vqgan, held_out.indices[:, 0])
    assert measured(house, samples, cache=tmp_path / "cache").values == measured(house, samples).values
    assert "cache/ cannot be written" in capsys.readouterr().out
