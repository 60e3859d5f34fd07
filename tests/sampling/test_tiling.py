"""Large maps: a tile is what the VQGAN makes of it, tiles meet without a seam, and the memory is a tile's."""

from dataclasses import replace

import pytest
import torch

from tesserae.errors import TesseraeError
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.sampling.tiling import decode_map, encode_map

K, F = 16, 4


@pytest.fixture(scope="module")
def vqgan():
    torch.manual_seed(0)
    made = VQGAN(VQGANConfig(channels=8, channel_mult=(1, 1, 1), res_blocks=1, z_channels=8, codebook_size=K,
                             codebook_dim=4)).eval()
    torch.nn.init.normal_(made.codebook)  # codes that differ by more than the edges of a map do
    return made


@pytest.fixture
def seen(vqgan, monkeypatch):
    """The shapes that the networks were given."""
    shapes = []
    for name in ("encode", "decode"):
        plain = getattr(vqgan, name)
        monkeypatch.setattr(vqgan, name, lambda given, plain=plain: shapes.append(given.shape) or plain(given))
    return shapes


def codes_of(*shape):
    return torch.randint(K, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(6, 7), (2, 30), (8, 8)])
def test_a_map_within_the_limit_is_decoded_whole(vqgan, seen, shape):
    codes = codes_of(3, *shape)
    pictures = decode_map(vqgan, codes, tile=8)
    assert seen == [(1, *shape)] * 3
    assert torch.equal(pictures, torch.cat([vqgan.decode(one[None]) for one in codes]))
    assert torch.equal(decode_map(vqgan, codes[0], tile=8), pictures[:1])


@pytest.mark.parametrize("shape", [(9, 9), (5, 40), (23, 17), (8, 9), (70, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 2), (8, 6), (5, 1)])
def test_memory_is_bounded_by_the_tile(vqgan, seen, shape, tile, overlap):
    pictures = decode_map(vqgan, codes_of(2, *shape), tile=tile, overlap=overlap)
    assert pictures.shape == (2, 3, F * shape[0], F * shape[1])
    assert {tuple(given) for given in seen} == {(1, *(min(side, tile) for side in shape))}  # all of one size
    assert -1 <= pictures.min() <= pictures.max() <= 1


@pytest.mark.parametrize("shape", [(9, 21), (16, 16), (30, 7), (13, 13)])
@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
def test_weights_sum_to_one_and_every_code_is_kept_once(vqgan, monkeypatch, shape, overlap):
    """With a VQGAN whose picture of a code is the code itself, tiling changes nothing."""
    def plainly(codes):
        return (codes / K)[:, None].repeat_interleave(F, 2).repeat_interleave(F, 3).expand(-1, 3, -1, -1)

    monkeypatch.setattr(vqgan, "decode", plainly)
    monkeypatch.setattr(vqgan, "encode", lambda images: (images[:, 0, ::F, ::F] * K).round().long())
    codes = codes_of(1, *shape)
    pictures = decode_map(vqgan, codes, tile=8, overlap=overlap)
    torch.testing.assert_close(pictures, plainly(codes))
    assert torch.equal(encode_map(vqgan, pictures, tile=8, overlap=overlap), codes)


def test_one_tile_fades_into_the_next(vqgan, monkeypatch):
    """Tiles of one brightness each: equal steps from one to the other over the overlap."""
    values = iter([0.0, 1.0])
    monkeypatch.setattr(vqgan, "decode", lambda codes: torch.full(
        (1, 3, *(F * side for side in codes.shape[1:])), next(values)))
    column = decode_map(vqgan, codes_of(10, 4), tile=6, overlap=2)[0, 0, :, 0]
    steps = (torch.arange(2 * F) + 0.5) / (2 * F)
    torch.testing.assert_close(column, torch.cat([torch.zeros(4 * F), steps, torch.ones(4 * F)]))


def test_what_is_kept_of_a_tile_is_furthest_from_its_edges(vqgan, monkeypatch):
    """Codes that say how far they lie from the nearest inner edge of their tile."""
    def encode(images):
        size = images.shape[-1] // F
        place = torch.arange(size)
        return place.minimum(size - 1 - place)[None, None]

    monkeypatch.setattr(vqgan, "encode", encode)
    kept = encode_map(vqgan, torch.zeros(1, 3, F, F * 34), tile=8, overlap=4)[0, 0]
    assert kept[2:-2].min() >= 2  # half of the overlap
    assert kept[:2].tolist() == kept[-2:].flip(0).tolist() == [0, 1]


def test_overlap_brings_tiles_nearer_to_the_whole(vqgan):
    codes = codes_of(1, 32, 32)
    whole = vqgan.decode(codes)
    off = [decode_map(vqgan, codes, 16, overlap) - whole for overlap in (0, 4)]
    assert 0 < off[1].abs().mean() < 0.8 * off[0].abs().mean()
    seams = [(one[..., 16 * F] - one[..., 16 * F - 1]).abs().mean() for one in off]  # where tiles touch without it
    assert seams[1] < seams[0] / 2
    agreeing = [(encode_map(vqgan, whole, 16, overlap) == vqgan.encode(whole)).float().mean() for overlap in (0, 4)]
    assert 0.7 < agreeing[0] < agreeing[1] < 1


def test_encoding_reads_tiles_of_the_picture(vqgan, seen):
    images = torch.rand(2, 3, F * 9, F * 11) * 2 - 1
    codes = encode_map(vqgan, images, tile=6, overlap=2)
    assert codes.shape == (2, 9, 11)
    assert codes.dtype == torch.int64
    assert {tuple(given) for given in seen} == {(1, 3, 6 * F, 6 * F)}
    seen.clear()
    whole = encode_map(vqgan, images, tile=10)
    assert torch.equal(whole, torch.cat([vqgan.encode(one[None]) for one in images]))
    assert torch.equal(encode_map(vqgan, images[0], tile=10), whole[:1])


def test_other_channels_than_three():
    vqgan = VQGAN(VQGANConfig(in_channels=1, out_channels=1, channels=4, channel_mult=(1, 1), res_blocks=1,
                              z_channels=4, codebook_size=K, codebook_dim=2)).eval()
    pictures = decode_map(vqgan, codes_of(7, 12), tile=6, overlap=2)
    assert pictures.shape == (1, 1, 14, 24)
    assert encode_map(vqgan, pictures, tile=6, overlap=2).shape == (1, 7, 12)


def test_logits_of_classes_are_not_bounded(vqgan, monkeypatch):
    monkeypatch.setattr(vqgan, "config", replace(vqgan.config, view="segmentation", colours=(1, 2, 3)))
    logits = torch.full((1, 3, 6 * F, 6 * F), 7.0)
    monkeypatch.setattr(vqgan, "decode", lambda codes: logits)
    assert decode_map(vqgan, codes_of(9, 9), tile=6, overlap=2).allclose(torch.tensor(7.0))


def test_progress_counts_tiles(vqgan):
    for walk, given in ((decode_map, codes_of(2, 9, 12)), (encode_map, torch.zeros(2, 3, 9 * F, 12 * F))):
        told = []
        walk(vqgan, given, tile=6, overlap=0, progress=lambda *counts: told.append(counts))  # noqa: B023
        assert told == [(done, 8) for done in range(1, 9)]


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (8, 8), (8, -1)])
def test_tiles_that_do_not_fit_are_named(vqgan, tile, overlap):
    for walk, given in ((decode_map, codes_of(9, 9)), (encode_map, torch.zeros(1, 3, 9 * F, 9 * F))):
        with pytest.raises(TesseraeError, match=f"tile of {tile} codes with an overlap of {overlap}"):
            walk(vqgan, given, tile=tile, overlap=overlap)


def test_pictures_and_codes_that_do_not_fit_are_named(vqgan):
    with pytest.raises(TesseraeError, match="22x40 pixels do not divide into codes of 4x4"):
        encode_map(vqgan, torch.zeros(1, 3, 40, 22), tile=6)
    with pytest.raises(TesseraeError, match="this codebook has 0 to 15"):
        decode_map(vqgan, torch.full((9, 9), K), tile=6)
