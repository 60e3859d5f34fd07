"""The sliding window: as the definition does it, whatever is drawn at once."""

import math
from dataclasses import replace

import pytest
import torch

from tesserae.errors import TesseraeError
from tesserae.evaluation.likelihood import window_nll
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import autoregressive, sliding_window
from tesserae.sampling.autoregressive import SampleOptions, uniforms
from tesserae.sampling.filters import pick, rank
from tesserae.sampling.sliding_window import blocks_of, local_position, wavefronts

K, WINDOW = 11, (3, 4)
SHAPES = {"wide": (4, 13), "tall": (12, 5), "square": (9, 9)}


def sample(model, prefix, shape, given=None, progress=None, **options):
    return autoregressive.sample(model, prefix, shape, SampleOptions(**options), given, progress)


def sample_map(model, prefixes, shape, window, count=1, given=None, progress=None, preview=None, **options):
    return sliding_window.sample_map(model, prefixes, shape, window, count, SampleOptions(**options), given, progress,
                                     preview)


def one_by_one(model, prefixes, shape, window, count=1, given=None, **options):
    """Block after block, not a wavefront at once."""
    options = SampleOptions(**options)
    sampler = sliding_window.MapSampler(model, prefixes, shape, window, count, options, given)
    for block in blocks_of(shape, window, options.stride):
        sampler.sample([block])
    return sampler.maps


def made(window=WINDOW, prefix_length=2, prefix_vocab=7):
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(
        codebook_size=K, prefix_vocab=prefix_vocab, prefix_length=prefix_length,
        max_tokens=window[0] * window[1], n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return made()


def constant(samples, tops, lefts):
    return torch.full((len(samples), 2), 3)


def telling(samples, tops, lefts):
    """A prefix that differs between samples and places."""
    return torch.stack([(samples + 2 * tops) % 7, (tops + 3 * lefts) % 7], 1)


PREFIXES = pytest.mark.parametrize("prefixes", [constant, telling])
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def corner(i, size, window):
    """Where the window of code i begins: half a window before it, within the map."""
    return min(max(i - window // 2, 0), size - window)


@torch.no_grad()
def brute(model, prefixes, shape, window, number, seed, **filters):
    """The definition: crop the window, a full forward pass, the logits at the place. One map, and its nats."""
    codes, nll = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    noise = uniforms(seed, range(number, number + 1), shape[0] * shape[1])[0]
    for i in range(shape[0]):
        for j in range(shape[1]):
            top, left = corner(i, shape[0], window[0]), corner(j, shape[1], window[1])
            crop = codes[top:top + window[0], left:left + window[1]]
            prefix = prefixes(*(torch.tensor([value]) for value in (number, top, left)))
            logits = model(prefix, crop.flatten()[None])[0].view(*window, K)[i - top, j - left]
            codes[i, j] = pick(*rank(logits[None], **filters), noise[i * shape[1] + j][None])[0]
            nll[i, j] = -logits.log_softmax(-1)[codes[i, j]]
    return codes, nll


@pytest.mark.parametrize("window", range(1, 8))
@pytest.mark.parametrize("more", [0, 1, 2, 9])
def test_local_place_is_the_definition_at_every_edge(window, more):
    size = window + more
    for i in range(size):
        if i <= window / 2:
            expected = i
        elif size - i < window / 2:
            expected = window - (size - i)
        else:
            expected = window // 2
        assert local_position(i, size, window) == expected
        assert i - expected == corner(i, size, window)


@pytest.mark.parametrize(("window", "block"), [(8, 2), (8, 3), (8, 8), (5, 2), (5, 5), (4, 3)])
def test_a_block_lies_in_the_middle_of_its_window(window, block):
    size = 4 * window + 1
    for first in range(0, size, block):
        place = local_position(first, size, window, block)
        cut = min(block, size - first)
        assert 0 <= first - place <= size - window
        assert place + cut <= window
        if 0 < first - place < size - window:
            assert 0 <= place - (window - place - block) <= 1  # as much before as after it, or one more


@EVERY_SHAPE
@PREFIXES
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_wavefront_draws_what_one_by_one_draws(model, shape, prefixes, seed):
    how = {"shape": shape, "window": WINDOW, "count": 2, "seed": seed}
    at_once = sample_map(model, prefixes, **how)
    assert at_once.shape == (2, *shape)
    assert torch.equal(at_once, one_by_one(model, prefixes, **how))


@EVERY_SHAPE
@PREFIXES
def test_the_codes_and_their_nats_are_the_definition_s(model, shape, prefixes):
    filters = {"temperature": 0.9, "top_k": 9, "top_p": 0.95}
    codes = sample_map(model, prefixes, shape, WINDOW, count=2, seed=4, first=1, **filters)
    expected, nll = zip(*(brute(model, prefixes, shape, WINDOW, number, 4, **filters) for number in (1, 2)))
    assert torch.equal(codes, torch.stack(expected))

    def from_one(samples, *place):
        return prefixes(samples + 1, *place)

    found = window_nll(model, from_one, codes, WINDOW)
    torch.testing.assert_close(found, torch.stack(nll), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [(1, 4), (4, 1), (2, 2), (5, 3)])
def test_other_windows(window):
    model = made(window)
    codes = sample_map(model, telling, (7, 6), window, seed=1)
    assert torch.equal(codes[0], brute(model, telling, (7, 6), window, 0, 1)[0])


def test_a_sample_is_the_same_whatever_it_is_drawn_with(model):
    together = sample_map(model, telling, (5, 7), WINDOW, count=4, seed=8)
    alone = [sample_map(model, telling, (5, 7), WINDOW, seed=8, first=number) for number in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, sample_map(model, telling, (5, 7), WINDOW, count=4, seed=8, batch_size=3))
    assert not torch.equal(together[0], sample_map(model, telling, (5, 7), WINDOW, seed=9)[0])


@PREFIXES
def test_a_map_of_the_window_s_size_is_the_plain_sampler_s(model, prefixes):
    numbers, zero = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    expected = sample(model, prefixes(numbers, zero, zero), WINDOW, seed=6, top_p=0.9)
    for stride in (1, 2, 3):  # what is drawn for the moment has the random numbers that it has later
        drawn = sample_map(model, prefixes, WINDOW, WINDOW, count=3, seed=6, top_p=0.9, stride=stride)
        assert torch.equal(drawn, expected)


@EVERY_SHAPE
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_code_is_drawn_once_after_what_it_waits_for(shape, stride):
    drawn = torch.zeros(shape, dtype=torch.int64)
    for wave in wavefronts(blocks_of(shape, WINDOW, stride), shape, WINDOW):
        before = drawn.clone()
        for block in wave:
            assert 0 <= block.top <= shape[0] - WINDOW[0]
            assert 0 <= block.left <= shape[1] - WINDOW[1]
            assert before[block.top:block.row, block.left:block.left + WINDOW[1]].all()
            assert before[block.row:block.row + block.rows, block.left:block.col].all()
            drawn[block.row:block.row + block.rows, block.col:block.col + block.cols] += 1
    assert (drawn == 1).all()


def test_a_wave_is_the_first_that_is_possible():
    """A block of any wave but the first waits for one of the wave before."""
    shape = SHAPES["square"]
    before = torch.full(shape, -1)
    for number, wave in enumerate(wavefronts(blocks_of(shape, WINDOW), shape, WINDOW)):
        for block in wave:
            above = before[block.top:block.row, block.left:block.left + WINDOW[1]]
            known = [above.flatten(), before[block.row, block.left:block.col]]
            assert torch.cat([*known, torch.tensor([-1])]).max() == number - 1
        for block in wave:
            before[block.row, block.col:block.col + block.cols] = number
    assert number < shape[0] * shape[1] / 2


@EVERY_SHAPE
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_size_of_the_batch_changes_no_block(model, shape, stride, batch_size):
    how = {"shape": shape, "window": WINDOW, "count": 3, "seed": 3, "stride": stride}
    assert torch.equal(sample_map(model, telling, **how), sample_map(model, telling, batch_size=batch_size, **how))


@EVERY_SHAPE
@pytest.mark.parametrize("stride", [2, 3])
def test_blocks_in_a_wavefront(model, shape, stride):
    how = {"shape": shape, "window": WINDOW, "count": 2, "seed": 3, "stride": stride}
    at_once = sample_map(model, telling, **how)
    assert torch.equal(at_once, one_by_one(model, telling, **how))
    assert not torch.equal(at_once, sample_map(model, telling, **how | {"stride": 1}))


@pytest.mark.parametrize("stride", [1, 2, 3])
@torch.no_grad()
def test_blocks_are_the_definition_s(model, stride):
    """Windows drawn on from a block's first code on, without a cache: what is known is kept, the rest dropped."""
    shape, codes = (7, 10), torch.zeros(7, 10, dtype=torch.int64)
    noise = uniforms(5, range(1), 70)[0].view(shape)
    for row in range(0, shape[0], stride):
        for col in range(0, shape[1], stride):
            top = min(max(row - (WINDOW[0] - stride + 1) // 2, 0), shape[0] - WINDOW[0])
            left = min(max(col - (WINDOW[1] - stride + 1) // 2, 0), shape[1] - WINDOW[1])
            crop = codes[top:top + WINDOW[0], left:left + WINDOW[1]].clone()
            prefix = telling(*(torch.tensor([value]) for value in (0, top, left)))
            for i in range(row - top, min(row + stride - top, WINDOW[0])):
                for j in range(col - left if i == row - top else 0, WINDOW[1]):
                    if left + j >= col:
                        logits = model(prefix, crop.flatten()[None])[0].view(*WINDOW, K)[i, j]
                        crop[i, j] = pick(*rank(logits[None]), noise[top + i, left + j][None])[0]
            inside = (slice(row - top, row - top + stride), slice(col - left, col - left + stride))
            codes[row:row + stride, col:col + stride] = crop[inside]
    assert torch.equal(sample_map(model, telling, shape, WINDOW, seed=5, stride=stride)[0], codes)


def test_a_stride_of_the_window_draws_windows_that_know_nothing_of_each_other():
    window = (4, 4)
    model = made(window)
    codes = sample_map(model, constant, (8, 12), window, seed=2, stride=4)[0]
    noise = uniforms(2, range(1), 96).view(8, 12)
    assert len(wavefronts(blocks_of((8, 12), window, 4), (8, 12), window)) == 1
    with torch.no_grad():
        for top in (0, 4):
            for left in (0, 4, 8):
                tile = codes[top:top + 4, left:left + 4].flatten()
                logits = model(torch.tensor([[3, 3]]), tile[None])[0]
                again = pick(*rank(logits), noise[top:top + 4, left:left + 4].flatten())
                assert torch.equal(again, tile)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_is_given_is_kept(model, stride):
    """Codes that were drawn, given again, change nothing; others change what comes after them."""
    shape, how = (7, 10), {"window": WINDOW, "count": 2, "seed": 1, "stride": stride}
    free = sample_map(model, telling, shape, **how)
    mask = torch.zeros(2, *shape, dtype=torch.bool)
    mask[0, 3, 4:6] = mask[1, 2:, 5] = True
    indices = torch.randint(K, mask.shape, generator=torch.Generator().manual_seed(0))
    codes = sample_map(model, telling, shape, given=(mask, indices), **how)
    assert torch.equal(codes[mask], indices[mask])
    assert not torch.equal(codes[~mask], free[~mask])
    assert torch.equal(codes[0, :1], free[0, :1])
    assert torch.equal(codes, one_by_one(model, telling, shape, given=(mask, indices), **how))
    other = torch.where(mask, indices, K - 1)  # at places that are not given anything may stand
    assert torch.equal(codes, sample_map(model, telling, shape, given=(mask, other), **how))
    assert torch.equal(free, sample_map(model, telling, shape, given=(mask, free), **how))


def test_completion_in_one_window_is_the_plain_sampler_s(model):
    mask = torch.zeros(2, *WINDOW, dtype=torch.bool)
    mask[:, 0] = mask[1, 2, 1] = True
    given = (mask, torch.randint(K, mask.shape, generator=torch.Generator().manual_seed(1)))
    prefix = constant(*torch.zeros(3, 2, dtype=torch.int64))
    assert torch.equal(sample_map(model, constant, WINDOW, WINDOW, count=2, seed=3, given=given),
                       sample(model, prefix, WINDOW, seed=3, given=given))


def test_blocks_make_the_map_less_likely(model):
    """What a stride costs: nats under the definition's windows."""
    exact, coarse = (sample_map(model, constant, (12, 16), WINDOW, count=8, stride=stride) for stride in (1, 3))
    assert window_nll(model, constant, exact, WINDOW).mean() < window_nll(model, constant, coarse, WINDOW).mean()


def test_nats_do_not_depend_on_the_batch(model):
    maps = torch.randint(K, (3, 5, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(window_nll(model, telling, maps, WINDOW),
                               window_nll(model, telling, maps, WINDOW, batch_size=1), rtol=1e-4, atol=1e-4)
    assert window_nll(model, telling, maps, WINDOW).mean() > math.log(K)  # random maps are worse than no model


def test_progress_and_the_growing_map(model):
    counts, moments = [], []
    codes = sample_map(model, constant, (9, 9), WINDOW, count=2, stride=2,
                       progress=lambda *done: counts.append(done),
                       preview=lambda *shown: moments.append(shown))
    assert counts[-1] == (162, 162)
    assert [done for done, _ in counts] == sorted({done for done, _ in counts})
    for (early, drawn), (_, later) in zip(moments, [*moments[1:], moments[-1]]):
        assert torch.equal(early[drawn], codes[drawn])
        assert not (drawn & ~later).any()
    assert 3 < len(moments) <= 65
    assert not moments[0][1].all()
    assert moments[-1][1].all()


def test_the_model_s_mode_is_left_as_it_was(model):
    model.train()
    with pytest.raises(TesseraeError):
        sample_map(model, constant, (5, 5), WINDOW, temperature=-1)
    sample_map(model, constant, (5, 5), WINDOW)
    assert model.training
    model.eval()


@pytest.mark.parametrize(("call", "said"), [
    ({"shape": (2, 9)}, "2x9 codes is smaller than the window of 3x4"),
    ({"shape": (9, 3)}, "9x3 codes is smaller"),
    ({"window": (3, 3)}, "3x3 codes was requested; this transformer models maps of 12"),
    ({"stride": 4}, "stride of 4 does not fit a window of 3x4 codes: take 1 to 3"),
    ({"stride": 0}, "stride of 0"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"top_p": 2.0}, "top_p"),
    ({"given": (torch.ones(1, 5, 5).bool(), torch.zeros(1, 5, 5).long())}, r"given mask .* of \(1, 5, 6\)"),
    ({"given": (torch.ones(1, 5, 6).bool(), torch.full((1, 5, 6), K))}, "given codes run from 11"),
    ({"prefixes": lambda samples, tops, lefts: constant(samples, tops, lefts) + 4}, "tokens run from 7 to 7"),
    ({"prefixes": lambda samples, tops, lefts: torch.zeros(1, 2).long(), "count": 2}, "a row for each window"),
    ({"prefixes": lambda samples, tops, lefts: samples[:, None]}, "the prefix has the shape"),
])
def test_what_does_not_fit_is_named(model, call, said):
    with pytest.raises(TesseraeError, match=said):
        sample_map(model, **{"prefixes": constant, "shape": (5, 6), "window": WINDOW} | call)


def test_only_row_major_transformers_slide(model):
    other = made()
    other.config = replace(model.config, order="spiral_in")
    for call in (lambda: sample_map(other, constant, (5, 6), WINDOW),
                 lambda: window_nll(other, constant, torch.zeros(1, 5, 6).long(), WINDOW)):
        with pytest.raises(TesseraeError, match="in the order 'spiral_in'"):
            call()


def test_the_window_is_the_one_that_was_trained_on():
    other = made()
    other.config = replace(other.config, window=WINDOW)
    assert sample_map(other, constant, (5, 6), WINDOW).shape == (1, 5, 6)
    with pytest.raises(TesseraeError, match="4x3 codes was requested; this transformer models maps of 3x4 codes"):
        sample_map(other, constant, (5, 6), (4, 3))


def test_maps_with_foreign_codes_are_named(model):
    with pytest.raises(TesseraeError, match="codes run from 11 to 11"):
        window_nll(model, constant, torch.full((1, 5, 6), K), WINDOW)
