"""Drawing for what is request: windows of conditions where those of the codes are, on maps of any size."""

import pytest
import torch
from torch.nn.functional import one_hot

from tesserae.data.codes import CodeMaps
from tesserae.data.conditions import Codes, Coordinates, Label, make_prefix, record
from tesserae.data.paired import PairedMaps
from tesserae.errors import TesseraeError
from tesserae.models.kv_cache import KVCache
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import conditional
from tesserae.sampling.autoregressive import SampleOptions, sample
from tesserae.sampling.conditional import SampleRequest, prefixes_of, request_of, window_of
from tesserae.sampling.orderings import ordering
from tesserae.sampling.sliding_window import sample_map

K, WINDOW = 11, (3, 3)


def sample_codes(model, request, shape, given=None, progress=None, preview=None, **options):
    return conditional.sample_codes(model, request, shape, SampleOptions(**options), given, progress, preview)


def config(*conditions, window=WINDOW, **changes):
    vocab, length = (sum(getattr(each, name) for each in conditions) for name in ("vocab", "length"))
    return TransformerConfig(codebook_size=K, prefix_vocab=vocab, prefix_length=length,
                             max_tokens=window[0] * window[1], n_layer=1, n_head=2, n_embd=16, window=window,
                             conditions=tuple(record(each) for each in conditions), **changes)


def random_model(*conditions, **changes):
    torch.manual_seed(0)
    model = LatentTransformer(config(*conditions, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


class Reader(LatentTransformer):
    """Instead of what it has learned it samples the codes that `wanted(prefix (B,P)) -> (B,T)` says."""

    def __init__(self, config, wanted):
        super().__init__(config)
        self.wanted = wanted

    def forward(self, prefix, indices):
        return self._sure(self.wanted(prefix)[:, :indices.shape[1]])

    def prefill(self, prefix, indices=None, max_tokens=None):
        cache = KVCache(1, len(prefix), self.config.max_tokens)
        codes = self.wanted(prefix)
        kept = codes[:, None, None, :]  # in the place of a key
        cache.buffers, known = [(kept, kept)], 0 if indices is None else indices.shape[1]
        cache.length = self.config.prefix_length + known
        return self._sure(codes[:, known]), cache

    def step(self, codes, cache):
        cache.length += codes.view(len(codes), -1).shape[1]
        return self._sure(cache.buffers[0][0][:, 0, 0, cache.length - self.config.prefix_length])

    def _sure(self, codes):
        return 1000.0 * one_hot(codes, K)


def paired(count=8, side=6, labels=True, scale=1, window=WINDOW[0]):
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(count) % 3 if labels else None
    names = ["a", "b", "c"] if labels else []
    s, r = (torch.randint(K, (count, 1, edge, edge), generator=generator).int() for edge in (side, side * scale))
    return PairedMaps(CodeMaps(s, classes, names, K), {"map": CodeMaps(r, classes, names, K)}, window)


# ------------------------------------------------------------------ what is request


def test_asked_pictures_are_repeated_and_chosen():
    request = SampleRequest(3, torch.tensor([5, 6, 7]), {"map": torch.arange(3).view(3, 1, 1)})
    twice = request.repeated(2)
    assert len(twice) == 6
    assert twice.labels.tolist() == twice.maps["map"].add(5).flatten().tolist() == [5, 5, 6, 6, 7, 7]
    some = request.some(torch.tensor([2, 0]))
    assert (len(some), some.labels.tolist(), some.maps["map"].flatten().tolist()) == (2, [7, 5], [2, 0])
    assert SampleRequest(4).repeated(3).labels is None
    assert len(SampleRequest(4).repeated(3)) == 12


def test_pictures_of_the_set_are_asked_for_as_they_are():
    data = paired()
    request = request_of(data, torch.tensor([6, 1]))
    assert request.labels.tolist() == [0, 1]
    assert torch.equal(request.maps["map"], data.others["map"].indices[[6, 1], 0].long())
    assert request_of(paired(labels=False), torch.tensor([0])).labels is None


def test_the_window_is_the_configs_or_square():
    assert window_of(random_model(Label(2), window=(2, 5))) == (2, 5)
    plain = LatentTransformer(TransformerConfig(max_tokens=16, n_layer=1, n_head=1, n_embd=8))
    assert window_of(plain) == (4, 4)


@pytest.mark.parametrize("scale", [1, 2])
def test_prefixes_are_those_of_training(scale):
    """The same windows of the same pictures have the same tokens, whatever the first sample's number."""
    data = paired(scale=scale)
    conditions = data.conditions(["class", "coordinates", "map"])
    request = request_of(data, torch.arange(8))
    prefixes = prefixes_of(random_model(*conditions), request, data.maps.shape, first=20)
    chosen = data.batch(3, 8, 0, flip=False)
    found = prefixes(20 + chosen.pictures, chosen.tops, chosen.lefts)
    assert torch.equal(found, make_prefix(conditions, data.conditioning(chosen)))


def test_what_was_not_asked_is_named():
    data = paired()
    model = random_model(*data.conditions(["class", "map"]))
    whole = request_of(data, torch.arange(2))
    with pytest.raises(TesseraeError, match="needs the class of every picture: give labels"):
        sample_codes(model, SampleRequest(2, None, whole.maps), (6, 6))
    with pytest.raises(TesseraeError, match=r"the condition map is missing; a map of 6x6 codes needs one of 6x6"):
        sample_codes(model, SampleRequest(2, whole.labels), (6, 6))
    with pytest.raises(TesseraeError, match=r"condition map is of 6x6 codes; a map of 9x6 codes needs one of 9x6"):
        sample_codes(model, whole, (9, 6))
    fine = random_model(*paired(scale=2).conditions(["map"]))
    with pytest.raises(TesseraeError, match=r"a map of 6x6 codes needs one of 12x12"):
        sample_codes(fine, whole, (6, 6))


# ------------------------------------------------------------------ what is drawn


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("shape", [(3, 3), (3, 8), (7, 5)])
@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"batch_size": 2}])
def test_a_transformer_that_copies_its_condition_draws_it(scale, shape, how):
    """At every place of maps of any size: so the windows of r slide with those of s."""
    condition = Codes("map", K, (WINDOW[0] * scale, WINDOW[1] * scale))

    def wanted(prefix):
        return prefix.unflatten(1, condition.window)[:, ::scale, ::scale].flatten(1)

    generator = torch.Generator().manual_seed(1)
    r = torch.randint(K, (3, shape[0] * scale, shape[1] * scale), generator=generator)
    drawn = sample_codes(Reader(config(condition), wanted), SampleRequest(3, None, {"map": r}), shape, **how)
    assert torch.equal(drawn, r[:, ::scale, ::scale])


@pytest.mark.parametrize("order", ["row", "spiral_in", "z_curve"])
def test_it_draws_in_its_order(order):
    """Of a map as large as its window; r stays as one reads, so here each code is that of its place."""
    condition = Codes("map", K, WINDOW)
    turns = ordering(order, *WINDOW)
    r = torch.randint(K, (2, *WINDOW), generator=torch.Generator().manual_seed(1))
    model = Reader(config(condition, order=order), lambda prefix: prefix[:, turns])
    assert torch.equal(sample_codes(model, SampleRequest(2, None, {"map": r}), WINDOW), r)
    if order != "row":
        with pytest.raises(TesseraeError, match=f"in the order '{order}'; a sliding window needs"):
            sample_codes(model, SampleRequest(2, None, {"map": torch.zeros(2, 6, 6).long()}), (6, 6))


def test_coordinates_run_from_top_to_bottom_and_left_to_right():
    """It draws the coordinates of each window: whatever the map's size, the first is 0 and the last the largest."""
    for shape in ((5, 5), (9, 4), (20, 13)):
        for axis in (0, 1):
            model = Reader(config(Coordinates(10)), lambda prefix, axis=axis: prefix[:, [axis]].expand(-1, 9) % 5)
            drawn = sample_codes(model, SampleRequest(1), shape)[0].movedim(axis, 0)
            assert (drawn == drawn[:, :1]).all()
            assert (drawn[0, 0], drawn[-1, 0]) == (0, 4)
            assert (drawn[:, 0].diff() >= 0).all()


def test_a_map_of_its_own_size_is_the_samplers():
    data = paired()
    model = random_model(*data.conditions(["class", "map"]))
    request = SampleRequest(4, torch.arange(4) % 3, {"map": data.others["map"].indices[:4, 0, :3, :3].long()})
    drawn = sample_codes(model, request, WINDOW, seed=3, first=2, temperature=0.8, top_k=7)
    prefix = torch.cat([request.labels[:, None], 3 + request.maps["map"].flatten(1)], 1)
    options = SampleOptions(temperature=0.8, top_k=7, seed=3, first=2)
    assert torch.equal(drawn, sample(model, prefix, WINDOW, options))
    assert torch.equal(drawn, sample_codes(model, request, WINDOW, seed=3, first=2, temperature=0.8, top_k=7,
                                         cached=False))


def test_larger_maps_are_those_of_the_window():
    data = paired()
    model = random_model(*data.conditions(["class", "coordinates", "map"]))
    request = request_of(data, torch.tensor([3, 4]))
    drawn = sample_codes(model, request, (6, 6), seed=3, first=2, top_p=0.9)
    prefixes = prefixes_of(model, request, (6, 6), first=2)
    assert torch.equal(drawn, sample_map(model, prefixes, (6, 6), WINDOW, 2,
                                         SampleOptions(top_p=0.9, seed=3, first=2)))
    alone = sample_codes(model, request.some(torch.tensor([1])), (6, 6), seed=3, first=3, top_p=0.9)
    assert torch.equal(drawn[1:], alone)


@pytest.mark.parametrize("shape", [WINDOW, (6, 6)])
def test_what_is_given_stays(shape):
    model = random_model(Label(3))
    indices = torch.randint(K, (2, *shape), generator=torch.Generator().manual_seed(2))
    mask = torch.rand(2, *shape, generator=torch.Generator().manual_seed(3)) < 0.5
    drawn = sample_codes(model, SampleRequest(2, torch.tensor([0, 2])), shape, given=(mask, indices))
    assert torch.equal(drawn[mask], indices[mask])
    assert not torch.equal(drawn[~mask], indices[~mask])


def test_progress_and_growth_are_reported():
    done, grown = [], []
    sample_codes(random_model(Label(3)), SampleRequest(2, torch.tensor([0, 1])), (5, 6),
                 progress=lambda *counts: done.append(counts),
                 preview=lambda codes, mask: grown.append(int(mask.sum())))
    assert done[-1] == (60, 60)
    assert grown == sorted(grown)
    assert grown[-1] == 60
