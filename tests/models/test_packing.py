"""Layers packed for drawing on a CPU: the same products, and afterwards the same weights, bit for bit."""

import pytest
import torch
from torch import nn

from tesserae.models import packing
from tesserae.models.packing import FEWEST, LARGE, MOST, PIECE, PackedLinear, foreign, packed
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling.sampler import sample, upper_half
from tesserae.sampling.steps import drawing
from tesserae.sampling.windows import sample_map

WIDE = 2 ** (LARGE.bit_length() // 2)
in_bf16 = pytest.mark.skipif(not packing._built(torch.bfloat16), reason="oneDNN has no bf16 for this processor")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """What processor this is: one that MKL knows, whatever it really is."""
    found = {"foreign": False, "wide": True}
    for name in found:
        monkeypatch.setattr(packing, name, lambda name=name: found[name])
    return found


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


@in_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_in_bf16_it_multiplies_as_the_layer_does_under_autocast(bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(40, 24, bias), torch.randn(5, 40)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        own, expected = PackedLinear(linear, torch.bfloat16), linear(x)
        assert own(x).dtype == torch.float32
        torch.testing.assert_close(own(x), expected.float(), rtol=2**-7, atol=1e-3)
        assert own.gelu(x).dtype == own(x.bfloat16()).dtype == own.product()(x).dtype == torch.bfloat16
        torch.testing.assert_close(own.gelu(x), nn.functional.gelu(expected), rtol=2**-6, atol=1e-2)


@in_bf16
def test_bf16_weights_come_back_with_every_bit():
    """Of numbers of any size, those halfway between two of bf16 as well: the rest is 16 bits, too."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-2**31, 2**31, (300, 2 * PIECE // 256), generator=generator).int()
    bits[:100] = (bits[:100] >> 16 << 16) + 2**15 + torch.randint(-1, 2, bits[:100].shape, generator=generator).int()
    bits[-1, :4] = torch.tensor([0., -0., torch.inf, -3.4028234e38]).view(torch.int32)
    weight = bits.view(torch.float32)
    weight[weight.isnan()] = 1 + 2**-8  # halfway
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.data = weight.clone()
    own = PackedLinear(linear, torch.bfloat16)
    held = own.rest[0].nbytes + 2 * weight.numel()
    assert held == weight.nbytes
    assert torch.equal(own.unpacked().view(torch.int32), weight.view(torch.int32))


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


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=in_bf16)])
def test_weights_come_back_to_where_they_were(model, bf16):
    """An optimiser's views of them stay views: Muon moves matrices that it made once."""
    weight = model[0].weight
    before, view = weight.detach().clone(), weight.detach().flatten()
    with torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), packed(model, FEWEST):
                assert packed_layers(model)
                assert view.untyped_storage().nbytes() == 0, "the weight would be there twice"
        view += 1
    assert torch.equal(weight, before + 1)


def test_weights_that_lie_among_others_leave_these_alone(model):
    whole = torch.randn(2, WIDE, WIDE)
    model[0].weight.data = whole[0]
    before = whole.clone()
    with packed(model, FEWEST):
        assert packed_layers(model) == [model[0]]
        assert torch.equal(whole, before)
    assert model[0].weight.data_ptr() == whole.data_ptr()
    assert torch.equal(whole, before)


@pytest.mark.parametrize("rows", [0, FEWEST - 1, MOST + 1])
def test_nothing_is_packed_where_it_does_not_pay(model, rows):
    with packed(model, rows):
        assert not packed_layers(model)


@pytest.mark.parametrize("rows", [1, MOST + 1])
def test_where_plain_products_are_slow_every_layer_is_packed(model, here, rows):
    here["foreign"] = True
    with packed(model, rows):
        assert packed_layers(model) == [model[0], model[2]]
        with packed(model, rows):
            assert packed_layers(model) == [model[0], model[2]]
    with packed(model, 0):
        assert not packed_layers(model)


@pytest.mark.parametrize("rows", [FEWEST - 1, FEWEST, MOST, MOST + 1])
def test_where_those_of_few_rows_are_slow_small_layers_are_packed_for_as_many_as_large_ones(model, here, rows):
    here |= {"foreign": True, "wide": False}
    with packed(model, rows):
        assert packed_layers(model) == ([model[0], model[2]] if FEWEST <= rows <= MOST else [])


def test_nothing_is_packed_for_other_precisions(model):
    with torch.autocast("cpu", torch.float16), packed(model, FEWEST):
        assert not packed_layers(model)
        assert torch.is_autocast_enabled("cpu")
    with packed(model.bfloat16(), FEWEST):
        assert not packed_layers(model)


@in_bf16
@pytest.mark.parametrize("rows", [1, MOST + 1])
def test_under_autocast_every_layer_is_packed_in_bf16_and_all_else_in_full_precision(model, rows):
    before, x = [layer.weight.detach().clone() for layer in (model[0], model[2])], torch.randn(rows, WIDE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(x)
        with packed(model, rows):
            assert [layer.dtype for layer in packed_layers(model)] == [torch.bfloat16] * 2
            assert all(layer.linear.weight.numel() == 0 for layer in packed_layers(model))
            assert not torch.is_autocast_enabled("cpu")
            with packed(model, rows):  # an inner use finds them packed
                assert not torch.is_autocast_enabled("cpu")
                torch.testing.assert_close(model(x), expected.float(), rtol=0.05, atol=0.02)
        assert torch.is_autocast_enabled("cpu")
        packing.pack(model, rows, [])
        with packed(model, rows):  # so are those that were packed for good
            assert not torch.is_autocast_enabled("cpu")
    assert all(torch.equal(layer.unpacked(), weight) for layer, weight in zip(packed_layers(model), before))


@pytest.mark.parametrize(("maker", "mkl", "expected"), [
    ("AuthenticAMD", True, True), ("HygonGenuine", True, True), ("GenuineIntel", True, False), ("", True, False),
    ("AuthenticAMD", False, False),
])
def test_a_processor_is_foreign_to_mkl_by_its_maker(monkeypatch, maker, mkl, expected):
    monkeypatch.setattr(packing, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert foreign.__wrapped__() is expected


@pytest.mark.parametrize(("cpuinfo", "windows", "expected"), [
    ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: a vendor_id : GenuineIntel\n", "", "AuthenticAMD"),
    ("processor\t: 0\nBogoMIPS\t: 48.00\n", "", ""),  # ARM
    (None, "Intel64 Family 6 Model 140 Stepping 1, GenuineIntel", "GenuineIntel"),
    (None, "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD", "AuthenticAMD"),
    (None, "i386", ""),
])
def test_the_maker_is_what_the_system_says(monkeypatch, tmp_path, cpuinfo, windows, expected):
    (tmp_path / "cpuinfo").write_text(cpuinfo or "")
    place = tmp_path / ("cpuinfo" if cpuinfo else "nowhere")
    monkeypatch.setattr(packing, "Path", lambda _: place)
    monkeypatch.setattr(packing.platform, "processor", lambda: windows)
    assert packing._maker() == expected


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


@in_bf16
@torch.no_grad()
def test_bf16_steps_keep_their_keys_in_full_precision_and_give_what_plain_ones_do(transformer):
    prefix, codes = torch.arange(3)[:, None], torch.randint(16, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        expected = transformer(prefix, codes).float()
        with drawing(transformer, rows=3):
            logits, cache = transformer.prefill(prefix)
            found = [logits] + [transformer.step(codes[:, place], cache) for place in range(15)]
    assert cache.buffers[0][0].dtype == torch.float32
    found = torch.stack(found, dim=1).float()
    exact = transformer(prefix, codes)
    plain, own = ((part - exact).square().mean().sqrt() for part in (expected, found))
    assert 0 < own < 1.2 * plain < 0.2 * exact.std(), "less exact than all in bf16"


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
