"""What codes stand for: patches against a search by hand."""

import pytest
import torch

from tesserae.data.batches import to_unit
from tesserae.data.views import Viewed, view_of
from tesserae.evaluation import code_patches


@pytest.fixture(scope="module")
def maps(vqgan, pictures):
    return vqgan.encode(to_unit(pictures.batch(range(21)))).int()


@pytest.fixture(scope="module")
def viewed(vqgan, pictures):
    return Viewed(pictures, view_of(vqgan.config))


@pytest.mark.parametrize("batch_size", [4, 32])
def test_nearest_patches_agree_with_a_search_by_hand(vqgan, viewed, pictures, maps, batch_size):
    codes = [int(maps[0, 0, 0]), int(maps[5, 2, 3])]
    found = code_patches.nearest_patches(vqgan, viewed, maps, codes, 3, batch_size)
    with torch.no_grad():
        z_hat = vqgan.latents(to_unit(pictures.batch(range(21))))  # (N,n_z,h,w)
    for number, code in enumerate(codes):
        distance = (z_hat - vqgan.codebook[code].detach()[None, :, None, None]).norm(dim=1)  # (N,h,w)
        order = (distance + 1000 * (maps != code)).flatten(1).min(1).values.sort()
        assert found.picture[number].tolist() == order.indices[:3].tolist()
        for picture, row, column, length, chosen in zip(*(each[number] for each in vars(found).values())):
            assert length == pytest.approx(float(distance[picture, row, column]), rel=1e-4)
            assert bool(chosen) == (int(maps[picture, row, column]) == code)


def test_a_dead_code_still_has_its_nearest_patches(vqgan, viewed, maps):
    dead = next(code for code in range(24) if code not in maps) if len(maps.unique()) < 24 else None
    relabelled = maps if dead is not None else torch.where(maps == 0, 1, maps)
    found = code_patches.nearest_patches(vqgan, viewed, relabelled, [dead or 0], 2, 8)
    assert not found.chosen.any()
    assert found.distance.isfinite().all()


def test_few_maps_at_once_find_the_same_pictures(monkeypatch, maps):
    wanted = code_patches.pictures_with(maps, [int(maps[0, 0, 0]), 3, 99], 4)
    monkeypatch.setattr(code_patches, "MAPS_AT_ONCE", 5)
    assert torch.equal(code_patches.pictures_with(maps, [int(maps[0, 0, 0]), 3, 99], 4), wanted)


def test_few_pictures_at_once_give_the_same_entries(monkeypatch, vqgan, viewed, maps):
    codes = [int(maps[0, 0, 0]), int(maps[5, 2, 3]), int(maps[9, 1, 1])]
    whole = code_patches.code_patches(vqgan, viewed, maps, codes, 4, 32)
    monkeypatch.setattr(code_patches, "PICTURES_AT_ONCE", 5)
    parts = code_patches.code_patches(vqgan, viewed, maps, codes, 4, 2)
    assert torch.equal(parts.real, whole.real)
    torch.testing.assert_close(parts.context, whole.context, rtol=1e-3, atol=1e-4)


def test_crops_have_the_code_in_the_middle_and_repeat_the_edge():
    image = torch.arange(3 * 32 * 32).reshape(1, 3, 32, 32).float()
    rows, columns = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 3])
    crops = code_patches.crop_patches(image.expand(3, -1, -1, -1), rows, columns, 8)
    assert crops.shape == (3, 3, 24, 24)
    for crop, row, column in zip(crops, rows * 8, columns * 8):
        assert torch.equal(crop[:, 8:16, 8:16], image[0, :, row:row + 8, column:column + 8])
    assert torch.equal(crops[1], image[0, :, 0:24, 8:32])
    assert (crops[0][:, :8, 8] == image[0, :, :1, 0]).all()


def test_decoded_maps_lose_their_edge(vqgan):
    maps = code_patches.uniform_maps([2, 5], side=5)
    whole = code_patches.decode_patches(vqgan, maps, edge=0)
    assert whole.shape == (2, 3, 40, 40)
    assert torch.equal(code_patches.decode_patches(vqgan, maps, edge=1), whole[:, :, 8:32, 8:32])
    assert not torch.equal(whole[0], whole[1])


def test_an_entry_puts_together_the_same_place_decoded_and_real(vqgan, viewed, pictures, maps):
    code = int(maps[3, 1, 1])
    entries = code_patches.code_patches(vqgan, viewed, maps, [code], 4, 8)
    assert entries.alone.shape == entries.context.shape == (1, 3, 24, 24)
    assert entries.real.shape == (1, 4, 3, 24, 24)
    assert entries.chosen[0, 0]
    place = code_patches.nearest_patches(vqgan, viewed, maps, [code], 1, 8)
    where = [int(each[0, 0]) for each in (place.picture, place.row, place.column)]
    top, left = where[1] * 8, where[2] * 8
    decoded = vqgan.decode(maps[where[0]][None].long())[0, :, top:top + 8, left:left + 8]
    assert torch.allclose(entries.context[0][:, 8:16, 8:16], decoded, atol=1e-5)
    real = pictures.batch([where[0]])[0, :, top:top + 8, left:left + 8]
    assert torch.equal(entries.real[0, 0][:, 8:16, 8:16], real)


def test_the_context_holds_the_code_where_the_encoder_chose_another(vqgan, viewed, maps):
    absent = torch.where(maps == 7, 8, maps)
    with_code = code_patches.code_patches(vqgan, viewed, absent, [7], 1, 8).context
    place = code_patches.nearest_patches(vqgan, viewed, absent, [7], 1, 8)
    plain = absent[place.picture[:, 0]].long()
    assert not torch.equal(with_code[0][:, 8:16, 8:16], code_patches.crop_patches(
        vqgan.decode(plain), place.row[:, 0], place.column[:, 0], 8)[0][:, 8:16, 8:16])


@pytest.mark.parametrize("batch_size", [4, 32])
def test_mean_patches_are_means(viewed, pictures, maps, batch_size):
    means = code_patches.mean_patches(viewed, maps, 30, batch_size)
    images, code = to_unit(pictures.batch(range(21))), int(maps[2, 3, 1])
    places = (maps == code).nonzero().tolist()
    patches = [images[n, :, 8 * row:8 * row + 8, 8 * column:8 * column + 8] for n, row, column in places]
    assert torch.allclose(means[code], torch.stack(patches).mean(0), atol=1e-5)
    assert (means[24:] == 0).all()  # codes that no map holds


def test_a_mosaic_lays_each_codes_patch_in_its_place():
    patches = torch.randn(5, 3, 2, 2)
    maps = torch.tensor([[[1, 4, 0], [2, 2, 3]]])
    laid = code_patches.mosaic(patches, maps)
    assert laid.shape == (1, 3, 4, 6)
    assert torch.equal(laid[0, :, 2:4, 4:6], patches[3])
    assert torch.equal(laid[0, :, 0:2, 2:4], patches[4])


def test_pairs_that_are_missing_stay_white(viewed, pictures, maps):
    first, second = int(maps[0, 0, 0]), int(maps[0, 0, 1])
    patches = code_patches.pair_patches(viewed, maps, [(first, second)], "right", 400, 8)
    assert patches.shape == (1, 400, 3, 40, 40)
    assert torch.equal(patches[0, 0][:, 16:24, 16:32], pictures.batch([0])[0, :, 0:8, 0:16])
    assert (patches[0, -1] == 255).all()


def test_every_code_finds_pictures_that_hold_it_and_few_pictures_serve_many():
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(6, (60, 4, 4), generator=generator)
    indices[17, 2, 2] = 9  # in one picture alone
    chosen = code_patches.pictures_with(indices, [0, 1, 2, 9, 30], 5)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    held = {code: sum(bool((indices[number] == code).any()) for number in chosen.tolist()) for code in (0, 1, 2, 9)}
    assert 17 in chosen
    assert held[9] == 1
    assert min(held[0], held[1], held[2]) >= 5
    assert len(chosen) <= 12  # one for 9, five for the dead code 30, and the others share theirs
    having = (indices == 0).flatten(1).any(1).nonzero()[:, 0]
    assert code_patches.pictures_with(indices, [0], 500).tolist() == having.tolist()
