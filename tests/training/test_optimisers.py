"""Both stages' optimisers move what they should, at the rate they should, and remember it."""

import copy

import pytest
import torch

from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import load_params
from tesserae.training.optimisers import (
    hidden_convolutions,
    make_transformer_optimiser,
    make_vqgan_optimiser,
    scale_rates,
)


def small(kind, **changes):
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig(channels=8, channel_mult=(1, 2), res_blocks=1, patch=2, z_channels=8,
                              codebook_size=16, codebook_dim=4))
    block = load_params("tests/plain.yaml").vqgan["image"].model_copy(update={"optimiser": kind, **changes})
    return model, make_vqgan_optimiser(model, block)


def small_transformer(kind, **changes):
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(codebook_size=11, prefix_vocab=3, max_tokens=6, n_layer=2, n_head=2,
                                                n_embd=16))
    block = load_params("tests/plain.yaml").transformer["class"].model_copy(update={"optimiser": kind, **changes})
    return model, make_transformer_optimiser(model, block)


SMALL = [(small, "adam"), (small, "muon"), (small_transformer, "adamw"), (small_transformer, "muon")]
EACH = pytest.mark.parametrize(("make", "kind"), SMALL, ids=["vqgan-adam", "vqgan-muon", "transformer-adamw",
                                                             "transformer-muon"])


def gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.fixture(autouse=True)
def _at_root(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


def test_hidden_convolutions_leave_out_what_meets_pixels_and_the_codebook():
    model, _ = small("muon")
    hidden = {id(weight) for weight in hidden_convolutions(model)}
    for outside in (model.encoder.conv_in, model.decoder.conv_out, model.pre_quant, model.post_quant):
        assert id(outside.weight) not in hidden
    assert id(model.encoder.levels[0].blocks[0].conv1.weight) in hidden
    assert id(model.quantizer.codebook) not in hidden


def test_muon_works_on_the_matrices_inside_the_transformer_alone():
    model, optimiser = small_transformer("muon")
    names = {id(weight): name for name, weight in model.named_parameters()}
    hidden = [names[id(weight)] for weight in optimiser.muon.param_groups[0]["params"]]
    assert sorted(name.split(".", 2)[2] for name in hidden) == 2 * [
        "attention.proj.weight"] + 2 * ["attention.qkv.weight"] + 2 * ["down.weight"] + 2 * ["up.weight"]
    others = {names[id(weight)] for group in optimiser.adam.param_groups for weight in group["params"]}
    assert {"head.weight", "token_embedding.weight", "prefix_embedding.weight", "positions", "norm.weight"} <= others
    assert others.isdisjoint(hidden)


def test_weight_decay_is_on_the_matrices_inside_alone():
    """Without a gradient's push they shrink, and nothing else does."""
    model, optimiser = small_transformer("muon", weight_decay=0.5, muon_lr=0.1, lr=0.1)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    hidden = {id(weight) for weight in optimiser.muon.param_groups[0]["params"]}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    for name, weight in model.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.5) if id(weight) in hidden else before[name]
        torch.testing.assert_close(weight.detach(), shrunk, msg=name)


@EACH
def test_every_weight_is_in_one_group_and_moves(make, kind):
    model, optimiser = make(kind)
    grouped = [p for group in optimiser.param_groups for p in group["params"]]
    assert sum(p.numel() for p in grouped) == sum(p.numel() for p in model.parameters())
    before = [weight.detach().clone() for weight in model.parameters()]
    gradients(model, 1)
    optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_muon_moves_along_an_orthogonal_matrix_of_adams_size():
    model, optimiser = small("muon", muon_lr=1e-2)
    weight = model.encoder.levels[0].blocks[0].conv1.weight
    before = weight.detach().clone()
    gradients(model, 2)
    optimiser.step()
    moved = (weight.detach() - before).flatten(1)
    singular = torch.linalg.svdvals(moved)
    assert singular.max() / singular.min() < 3  # a random gradient's would spread far more
    assert 0.2 * 1e-2 * 0.5 < moved.square().mean().sqrt() < 0.2 * 1e-2 * 1.5


def test_the_transformers_rates_are_scales_of_the_full_ones():
    model, optimiser = small_transformer("muon", lr=1e-3, muon_lr=4e-3)
    scale_rates(optimiser, 0.5)
    rates = {id(p): group["lr"] for group in optimiser.adam.param_groups for p in group["params"]}
    assert set(rates.values()) == {5e-4}
    assert id(model.head.weight) in rates
    assert [group["lr"] for group in optimiser.muon.param_groups] == [2e-3]


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_rates_are_scales_of_the_full_ones_and_the_codebook_has_its_own(kind):
    model, optimiser = small(kind, lr=1e-3, codebook_lr=4e-3)
    scale_rates(optimiser, 0.5)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates[id(model.quantizer.codebook)] == pytest.approx(2e-3)
    assert rates[id(model.encoder.conv_in.weight)] == pytest.approx(5e-4)
    scale_rates(optimiser, 0.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    gradients(model, 3)
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@EACH
def test_state_goes_on_to_the_same_bits(make, kind):
    (model, optimiser), (other, resumed) = make(kind), make(kind)
    gradients(model, 4)
    optimiser.step()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for one, its in ((model, optimiser), (other, resumed)):
        gradients(one, 5)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
