"""Condition fidelity on pictures whose answer is known, and as the notebook measures it."""

import pytest
import torch
import torch.nn.functional as F

from tesserae.data.batches import to_bytes, to_unit
from tesserae.data.views import Depth
from tesserae.errors import TesseraeError
from tesserae.evaluation import condition_fidelity as module
from tesserae.evaluation.condition_fidelity import (
    SampleConditions,
    another_of,
    condition_fidelity,
    lpips_to_true_and_other,
    mostly_of_class,
    segmenter_scores,
)
from tesserae.evaluation.features import FeatureNetwork
from tesserae.evaluation.segmenter import Segmenter
from tesserae.evaluation.streams import Images
from tesserae.models.perceptual import LPIPS

LABELS = torch.arange(12) % 2
NETWORK = FeatureNetwork("colour", "", "colour", "", torch.device("cpu"),
                         lambda pixels: (to_unit(pixels).mean((2, 3)), None))


class Coloured:
    """Twelve pictures of two colours, one a class."""

    size, labels = 16, LABELS

    def __len__(self):
        return len(LABELS)

    def batch(self, indices, column="image", form="raw"):
        shade = torch.where(LABELS[list(indices)] == 1, 250, 5).to(torch.uint8)
        pixels = torch.zeros(len(shade), 3, 16, 16, dtype=torch.uint8)
        pixels[:, 0], pixels[:, 1] = shade[:, None, None], 255 - shade[:, None, None]
        return pixels


@pytest.mark.parametrize(("most", "count"), [(512, 8), (3, 3)])
def test_at_most_so_many_samples_are_measured(monkeypatch, most, count):
    monkeypatch.setattr(module, "MAX_SAMPLES", most)
    made = []

    def make(numbers):  # the first four as conditions, the others of the other class
        made.extend(numbers.tolist())
        wrong = (numbers >= 4).long()
        return to_unit(Coloured().batch(((LABELS[numbers] + wrong) % 2).tolist()))

    conditions = SampleConditions(torch.arange(8), LABELS[:8], {})
    found, shown = condition_fidelity(Images(8, make), conditions, Coloured(), Coloured(), NETWORK, 0)
    (share, held_out) = found.protocol
    assert (share["of"], share["n"]) == ("class_share", count)
    assert len(made) == count
    assert found.values["class_share"] == (0.5 if count == 8 else pytest.approx(1 / 3))
    assert found.values["class_share_held_out"] == 1
    assert share["reference"] == "train split, 12 of 12 pictures, evenly spread"
    assert share["features"] == "colour"
    assert held_out["n"] == 12
    assert shown == {}


def test_one_held_out_picture_is_compared_with_no_other():
    conditions = SampleConditions(torch.zeros(4, dtype=torch.int64), None, {"edges": object()})
    pictures = Coloured()
    pictures.size = 32
    samples = Images(4, lambda numbers: to_unit(pictures.batch(numbers.tolist())))
    found, _ = condition_fidelity(samples, conditions, pictures, pictures, NETWORK, 0)
    assert found.values == {}
    assert found.notes == ["lpips_true and lpips_other are left out: they need two held-out pictures, here is one "
                           "(prepare.holdout sets how many)."]


@pytest.mark.parametrize("side", [16, 24, 28, 30, 31, 40])
def test_pictures_too_small_for_alexnet_go_without_its_distances_and_that_is_said(side, monkeypatch):
    monkeypatch.setattr(module.LPIPS, "load", classmethod(lambda cls, net: cls(net)))  # sizes are what matters
    pictures = Coloured()
    pictures.size, plain = side, pictures.batch
    monkeypatch.setattr(pictures, "batch", lambda *of: plain(*of)[..., :1, :1].expand(-1, -1, side, side))
    samples = Images(8, lambda numbers: to_unit(pictures.batch(numbers.tolist())))
    conditions = SampleConditions(torch.arange(8), None, {"depth": Depth("depth")})
    found, _ = condition_fidelity(samples, conditions, pictures, pictures, NETWORK, 0)
    words = ("lpips_true and lpips_other are left out: LPIPS (AlexNet) needs 31 pixels a side, the pictures have "
             f"{side}.")
    assert ("lpips_true" in found.values) == (side >= 31)
    assert found.notes == ([words] if side < 31 else [])


def pictures(count, seed=0, size=(64, 64)):
    """Smooth random pictures, (N,3,H,W) in [-1,1], alike at every place: a margin of flat edges is cut away."""
    sides = [side // 7 + 3 for side in size]
    coarse = torch.rand(count, 3, *sides, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse * 2 - 1, scale_factor=7, mode="bilinear")[..., 5:5 + size[0], 5:5 + size[1]]


def squared(x, y):
    return (x - y).square().mean((1, 2, 3))


# ---- own and other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [5, 5, 2, 2, 9, 9], [1, 1, 1, 0], [3, 0, 3, 0, 7]])
def test_the_other_is_always_of_another_group_and_all_are_used(groups):
    groups = torch.tensor(groups)
    found = another_of(groups)
    assert (groups[found] != groups).all()
    assert torch.equal(another_of(groups), found)
    sizes = torch.bincount(groups)
    if (sizes[sizes > 0] == sizes.max()).all():
        assert torch.equal(found.sort().values, torch.arange(len(groups)))


def test_one_condition_alone_has_no_other():
    with pytest.raises(TesseraeError, match="same condition"):
        another_of(torch.zeros(4, dtype=torch.int64))


def test_true_pictures_are_nearer_to_themselves_by_lpips():
    real = pictures(4)
    found = lpips_to_true_and_other(real, real, LPIPS.load("alex"))
    assert found["lpips_true"].numpy() == pytest.approx(0, abs=1e-6)
    assert found["lpips_other"].min() > 0.1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_distances_are_of_each_picture(batch_size):
    made, real, groups = pictures(5), pictures(5, seed=1), torch.tensor([0, 0, 4, 4, 2])
    found = lpips_to_true_and_other(made, real, squared, groups, batch_size)
    torch.testing.assert_close(found["lpips_true"], squared(made, real).double())
    torch.testing.assert_close(found["lpips_other"], squared(made, real[another_of(groups)]).double())


def test_bytes_are_taken_as_they_are():
    made, real = pictures(3), pictures(3, seed=1)
    floats, words = (lpips_to_true_and_other(*pair, squared)
                     for pair in ((made, real), (to_bytes(made), to_bytes(real))))
    for name, values in floats.items():
        torch.testing.assert_close(words[name], values, rtol=0.02, atol=0)


def test_pictures_without_a_true_one_are_refused():
    with pytest.raises(TesseraeError, match="differ in shape"):
        lpips_to_true_and_other(pictures(3), pictures(2), squared)


# ---- classes -----------------------------------------------------------------------------------------------


def coloured(labels, seed):
    """Pictures of one colour a class, with some noise."""
    labels = torch.as_tensor(labels)
    noise = torch.randn(len(labels), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (F.one_hot(labels, 3)[..., None, None] * 1.0 + 0.05 * noise).clamp(-1, 1)


def colour(images):
    return images.mean((2, 3))


BANK_LABELS = torch.arange(30) % 3


def class_fraction(images, labels, bank=None, bank_labels=BANK_LABELS, k=5):
    bank = coloured(BANK_LABELS, 0).split(7) if bank is None else bank
    return float(mostly_of_class(images, torch.as_tensor(labels), bank, bank_labels, colour, k).mean())


def test_pictures_of_the_requested_class_are_found_and_others_are_not():
    requested = [0, 1, 2, 2]
    assert class_fraction(coloured(requested, 1), requested) == 1
    assert class_fraction(coloured([1, 2, 0, 0], 1), requested) == 0
    assert class_fraction(coloured([0, 1, 0, 2], 1), requested) == 0.75


def test_brightness_of_features_does_not_count_and_a_tie_is_no_majority():
    dim = coloured([0, 1], 1) * 0.2
    assert class_fraction(dim, [0, 1]) == 1
    assert class_fraction(dim, [0, 1], [coloured([0, 1], 0)], torch.tensor([0, 1]), k=2) == 0


# ---- the segmenter -----------------------------------------------------------------------------------------


class Signs(Segmenter):
    """Finds class 1 where red is positive."""

    def __init__(self):
        super().__init__(2, widths=(8, 8))

    def forward(self, images):
        return torch.stack([-images[:, 0], images[:, 0]], 1)


def test_segmenter_scores_by_hand():
    masks = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    real = (masks * 2.0 - 1)[:, None].expand(-1, 3, -1, -1)
    made = real.clone()
    made[:, :, :2] *= -1  # a quarter is wrong
    masks = masks.long()
    measures = segmenter_scores(Signs(), made, to_bytes(real), masks, {"features": "signs"})
    found = measures.values
    assert found["pixel_accuracy"] == found["segmenter_share"] == 0.75
    assert found["pixel_accuracy_real"] == found["miou_real"] == 1
    assert 0.5 < found["miou"] < 0.75
    assert found["miou_low"] <= found["miou"] <= found["miou_high"] < 1
    assert {record["features"] for record in measures.protocol} == {"signs"}
