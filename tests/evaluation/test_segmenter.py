"""The segmenter learns what is there to learn, no more, and the same from the same seed."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from tesserae.data.batches import to_unit
from tesserae.errors import TesseraeError
from tesserae.evaluation.segmenter import Segmenter, agreement, disturbed, fit_segmenter, predicted

COLOURS = torch.tensor([[230, 40, 40], [40, 200, 60], [30, 60, 220]], dtype=torch.uint8)


def toy(count, seed=0, size=32):
    """Blots of three colours and their masks: images (N,3,H,W) uint8, masks (N,H,W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    heights = torch.rand(count, 3, 4, 4, generator=generator)
    masks = F.interpolate(heights, size=(size, size), mode="bicubic").argmax(1).to(torch.uint8)
    return COLOURS[masks.long()].permute(0, 3, 1, 2).contiguous(), masks


@pytest.fixture(scope="module")
def fitted():
    return fit_segmenter(*toy(64), 3, steps=40, batch_size=8, seed=0)


def test_what_colours_tell_is_learnt_and_holds_for_unseen_pictures(fitted):
    found = agreement(fitted, *toy(16, seed=1))
    assert found["pixel_accuracy"] > 0.95
    assert found["miou"] > 0.9


def test_masks_of_other_pictures_teach_nothing():
    images, masks = toy(64)
    segmenter = fit_segmenter(images, masks.roll(1, 0), 3, steps=40, batch_size=8, seed=0)
    assert agreement(segmenter, *toy(16, seed=1))["pixel_accuracy"] < 0.6


def test_softened_and_tinted_pictures_are_judged_by_their_layout(fitted):
    images, masks = toy(16, seed=1)
    soft = F.avg_pool2d(to_unit(images), 3, stride=1, padding=1, count_include_pad=False) * 0.9 + 0.05
    assert agreement(fitted, soft, masks)["pixel_accuracy"] > 0.9


def test_bytes_and_floats_are_the_same_picture(fitted):
    images, masks = toy(8, seed=2)
    assert agreement(fitted, images, masks) == agreement(fitted, to_unit(images), masks)
    assert torch.equal(predicted(fitted, images, 3), predicted(fitted, to_unit(images)))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator():
    pairs = toy(16)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    runs = [fit_segmenter(*pairs, 3, steps=3, batch_size=4, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_half_precision_is_for_the_sums_alone():
    segmenter = fit_segmenter(*toy(8), 3, steps=2, batch_size=4, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in segmenter.parameters())
    assert 0 < agreement(segmenter, *toy(4, seed=1))["pixel_accuracy"] < 1


def test_pictures_of_odd_sizes_are_fit_too():
    images, masks = toy(32)
    segmenter = fit_segmenter(images[..., :30, :25], masks[..., :30, :25], 3, steps=30, batch_size=8)
    assert agreement(segmenter, *toy(8, seed=1))["pixel_accuracy"] > 0.85


def test_it_comes_frozen_and_stops_in_time():
    told = []
    segmenter = fit_segmenter(*toy(16), 3, steps=10**6, batch_size=4, seconds=0.3,
                              progress=lambda done, steps: told.append(done))
    assert 1 <= len(told) < 1000
    assert not segmenter.training
    assert not any(parameter.requires_grad for parameter in segmenter.parameters())


@pytest.mark.parametrize("size", [(32, 32), (20, 37), (5, 3)])
def test_logits_of_any_size(size):
    assert Segmenter(4, widths=(8, 16)).eval()(torch.zeros(2, 3, *size)).shape == (2, 4, *size)


def test_each_pixel_is_judged_where_it_is(fitted):
    """A square is found at its place, not a patch beside it."""
    masks = torch.zeros(1, 32, 32, dtype=torch.int64)
    masks[:, 9:19, 14:22] = 2
    found = predicted(fitted, COLOURS[masks].permute(0, 3, 1, 2))
    rows, columns = (found == 2).nonzero()[:, 1].float(), (found == 2).nonzero()[:, 2].float()
    assert float(rows.mean()) == pytest.approx(13.5, abs=0.7)
    assert float(columns.mean()) == pytest.approx(17.5, abs=0.7)


class Answer(torch.nn.Module):
    """Says what it is told to."""

    def __init__(self, masks, classes):
        super().__init__()
        self.classes, self.answer = classes, torch.nn.Parameter(F.one_hot(masks, classes).movedim(-1, 1).float())

    def forward(self, images):
        return self.answer[images[:, 0, 0, 0].round().long()]


def test_agreement_of_perfect_masks_is_one_and_else_torchmetrics():
    masks = torch.randint(0, 4, (5, 8, 8), generator=torch.Generator().manual_seed(0))
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 8, 8)
    assert agreement(Answer(masks, 6), images, masks, 2) == {"pixel_accuracy": 1.0, "miou": 1.0}
    wrong = torch.where(torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)) < 0.3, 1, masks)
    found = agreement(Answer(wrong, 6), images, masks, 2)
    accuracy = multiclass_accuracy(wrong, masks, 6, average="micro")
    assert found["pixel_accuracy"] == pytest.approx(float(accuracy))
    assert found["miou"] == pytest.approx(float(multiclass_jaccard_index(wrong, masks, 4)), rel=1e-5)


NO_CLASS = -100


def test_pixels_of_no_class_are_neither_learned_from_nor_judged():
    images, masks = toy(32)
    void = torch.where(torch.rand(masks.shape, generator=torch.Generator().manual_seed(0)) < 0.3, NO_CLASS,
                       masks.to(torch.int16))
    void[0] = NO_CLASS  # a picture of nothing else
    segmenter = fit_segmenter(images, void, 3, steps=40, batch_size=8)
    assert agreement(segmenter, *toy(16, seed=1))["pixel_accuracy"] > 0.9
    answers = torch.randint(0, 4, (5, 8, 8), generator=torch.Generator().manual_seed(0))
    asked = answers.clone()
    asked[:, :3], asked[4] = NO_CLASS, NO_CLASS
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 8, 8)
    assert agreement(Answer(answers, 6), images, asked, 2) == {"pixel_accuracy": 1.0, "miou": 1.0}
    wrong = answers.clone()
    wrong[:, :3] = (wrong[:, :3] + 1) % 4
    assert agreement(Answer(wrong, 6), images, asked, 2) == {"pixel_accuracy": 1.0, "miou": 1.0}


def test_disturbing_keeps_the_picture_and_follows_the_generator():
    images = to_unit(toy(32)[0])
    twice = [disturbed(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], twice[2])
    assert float(twice[0].abs().max()) <= 1
    assert 0.02 < float((twice[0] - images).abs().mean()) < 0.3
    grey = torch.full((64, 3, 16, 16), 0.2)
    assert float(disturbed(grey, torch.Generator().manual_seed(0)).mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("images", "masks", "words"), [
    (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 7), "no pairs"),
    (torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8), "no pairs"),
    (torch.zeros(2, 3, 8, 8), torch.full((2, 8, 8), 3), "indices from 3 to 3, and there are 3 classes"),
    (torch.zeros(2, 3, 8, 8), torch.full((2, 8, 8), -1), "indices from -1"),
])
def test_pairs_that_do_not_fit_are_refused(images, masks, words):
    with pytest.raises(TesseraeError, match=words):
        fit_segmenter(images.to(torch.uint8), masks, 3, steps=1)
    with pytest.raises(TesseraeError, match=words):
        agreement(Segmenter(3), images, masks)
