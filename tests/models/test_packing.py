"""Layers packed for drawing on a CPU: the same products, and afterwards the same weights, bit for bit."""

import pytest
import torch
from torch import nn

from tesserae.models import packing
from tesserae.models.packing import FEWEST, LARGE, MOST, PackedLinear, packed
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling.sampler import sample, upper_half
from tesserae.sampling.windows import sample_map

WIDE = 2 ** (LARGE.bit_length() // 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.GELU(), nn.Linear(WIDE, 3, bias=False))


@pytest.fixture
def transformer(monkeypatch):
    """A small one whose layers all count as large."""
    monkeypatch.setattr(packing, "LARGE", 1)
    torch.manual_seed(0)
    config = TransformerConfig(codebook_size=16, prefix_vocab=4, max_tokens=16, n_layer=2, n_head=2, n_embd=32,
                               window=(4, 4))
    found = LatentTransformer(config)
    for parameter in found.parameters():  # so that a code depends on those before it
        nn.init.normal_(parameter, std=0.3)
    return found


def packed_layers(model):
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (5, 40), (2, 7, 40)])
def test_it_multiplies_as_the_layer_does(shape, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias), torch.randn(shape)
    with torch.no_grad():
        own = PackedLinear(linear)
        torch.testing.assert_close(own(x), linear(x))
        torch.testing.assert_close(own.gelu(x), nn.functional.gelu(linear(x)))
    assert torch.equal(own.unpacked(), linear.weight)


def test_large_layers_are_packed_meanwhile_and_come_back_as_they_were(model):
    layer, weight = model[0], model[0].weight
    before, x = weight.detach().clone(), torch.randn(FEWEST, WIDE)
    with torch.no_grad():
        expected = model(x)
        with packed(model, FEWEST):
            assert packed_layers(model) == [model[0]]
            assert weight.numel() == 0, "the weight would be there twice"
            torch.testing.assert_close(model(x), expected)
    assert model[0] is layer
    assert layer.weight is weight
    assert torch.equal(weight, before)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("rows", [0, FEWEST - 1, MOST + 1])
def test_nothing_is_packed_where_it_does_not_pay(model, rows):
    with packed(model, rows):
        assert not packed_layers(model)


def test_nothing_is_packed_for_other_precisions(model):
    with torch.autocast("cpu", torch.bfloat16), packed(model, FEWEST):
        assert not packed_layers(model)
    with packed(model.bfloat16(), FEWEST):
        assert not packed_layers(model)


def test_weights_come_back_after_a_stop_and_of_an_inner_use(model):
    before = model[0].weight.detach().clone()

    def stopped():
        with packed(model, FEWEST):
            with packed(model, FEWEST):
                assert len(packed_layers(model)) == 1
            assert len(packed_layers(model)) == 1, "the inner use took what the outer one needs"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not packed_layers(model)
    assert torch.equal(model[0].weight, before)


def test_a_packed_transformer_can_be_drawn_from_again(transformer):
    prefix = torch.arange(FEWEST)[:, None]
    expected = sample(transformer, prefix, (4, 4))
    with packed(transformer, FEWEST):
        assert torch.equal(sample(transformer, prefix, (4, 4)), expected)
        drawn = sample_map(transformer, lambda samples, *_: samples[:, None], (8, 4), (4, 4), count=2)
    assert torch.equal(sample_map(transformer, lambda samples, *_: samples[:, None], (8, 4), (4, 4), count=2), drawn)


def test_what_is_drawn_is_what_the_plain_layers_draw(transformer, monkeypatch):
    prefix = torch.arange(FEWEST)[:, None]
    known = torch.randint(16, (FEWEST, 4, 4), generator=torch.Generator().manual_seed(0))
    seen = []
    layers = [sum(isinstance(module, nn.Linear) for module in transformer.modules())]
    for given in (None, (upper_half(known), known)):
        plain = sample(transformer, prefix, (4, 4), given=given, cached=False)
        own = sample(transformer, prefix, (4, 4), given=given,
                     progress=lambda *_: seen.append(len(packed_layers(transformer))))
        assert torch.equal(own, plain)
    assert set(seen) == set(layers), "not all layers were packed while codes were drawn"
    assert transformer.training


@pytest.mark.parametrize("stride", [1, 2])
def test_so_are_large_maps(transformer, monkeypatch, stride):
    seen = []

    def prefixes(samples, tops, lefts):
        return ((samples + tops + lefts) % 4)[:, None]

    def drawn():
        return sample_map(transformer, prefixes, (12, 8), (4, 4), count=2, stride=stride,
                          progress=lambda *_: seen.append(len(packed_layers(transformer))))

    own = drawn()
    assert set(seen) == {sum(isinstance(module, nn.Linear) for module in transformer.modules())}
    monkeypatch.setattr(packing, "LARGE", LARGE)
    seen.clear()
    assert torch.equal(own, drawn())
    assert set(seen) == {0}
