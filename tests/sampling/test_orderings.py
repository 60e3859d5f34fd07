"""Orders of drawing: permutations with their inverses, and maps that come out right under each of them."""

import json

import pytest
import torch
from torch import nn

from tesserae.errors import TesseraeError
from tesserae.evaluation.likelihood import likelihood
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import autoregressive
from tesserae.sampling.autoregressive import SampleOptions, upper_half
from tesserae.sampling.orderings import ORDERS, from_sequences, inverse, ordering, to_sequences

SHAPE = (3, 4)
MARK = 12  # one more than the codes of places


def sample(model, prefix, shape, given=None, **options):
    return autoregressive.sample(model, prefix, shape, SampleOptions(**options), given)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (2, 3), (4, 4), (5, 7), (8, 8), (16, 16)])
def test_every_order_is_a_permutation_with_its_inverse(name, shape):
    order = ordering(name, *shape)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(shape[0] * shape[1]))
    turns = inverse(order)
    assert torch.equal(order[turns], torch.arange(len(order)))
    assert torch.equal(turns[order], torch.arange(len(order)))


# Made by the permuters of the reference implementation, CompVis/taming-transformers.
REFERENCE = {
    ("spiral_in", 4): [
        15, 11, 7, 3, 2, 1, 0, 4, 8, 12, 13, 14, 10, 6, 5, 9,
    ],
    ("spiral_in", 8): [
        63, 55, 47, 39, 31, 23, 15, 7, 6, 5, 4, 3, 2, 1, 0, 8, 16, 24, 32, 40, 48, 56, 57, 58, 59, 60, 61, 62,
        54, 46, 38, 30, 22, 14, 13, 12, 11, 10, 9, 17, 25, 33, 41, 49, 50, 51, 52, 53, 45, 37, 29, 21, 20, 19,
        18, 26, 34, 42, 43, 44, 36, 28, 27, 35,
    ],
    ("spiral_out", 4): [
        9, 5, 6, 10, 14, 13, 12, 8, 4, 0, 1, 2, 3, 7, 11, 15,
    ],
    ("spiral_out", 8): [
        35, 27, 28, 36, 44, 43, 42, 34, 26, 18, 19, 20, 21, 29, 37, 45, 53, 52, 51, 50, 49, 41, 33, 25, 17, 9,
        10, 11, 12, 13, 14, 22, 30, 38, 46, 54, 62, 61, 60, 59, 58, 57, 56, 48, 40, 32, 24, 16, 8, 0, 1, 2, 3,
        4, 5, 6, 7, 15, 23, 31, 39, 47, 55, 63,
    ],
    ("z_curve", 4): [
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
    ],
    ("z_curve", 8): [
        0, 1, 8, 9, 2, 3, 10, 11, 16, 17, 24, 25, 18, 19, 26, 27, 4, 5, 12, 13, 6, 7, 14, 15, 20, 21, 28, 29,
        22, 23, 30, 31, 32, 33, 40, 41, 34, 35, 42, 43, 48, 49, 56, 57, 50, 51, 58, 59, 36, 37, 44, 45, 38, 39,
        46, 47, 52, 53, 60, 61, 54, 55, 62, 63,
    ],
    ("subsample", 4): [
        0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15,
    ],
    ("subsample", 8): [
        0, 4, 32, 36, 2, 6, 34, 38, 16, 20, 48, 52, 18, 22, 50, 54, 1, 5, 33, 37, 3, 7, 35, 39, 17, 21, 49, 53,
        19, 23, 51, 55, 8, 12, 40, 44, 10, 14, 42, 46, 24, 28, 56, 60, 26, 30, 58, 62, 9, 13, 41, 45, 11, 15,
        43, 47, 25, 29, 57, 61, 27, 31, 59, 63,
    ],
    ("alternate", 4): [
        0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11, 15, 14, 13, 12,
    ],
    ("alternate", 8): [
        0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8, 16, 17, 18, 19, 20, 21, 22, 23, 31, 30, 29, 28,
        27, 26, 25, 24, 32, 33, 34, 35, 36, 37, 38, 39, 47, 46, 45, 44, 43, 42, 41, 40, 48, 49, 50, 51, 52, 53,
        54, 55, 63, 62, 61, 60, 59, 58, 57, 56,
    ],
}


@pytest.mark.parametrize(("name", "side"), REFERENCE)
def test_orders_are_the_reference_implementations(name, side):
    assert ordering(name, side, side).tolist() == REFERENCE[name, side]


@pytest.mark.parametrize(("name", "times"), [  # when each position is sampled
    ("row", [[0, 1, 2], [3, 4, 5]]),
    ("alternate", [[0, 1, 2], [5, 4, 3]]),
    ("spiral_in", [[4, 3, 2], [5, 8, 1], [6, 7, 0]]),
    ("spiral_in", [[4, 3, 2, 1], [5, 6, 7, 0]]),
    ("spiral_in", [[4, 3], [5, 2], [6, 1], [7, 0]]),
    ("spiral_out", [[4, 5, 6], [3, 0, 7], [2, 1, 8]]),
    ("z_curve", [[0, 1, 4], [2, 3, 5], [6, 7, 8]]),
    # every other row and column, then what lies right of it, below it and diagonally
    ("subsample", [[0, 4, 1], [6, 8, 7], [2, 5, 3]]),
    ("subsample", [[0, 2, 1], [3, 5, 4]]),
    # models of older versions
    ("old_spiral_in", [[0, 1, 2], [7, 8, 3], [6, 5, 4]]),
    ("old_spiral_in", [[0, 1], [7, 2], [6, 3], [5, 4]]),
    ("old_spiral_out", [[8, 7, 6], [1, 0, 5], [2, 3, 4]]),
    ("old_subsample", [[0, 4, 1, 5], [6, 7, 8, 9], [2, 10, 3, 11], [12, 13, 14, 15]]),
    ("old_subsample", [[0, 2, 1], [3, 4, 5]]),
])
def test_small_ones_by_hand(name, times):
    times = torch.tensor(times)
    assert inverse(ordering(name, *times.shape)).view(times.shape).tolist() == times.tolist()


@pytest.mark.parametrize("name", ["subsample", "spiral_in", "spiral_out", "z_curve", "row"])
def test_a_model_of_an_older_version_keeps_its_order(name, tmp_path):
    """Three orders had other rules; whoever trained by them samples by them."""
    model = LatentTransformer(TransformerConfig(codebook_size=9, max_tokens=12, n_layer=1, n_head=1, n_embd=8,
                                                window=SHAPE, order=name))
    model.save_pretrained(tmp_path)
    assert LatentTransformer.from_pretrained(tmp_path).config == model.config
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    del saved["version"]
    path.write_text(json.dumps(saved), encoding="utf-8")
    changed = name in ("subsample", "spiral_in", "spiral_out")
    old = LatentTransformer.from_pretrained(tmp_path)
    assert old.config.order == (f"old_{name}" if changed else name)
    old.save_pretrained(tmp_path)
    assert LatentTransformer.from_pretrained(tmp_path).config.order == old.config.order
    prefix = torch.zeros(2, 1, dtype=torch.int64)
    times = inverse(ordering(old.config.order, *SHAPE))
    found = sample(old, prefix, SHAPE)
    assert torch.equal(found, to_sequences(found, old.config.order)[:, times].view(2, *SHAPE))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("before", [(), (3,), (2, 3)])
def test_sequences_become_the_maps_they_were(name, before):
    maps = torch.randint(0, 99, (*before, *SHAPE), generator=torch.Generator().manual_seed(0))
    sequences = to_sequences(maps, name)
    assert sequences.shape == (*before, 12)
    assert torch.equal(from_sequences(sequences, name, SHAPE), maps)
    assert torch.equal(sequences[..., 5], maps.flatten(-2)[..., ordering(name, *SHAPE)[5]])


def test_an_unknown_order_is_named():
    with pytest.raises(TesseraeError, match="order = 'column' is not known: use one of row, spiral_in"):
        ordering("column", 2, 2)


# ------------------------------------------------------------------ drawing


class OwnPlace(LatentTransformer):
    """It draws at each turn the code of that turn's place: what it should have learned under its order.

    One code more is a mark: after one it draws nothing but marks. So it shows what comes before what.
    """

    def __init__(self, order):
        super().__init__(TransformerConfig(codebook_size=MARK + 1, max_tokens=MARK, n_layer=1, n_head=1, n_embd=8,
                                           window=SHAPE, order=order))
        self.places = ordering(order, *SHAPE)

    def forward(self, prefix, indices):
        marks = (indices == MARK).long()
        codes = torch.where(marks.cumsum(1) > marks, MARK, self.places[:indices.shape[1]])  # (B,T)
        return 1000.0 * nn.functional.one_hot(codes, MARK + 1)


@pytest.mark.parametrize("name", ORDERS)
def test_drawn_maps_have_each_code_in_its_place(name):
    drawn = sample(OwnPlace(name), torch.zeros(2, 1, dtype=torch.int64), SHAPE, cached=False)
    assert torch.equal(drawn, torch.arange(12).view(1, *SHAPE).expand(2, -1, -1))


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_given_counts_from_its_turn_on(name):
    """A mark at one place changes what is drawn after it in the order, and nothing before."""
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[0, 1, 2] = True
    given = mask, torch.where(mask, MARK, 0)
    drawn = sample(OwnPlace(name), torch.zeros(1, 1, dtype=torch.int64), SHAPE, given=given, cached=False)[0]
    turns = inverse(ordering(name, *SHAPE)).view(SHAPE)
    assert torch.equal(drawn, torch.where(turns >= turns[1, 2], MARK, torch.arange(12).view(SHAPE)))


@pytest.fixture(scope="module")
def models():
    """A network with random weights, as large as makes every part of the input matter, under each order."""
    torch.manual_seed(0)
    config = {"codebook_size": 13, "prefix_vocab": 4, "max_tokens": 12, "n_layer": 2, "n_head": 2, "n_embd": 16}
    made = {name: LatentTransformer(TransformerConfig(**config, window=SHAPE, order=name)).eval() for name in ORDERS}
    for parameter in made["row"].parameters():
        nn.init.normal_(parameter, std=0.4)
    for model in made.values():
        model.load_state_dict(made["row"].state_dict())
    return made


@pytest.mark.parametrize("name", ORDERS)
def test_the_codes_are_those_of_the_row_order_in_other_places(models, name):
    """The network counts turns, not places: the same sequence, laid out otherwise."""
    prefix = torch.arange(4)[:, None]
    rows, drawn = (sample(models[order], prefix, SHAPE, seed=2) for order in ("row", name))
    assert torch.equal(to_sequences(drawn, name), rows.flatten(1))
    assert torch.equal(drawn, sample(models[name], prefix, SHAPE, seed=2, cached=False))


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("where", ["upper half", "scattered", "all"])
def test_completion_keeps_what_is_given(models, name, where):
    indices = torch.randint(13, (3, *SHAPE), generator=torch.Generator().manual_seed(0))
    mask = upper_half(indices)
    if where == "scattered":
        mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    if where == "all":
        mask = torch.ones_like(mask)
    prefix = torch.zeros(3, 1, dtype=torch.int64)
    drawn, slow = (sample(models[name], prefix, SHAPE, seed=4, given=(mask, indices), cached=cached)
                   for cached in (True, False))
    assert torch.equal(drawn[mask], indices[mask])
    assert torch.equal(drawn, slow)
    if where != "all":
        assert not torch.equal(drawn[~mask], indices[~mask])


@pytest.mark.parametrize("name", ORDERS)
def test_likelihoods_belong_to_places(models, name):
    """A map's nll under an order is that of its sequence, each where its code lies."""
    maps = torch.randint(13, (5, *SHAPE), generator=torch.Generator().manual_seed(3))
    prefix = torch.ones(5, 1, dtype=torch.int64)
    found = likelihood(models[name], prefix, maps, batch_size=2)
    expected = likelihood(models["row"], prefix, to_sequences(maps, name).view(5, *SHAPE))
    torch.testing.assert_close(to_sequences(found.nll, name), expected.nll.flatten(1))
    assert torch.equal(to_sequences(found.hit, name), expected.hit.flatten(1))
