"""Batches are a pure function of (seed, step, process)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserae.data.batches import augment, batch_indices, to_bytes, to_unit


def sequence(count, size, steps, seed):
    return np.concatenate([batch_indices(count, size, step, seed) for step in range(steps)])


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(count, size, seed):
    epochs = 3
    found = sequence(count, size, -(-epochs * count // size), seed)[: epochs * count].reshape(epochs, count)
    for epoch in found:
        assert sorted(epoch) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    found = sequence(50, 50, 3, seed=0)
    assert not np.array_equal(found[:50], found[50:100])
    assert not np.array_equal(found, sequence(50, 50, 3, seed=1))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 50), step=st.integers(0, 1000), processes=st.sampled_from([1, 2, 4]))
def test_processes_share_the_batch_of_one(count, step, processes):
    alone = batch_indices(count, 8, step, seed=3)
    size = 8 // processes
    parts = [batch_indices(count, size, step, 3, process, processes) for process in range(processes)]
    assert np.array_equal(np.concatenate(parts), alone)


def test_a_step_does_not_depend_on_those_before():
    late = batch_indices(100, 16, 999, seed=5)
    for step in (3, 40, 998):
        batch_indices(100, 16, step, seed=6)
    assert np.array_equal(batch_indices(100, 16, 999, seed=5), late)
    assert late.dtype == np.int64


def test_no_pictures_no_batch():
    with pytest.raises(ValueError, match="at least one picture"):
        batch_indices(0, 4, 0, seed=0)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=generator)


def test_nothing_asked_nothing_done(images):
    assert torch.equal(augment(images, 0, 0, range(64), flip=False, zoom=1.0), images)


def test_flip_mirrors_about_half_and_changes_with_the_step(images):
    mirrored = []
    for step in range(8):
        out = augment(images, step, 0, range(64), flip=True, zoom=1.0)
        whether = [torch.equal(a, b.flip(-1)) for a, b in zip(out, images)]
        assert all(m or torch.equal(a, b) for m, a, b in zip(whether, out, images))
        mirrored.append(whether)
    assert 0.4 < np.mean(mirrored) < 0.6
    assert len({tuple(row) for row in mirrored}) == 8


def test_augmentation_follows_the_picture_not_its_place(images):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    straight = augment(images, 7, 2, range(64), flip=True, zoom=1.3)
    shuffled = augment(images[order], 7, 2, order.tolist(), flip=True, zoom=1.3)
    assert torch.equal(shuffled, straight[order])
    parts = [augment(images[k : k + 16], 7, 2, range(k, k + 16), True, 1.3) for k in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), straight)


def test_zoom_keeps_to_the_picture():
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(20, 3, 32, 32).contiguous()
    out = augment(ramp, 0, 0, range(20), flip=False, zoom=2.0)
    assert out.dtype == torch.uint8
    assert out.shape == ramp.shape
    steps = out.float().diff(dim=-1)
    assert (steps >= 0).all()  # still a ramp from left to right
    spans = out[:, 0, 0, -1].float() - out[:, 0, 0, 0].float()
    assert spans.min() >= 255 / 2 * 0.9  # a window of half the side at the least
    assert spans.std() > 5
    assert torch.equal(augment(ramp[:1], 0, 0, [0], False, 2.0), out[:1])
    plain = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    assert torch.equal(augment(plain, 0, 0, range(4), flip=True, zoom=3.0), plain)  # no border comes in


@pytest.fixture
def places():
    """Pictures whose pixels tell picture, row and column."""
    rows, columns = torch.arange(16)[:, None], torch.arange(16)
    return torch.stack([torch.stack([torch.full((16, 16), number), rows.expand(16, 16), columns.expand(16, 16)])
                        for number in range(64)])


def test_a_crop_is_a_square_of_its_picture(places):
    out = augment(places, 3, 0, range(64), flip=False, crop=6)
    assert out.shape == (64, 3, 6, 6)
    for number, cut in enumerate(out):
        top, left = cut[1, 0, 0].item(), cut[2, 0, 0].item()
        assert torch.equal(cut, places[number, :, top:top + 6, left:left + 6])


def test_crops_come_from_everywhere_alike(places):
    drawn = torch.cat([augment(places, step, 0, range(64), flip=False, crop=13)[:, 1:, 0, 0] for step in range(40)])
    counts = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16)  # 16 - 13 + 1 = 4 places a side
    expected = len(drawn) / 16
    assert len(counts) == 16
    assert ((counts - expected) ** 2 / expected).sum() < 15 + 5 * 30**0.5  # chi squared of 15 degrees of freedom


def test_a_crop_follows_the_picture_and_the_step(places):
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    straight = augment(places, 7, 2, range(64), flip=True, crop=6)
    assert torch.equal(augment(places[order], 7, 2, order.tolist(), flip=True, crop=6), straight[order])
    assert not torch.equal(augment(places, 8, 2, range(64), flip=True, crop=6), straight)
    assert not torch.equal(augment(places, 7, 3, range(64), flip=True, crop=6), straight)


def test_what_is_cut_is_the_mirrored_picture(places):
    mirrored = augment(places, 7, 2, range(64), flip=True)
    assert torch.equal(augment(places, 7, 2, range(64), flip=True, crop=6),
                       augment(mirrored, 7, 2, range(64), flip=False, crop=6))


@pytest.mark.parametrize("crop", [0, 16, 99])
def test_no_crop_is_the_whole_picture(images, crop):
    assert torch.equal(augment(images, 0, 0, range(64), flip=False, crop=crop), images)


def test_pictures_and_masks_are_cut_together(images):
    """A mask of a picture's own values stays that, mirrored and cut, whatever the channels."""
    masks = images[:, :1].int() * 257
    pictures = augment(images, 5, 1, range(64), flip=True, crop=8)
    assert torch.equal(augment(masks, 5, 1, range(64), flip=True, crop=8, smooth=False), pictures[:, :1].int() * 257)


def test_what_is_not_smooth_gets_no_new_value():
    masks = torch.randint(0, 2, (20, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8) * 250
    out = augment(masks, 0, 0, range(20), flip=True, zoom=2.5, smooth=False)
    assert set(out.unique().tolist()) == {0, 250}
    assert not torch.equal(out, masks)
    assert len(augment(masks, 0, 0, range(20), flip=True, zoom=2.5).unique()) > 50


def test_bytes_survive_the_unit_range():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    unit = to_unit(values)
    assert unit.dtype == torch.float32
    assert (unit.min().item(), unit.max().item()) == (-1.0, 1.0)
    assert torch.equal(to_bytes(unit), values)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
