"""Quantizers: nearest codes, straight-through gradients, losses that pull where they should, idle codes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesserae.errors import TesseraeError
from tesserae.models.quantizers import NearestQuantizer, fsq_levels, make_quantizer, nearest

torch.set_num_threads(1)

KINDS = [("nearest", 16, 4), ("ema", 16, 4), ("simvq", 16, 4), ("gumbel", 16, 4),
         ("fsq", 16, 5), ("lfq", 16, 6), ("fsq", 16, 2), ("lfq", 16, 4)]  # the last two project nothing


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 120), st.integers(0, 5))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_nearest_is_brute_force_in_chunks_of_any_size(size, dim, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codebook, vectors = (torch.randn(n, dim, generator=generator) for n in (size, count))
    distances = torch.cdist(vectors.double(), codebook.double())
    for memory in (1, 700, 1 << 25):
        found = nearest(vectors, codebook, memory)
        assert found.shape == (count,)
        assert found.dtype == torch.int64
        chosen = distances.gather(1, found[:, None]).flatten()
        torch.testing.assert_close(chosen, distances.min(1).values, rtol=1e-4, atol=1e-4)


def test_codes_are_nearest_to_themselves_also_under_autocast():
    codebook = torch.randn(500, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(codebook, codebook), torch.arange(500))
    assert torch.equal(nearest(codebook.bfloat16(), codebook.bfloat16()), torch.arange(500))


def quantized(size=12, dim=4):
    torch.manual_seed(0)
    quantizer = NearestQuantizer(size, dim)
    torch.nn.init.normal_(quantizer.codebook)
    z_hat = torch.randn(2, dim, 3, 5, requires_grad=True)
    return quantizer, z_hat, quantizer(z_hat)


def test_straight_through_gradient_is_that_at_z_q():
    quantizer, z_hat, out = quantized()
    leaf = quantizer.lookup(out.indices).detach().requires_grad_()
    weights = torch.randn(out.z_q.shape)
    gradient, = torch.autograd.grad((out.z_q.sin() * weights).sum(), z_hat, retain_graph=True)
    expected, = torch.autograd.grad((leaf.sin() * weights).sum(), leaf)
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(out.z_q.sum(), quantizer.codebook, allow_unused=True)[0] is None


def test_each_term_pulls_its_own_side():
    quantizer, z_hat, out = quantized()
    both = (z_hat, quantizer.codebook)
    to_z, to_codes = torch.autograd.grad(out.codebook_loss, both, retain_graph=True, allow_unused=True)
    assert to_z is None
    vectors = z_hat.detach().movedim(1, -1).reshape(-1, 4)
    chosen, scale = out.indices.flatten(), 2 / z_hat.numel()
    pulls = scale * (quantizer.codebook.detach()[chosen] - vectors)
    expected = torch.zeros(12, 4).index_add_(0, chosen, pulls)
    torch.testing.assert_close(to_codes, expected)
    to_z, to_codes = torch.autograd.grad(out.commitment_loss, both, allow_unused=True)
    assert to_codes is None
    torch.testing.assert_close(to_z, scale * (z_hat - quantizer.lookup(out.indices)).detach())


def test_terms_are_mean_squares():
    quantizer, z_hat, out = quantized()
    distance = F.mse_loss(z_hat, quantizer.lookup(out.indices))
    assert out.codebook_loss.item() == pytest.approx(distance.item())
    assert out.commitment_loss.item() == pytest.approx(distance.item())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_revive_moves_exactly_the_idle_codes():
    quantizer = NearestQuantizer(6, 3)
    z_hat = torch.randn(2, 3, 4, 4) + 10
    vectors = z_hat.movedim(1, -1).reshape(-1, 3)
    used = torch.tensor([True, False, True, False, False, True])
    for step in range(1, 4):
        before = quantizer.codebook.detach().clone()
        moved = quantizer.revive(z_hat, used, 3, generator(step))
        assert torch.equal(moved, ~used if step == 3 else torch.zeros(6, dtype=torch.bool))
        assert torch.equal(quantizer.codebook[~moved], before[~moved])
    for code in quantizer.codebook[moved]:
        assert (vectors == code).all(1).any()  # each is an encoder output of the moment
    assert len(quantizer.codebook[moved].unique(dim=0)) == 3  # and no two are the same
    assert torch.equal(quantizer.idle, torch.zeros(6, dtype=torch.int64))


def test_one_use_starts_the_count_anew():
    quantizer, z_hat = NearestQuantizer(2, 3), torch.randn(1, 3, 2, 2)
    for used in ([False, True], [True, True], [False, True], [False, True]):
        assert not quantizer.revive(z_hat, torch.tensor(used), 3, generator()).any()
    assert quantizer.revive(z_hat, torch.tensor([False, True]), 3, generator()).tolist() == [True, False]


def test_start_finds_the_centres_of_the_data():
    centres = torch.tensor([[0.0, 0.0], [5.0, 5.0], [-5.0, 5.0], [5.0, -5.0]])
    torch.manual_seed(0)
    vectors = centres.repeat_interleave(64, 0) + 0.1 * torch.randn(256, 2)
    z_hat = vectors[torch.randperm(256)].reshape(4, 8, 8, 2).movedim(-1, 1)
    quantizer = NearestQuantizer(64, 2)
    quantizer.start(z_hat, generator())
    assert torch.cdist(quantizer.codebook, vectors).min(1).values.max() < 0.2  # all codes lie among the data
    used = quantizer(z_hat).indices.unique()
    assert len(used) > 50
    before = quantizer.codebook.detach().clone()
    quantizer.start(z_hat, generator())
    assert torch.equal(quantizer.codebook, before)  # the same generator, the same codes


def test_start_with_fewer_vectors_than_codes():
    quantizer = NearestQuantizer(50, 2)
    quantizer.start(torch.randn(1, 2, 3, 3), generator())
    assert torch.isfinite(quantizer.codebook).all()


@pytest.mark.parametrize(("kind", "size", "dim"), KINDS)
def test_every_kind_speaks_the_same_language(kind, size, dim):
    torch.manual_seed(0)
    quantizer = make_quantizer(kind, size, dim)
    z_hat = torch.randn(3, dim, 4, 6, requires_grad=True)
    out = quantizer(z_hat)  # in training: those that start from data do so
    (out.z_q.square().sum() + out.codebook_loss + out.commitment_loss).backward()
    assert z_hat.grad.abs().sum() > 0
    quantizer.eval()
    out = quantizer(z_hat)
    assert out.indices.shape == (3, 4, 6)
    assert out.indices.dtype == torch.int64
    assert 0 <= out.indices.min() <= out.indices.max() < size
    assert out.indices.unique().numel() > 3
    assert out.z_q.shape == z_hat.shape
    torch.testing.assert_close(quantizer.lookup(out.indices), out.z_q, rtol=1e-5, atol=1e-5)
    assert quantizer.codebook.shape == (size, dim)
    by_hand = F.embedding(out.indices, quantizer.codebook).movedim(-1, 1)
    torch.testing.assert_close(by_hand, out.z_q, rtol=1e-5, atol=1e-5)
    assert out.codebook_loss.shape == out.commitment_loss.shape == ()


@pytest.mark.parametrize(("kind", "size", "dim"), KINDS)
def test_weights_hold_all_of_a_quantizer(kind, size, dim):
    torch.manual_seed(0)
    first = make_quantizer(kind, size, dim)
    first(torch.randn(2, dim, 6, 6))
    second = make_quantizer(kind, size, dim)
    second.load_state_dict(first.state_dict())
    z_hat = torch.randn(2, dim, 3, 3)
    a, b = first.eval()(z_hat), second.eval()(z_hat)
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.z_q, b.z_q)


@pytest.mark.parametrize("kind", ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"])
def test_mixed_precision_searches_in_full_precision(kind):
    torch.manual_seed(0)
    quantizer = make_quantizer(kind, 16, 4)
    quantizer(torch.randn(2, 4, 4, 4))
    quantizer.eval()
    z_hat = torch.randn(2, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(z_hat)
    assert mixed.z_q.dtype == torch.float32
    assert torch.equal(mixed.indices, quantizer(z_hat.float()).indices)


def test_gumbel_noise_is_for_training():
    torch.manual_seed(0)
    quantizer = make_quantizer("gumbel", 16, 4)
    z_hat = torch.randn(2, 4, 4, 4)
    assert not torch.equal(quantizer(z_hat).indices, quantizer(z_hat).indices)
    quantizer.eval()
    assert torch.equal(quantizer(z_hat).indices, quantizer.projection(z_hat).argmax(1))


@pytest.mark.parametrize("size", [8, 256, 1024, 65536])
def test_fsq_levels_multiply_to_the_size(size):
    assert torch.tensor(fsq_levels(size)).prod() == size


@pytest.mark.parametrize(("kind", "size"), [("fsq", 100), ("lfq", 100), ("other", 16)])
def test_what_does_not_go_together_is_refused(kind, size):
    with pytest.raises(TesseraeError, match=rf"{kind}.*use"):
        make_quantizer(kind, size, 4)
