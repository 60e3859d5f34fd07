"""Obedience as the notebook asks for it: of as many samples as the measure is made for, and with its protocol."""

import pytest
import torch

from tesserae.data.batches import to_unit
from tesserae.data.views import Depth
from tesserae.evaluation import condition_fidelity as module
from tesserae.evaluation.condition_fidelity import SampleConditions, condition_fidelity
from tesserae.evaluation.features import FeatureNetwork
from tesserae.evaluation.streams import Images

LABELS = torch.arange(12) % 2
NETWORK = FeatureNetwork("colour", "", "colour", "", torch.device("cpu"),
                         lambda pixels: (to_unit(pixels).mean((2, 3)), None))


class Coloured:
    """Twelve pictures of two colours, one a class."""

    size, labels = 16, LABELS

    def __len__(self):
        return len(LABELS)

    def batch(self, indices, column="image", form="stored"):
        shade = torch.where(LABELS[list(indices)] == 1, 250, 5).to(torch.uint8)
        pixels = torch.zeros(len(shade), 3, 16, 16, dtype=torch.uint8)
        pixels[:, 0], pixels[:, 1] = shade[:, None, None], 255 - shade[:, None, None]
        return pixels


@pytest.mark.parametrize(("most", "count"), [(512, 8), (3, 3)])
def test_at_most_so_many_samples_are_measured(monkeypatch, most, count):
    monkeypatch.setattr(module, "MOST", most)
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
