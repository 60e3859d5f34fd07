"""Quantizers: nearest codes, straight-through gradients, losses that pull where they should, idle codes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesserae.codebook_params import FSQ_LEVELS, fsq_levels
from tesserae.errors import TesseraeError
from tesserae.models.quantizers import (
    DECAY,
    EMAQuantizer,
    NearestQuantizer,
    codebook_parameters,
    make_quantizer,
    nearest,
    with_gradient,
)

torch.set_num_threads(1)

KINDS = [("nearest", 16, 4), ("ema", 16, 4), ("simvq", 16, 4), ("gumbel", 16, 4),
         ("fsq", 36, 5), ("lfq", 16, 6), ("fsq", 36, 2), ("lfq", 16, 4)]  # the last two project nothing


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


@pytest.mark.parametrize("make", [NearestQuantizer, EMAQuantizer])
def test_revive_hands_out_distinct_vectors_and_the_rest_later(make):
    """4,096 idle codes and 1,024 vectors, half of them equal: no two codes come to lie at one point."""
    torch.manual_seed(0)
    quantizer = make(4096, 3)
    z_hat = torch.randn(4, 3, 16, 16)
    z_hat[2:] = z_hat[:2]  # 512 distinct ones
    unused, before = torch.zeros(4096, dtype=torch.bool), quantizer.codebook.detach().clone()
    first = quantizer.revive(z_hat, unused, 1, generator())
    assert int(first.sum()) == 512
    assert len(quantizer.codebook.detach()[first].unique(dim=0)) == 512
    assert torch.equal(quantizer.codebook[~first], before[~first])
    second = quantizer.revive(z_hat + 100, first, 1, generator(1))
    assert int(second.sum()) == 512
    assert not (first & second).any()
    assert len(quantizer.codebook.detach()[first | second].unique(dim=0)) == 1024


def test_start_lays_no_two_codes_on_one_point():
    torch.manual_seed(0)
    for make in (NearestQuantizer, EMAQuantizer):
        quantizer = make(50, 2)
        quantizer.start(torch.randn(1, 2, 3, 3).repeat(4, 1, 1, 1), generator())
        assert len(quantizer.codebook.detach().unique(dim=0)) == 50


def test_constant_vectors_start_and_revive():
    """A picture of one colour: one distinct vector."""
    quantizer, z_hat = NearestQuantizer(8, 2), torch.ones(1, 2, 4, 4)
    quantizer.start(z_hat, generator())
    assert torch.isfinite(quantizer.codebook).all()
    assert int(quantizer.revive(z_hat, torch.zeros(8, dtype=torch.bool), 1, generator()).sum()) == 1


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


def test_fsq_has_the_levels_of_its_paper():
    """Table 1 of arXiv 2309.15505."""
    assert FSQ_LEVELS == {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5),
                          65536: (8, 8, 8, 5, 5, 5)}
    for size, levels in FSQ_LEVELS.items():
        assert fsq_levels(size) == levels == fsq_levels(math.prod(levels))
        assert make_quantizer("fsq", size, 8).codebook.shape == (math.prod(levels), 8)


@given(st.integers(2, 5000))
@settings(deadline=None, max_examples=300)
def test_other_sizes_are_products_of_five_levels_and_more(size):
    try:
        levels = fsq_levels(size)
    except TesseraeError as error:
        assert "use" in str(error)  # noqa: PT017
        assert not any(size % n == 0 and size // n in range(3, 17) for n in range(3, 17))
        return
    if size not in FSQ_LEVELS:
        assert math.prod(levels) == size
    assert min(levels) >= 5 or not _in_factors(size, 5)
    assert list(levels) == sorted(levels, reverse=True)


def _in_factors(number, smallest):
    """Whether it is a product of numbers in [smallest, 16]."""
    return number == 1 or any(number % n == 0 and _in_factors(number // n, smallest) for n in range(smallest, 17))


# ------------------------------------------------------------------ like with like


ESTIMATED = ("nearest", "ema", "simvq")


def random_codes(kind, gradient, size=32, dim=6):
    torch.manual_seed(1)
    quantizer = make_quantizer(kind, size, dim, gradient).train()
    if kind != "simvq":
        quantizer.codebook.data.normal_()
    return quantizer


@pytest.mark.parametrize("kind", ESTIMATED)
def test_straight_through_is_the_same_for_every_quantizer(kind):
    quantizer = random_codes(kind, "straight_through")
    z_hat = torch.randn(2, 6, 3, 4, requires_grad=True)
    weights = torch.randn(2, 6, 3, 4)
    out = quantizer(z_hat)
    gradient, = torch.autograd.grad((out.z_q * weights).sum(), z_hat)
    torch.testing.assert_close(gradient, weights)


@pytest.mark.parametrize("kind", ESTIMATED)
def test_rotation_is_the_librarys(kind):
    """The rotation trick as `vector-quantize-pytorch` has it, by its SimVQ with these codes."""
    vq = pytest.importorskip("vector_quantize_pytorch")
    quantizer = random_codes(kind, "rotation")
    library = vq.SimVQ(dim=6, codebook_size=32, channel_first=True, rotation_trick=True,
                       codebook_transform=torch.nn.Identity())
    library.frozen_codebook.copy_(quantizer.codebook.detach())
    z_hat = torch.randn(2, 6, 3, 4, requires_grad=True)
    weights = torch.randn(2, 6, 3, 4)
    out, (theirs, indices, _) = quantizer(z_hat), library(z_hat)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.z_q, theirs, rtol=1e-4, atol=1e-5)
    ours, expected = (torch.autograd.grad((made * weights).sum(), z_hat)[0] for made in (out.z_q, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, weights)


def test_rotation_survives_zero_and_opposite_vectors():
    z_hat = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 1.0]]).T[None, :, :, None].requires_grad_()
    z_q = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]).T[None, :, :, None]
    out = with_gradient(z_hat, z_q, "rotation")
    assert torch.equal(out, z_q)
    assert torch.isfinite(torch.autograd.grad(out.sum(), z_hat)[0]).all()


@pytest.mark.parametrize("kind", ["fsq", "lfq", "gumbel"])
def test_an_estimator_of_its_own_has_no_rotation(kind):
    with pytest.raises(TesseraeError, match=f"gradient = 'rotation' does not go with quantizer {kind}"):
        make_quantizer(kind, 16, 4, "rotation")


def test_simvq_terms_are_its_loss_taken_apart():
    quantizer = random_codes("simvq", "straight_through")
    z_hat = torch.randn(2, 6, 3, 4)
    out, (_, _, theirs) = quantizer(z_hat), quantizer.inner(z_hat)
    torch.testing.assert_close(out.codebook_loss + 0.25 * out.commitment_loss, theirs)
    assert torch.autograd.grad(out.codebook_loss, quantizer.inner.code_transform.weight)[0].abs().sum() > 0
    assert out.commitment_loss.requires_grad is False  # z_hat needs none here, and codes are not its business


def test_lfq_terms_are_the_published_ones_unweighted():
    """arXiv 2310.05737: entropy of each vector minus that of the batch, and the mean square to the nearest code."""
    quantizer = make_quantizer("lfq", 16, 4).train()
    z_hat = torch.randn(2, 4, 5, 5)
    out = quantizer(z_hat)
    vectors = z_hat.movedim(1, -1).reshape(-1, 4)
    signs = torch.where(vectors > 0, 1.0, -1.0)
    torch.testing.assert_close(out.commitment_loss, F.mse_loss(vectors, signs))
    chances = (2 * 100 * vectors @ quantizer.codebook.T).softmax(-1)
    each = torch.special.entr(chances).sum(-1).mean()
    batch = torch.special.entr(chances.mean(0)).sum()
    torch.testing.assert_close(out.entropy_loss, each - batch, rtol=1e-2, atol=1e-2)
    assert out.codebook_loss == 0


def test_only_codes_learn_at_the_codebooks_rate():
    names = {}
    for kind, size, dim in KINDS[:6]:
        quantizer = make_quantizer(kind, size, dim)
        chosen = {id(parameter) for parameter in codebook_parameters(quantizer)}
        names[kind] = [name for name, parameter in quantizer.named_parameters() if id(parameter) in chosen]
    assert names == {"nearest": ["codebook"], "ema": [], "simvq": [], "fsq": [], "lfq": [], "gumbel": ["codebook"]}


# ------------------------------------------------------------------ moving averages


def clusters(count, size, dim=8):
    """`count` vectors around `size` points far from each other, as (1,dim,count,1)."""
    torch.manual_seed(3)
    points = 20 * torch.randn(size, dim)
    chosen = torch.arange(count) % size
    return lambda: (points[chosen[torch.randperm(count)]] + 0.1 * torch.randn(count, dim)).T[None, :, :, None]


def test_ema_leaves_codes_in_use_where_they_are():
    """384 vectors a step for 256 well-separated clusters: every code is in use, so none may be replaced."""
    quantizer, data = EMAQuantizer(256, 8), clusters(384, 256)
    quantizer.start(torch.cat([data() for _ in range(4)]), generator(), rounds=30)
    for step in range(60):  # what lay between clusters is moved
        one_step(quantizer, data(), 20, step)
    moved = [one_step(quantizer, data(), 20, step).float().mean() for step in range(60, 120)]
    assert float(torch.stack(moved).mean()) < 0.002


def one_step(quantizer, z_hat, after, seed):
    out = quantizer(z_hat)
    quantizer.update(quantizer.statistics(z_hat, out.indices))
    used = torch.bincount(out.indices.flatten(), minlength=len(quantizer.idle)) > 0
    return quantizer.revive(z_hat, used, after, generator(seed))


def test_ema_is_the_librarys():
    """Ten steps beside `vector-quantize-pytorch`, from the same codes."""
    vq = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    library = vq.VectorQuantize(dim=5, codebook_size=12, decay=DECAY, accept_image_fmap=True, rotation_trick=False)
    ours = EMAQuantizer(12, 5)
    start = torch.randn(12, 5)
    library.codebook = start
    names = dict(library.named_buffers())
    sums, = (part for name, part in names.items() if name.endswith("embed_avg"))
    sums.copy_(start[None])
    ours.set_codes(torch.ones(12, dtype=torch.bool), start, 1.0)
    library.train()
    for _ in range(10):
        z_hat = torch.randn(2, 5, 4, 4)
        theirs = library(z_hat)
        out = ours(z_hat)
        assert torch.equal(out.indices, theirs[1])
        torch.testing.assert_close(out.z_q, theirs[0])
        torch.testing.assert_close(out.commitment_loss, theirs[2].sum())
        ours.update(ours.statistics(z_hat, out.indices))
        torch.testing.assert_close(ours.codebook, library.codebook, rtol=1e-4, atol=1e-5)


def test_ema_models_of_older_versions_load():
    vq = pytest.importorskip("vector_quantize_pytorch")
    library = vq.VectorQuantize(dim=5, codebook_size=12, accept_image_fmap=True, kmeans_init=True).train()
    z_hat = torch.randn(2, 5, 6, 6)
    library(z_hat)
    state = {f"inner.{name}": value for name, value in library.state_dict().items()}
    ours = EMAQuantizer(12, 5)
    ours.load_state_dict(state)
    assert torch.equal(ours(z_hat).indices, library.eval()(z_hat)[1])


@pytest.mark.parametrize(("kind", "size", "dim"), KINDS)
def test_a_forward_pass_changes_nothing(kind, size, dim):
    quantizer = make_quantizer(kind, size, dim).train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, dim, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


# ------------------------------------------------------------------ Gumbel


def test_gumbel_divergence_is_that_from_uniform_choices():
    quantizer = make_quantizer("gumbel", 16, 4).train()
    z_hat = torch.randn(2, 4, 3, 3)
    choices = quantizer.projection(z_hat).softmax(1).movedim(1, -1)
    expected = F.kl_div(torch.full_like(choices, 1 / 16).log(), choices, reduction="none").sum(-1).mean()
    torch.testing.assert_close(quantizer(z_hat).kl_loss, expected)
    torch.nn.init.zeros_(quantizer.projection.weight)
    torch.nn.init.zeros_(quantizer.projection.bias)
    assert quantizer(z_hat).kl_loss.item() == pytest.approx(0, abs=1e-6)


def test_a_low_temperature_follows_the_logits_and_a_high_one_does_not():
    torch.manual_seed(0)
    quantizer = make_quantizer("gumbel", 16, 4).train()
    z_hat = torch.randn(4, 4, 16, 16, requires_grad=True)
    reached = {}
    for quantizer.temperature in (0.05, 5.0):
        torch.manual_seed(1)
        out = quantizer(z_hat)
        gradient, = torch.autograd.grad(out.z_q.square().sum(), z_hat)
        reached[quantizer.temperature] = gradient.abs().max().item()
    assert reached[0.05] > 2 * reached[5.0]  # a cold choice is steep


@pytest.mark.parametrize(("kind", "size"), [("fsq", 101), ("lfq", 100), ("other", 16)])
def test_what_does_not_go_together_is_refused(kind, size):
    with pytest.raises(TesseraeError, match=rf"{kind}.*use"):
        make_quantizer(kind, size, 4)
