"""The sampler: right in distribution, the same in any batch, faithful to what is given."""

import pytest
import torch

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.sampling import autoregressive
from tesserae.sampling.autoregressive import SampleOptions, uniforms

K, SHAPE = 13, (3, 4)


def sample(model, prefix, shape, given=None, progress=None, **options):
    return autoregressive.sample(model, prefix, shape, SampleOptions(**options), given, progress)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TransformerConfig(codebook_size=K, prefix_vocab=4, max_tokens=12, n_layer=2, n_head=2, n_embd=16)
    made = LatentTransformer(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def classes(*labels):
    return torch.tensor(labels)[:, None]


def test_shape_range_and_repetition(model):
    prefix = classes(0, 1, 2, 3, 0)
    codes = sample(model, prefix, SHAPE, seed=5)
    assert codes.shape == (5, *SHAPE)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < K
    assert torch.equal(codes, sample(model, prefix, SHAPE, seed=5))
    assert not torch.equal(codes, sample(model, prefix, SHAPE, seed=6))
    assert not torch.equal(codes[0], codes[4])  # same class, another number


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_the_cache_changes_nothing(model, filters):
    prefix = classes(*range(4), *range(4))
    fast, slow = (sample(model, prefix, SHAPE, seed=1, cached=cached, **filters) for cached in (True, False))
    assert torch.equal(fast, slow)


def test_a_batch_of_four_equals_four_of_one(model):
    prefix = classes(3, 1, 1, 2)
    together = sample(model, prefix, SHAPE, seed=9)
    alone = [sample(model, prefix[i:i + 1], SHAPE, seed=9, first=i) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, sample(model, prefix, SHAPE, seed=9, batch_size=3))


def test_a_shared_prefix_gives_the_same_samples(model):
    """Rows with equal prefixes share one pass; beside another class they do not."""
    shared = sample(model, classes(2, 2, 2), SHAPE, seed=3)
    assert torch.equal(shared, sample(model, classes(2, 2, 2, 0), SHAPE, seed=3)[:3])


def test_the_class_matters(model):
    maps = [sample(model, classes(label), SHAPE, seed=2) for label in range(4)]
    assert len({tuple(one.flatten().tolist()) for one in maps}) == 4


def test_drawn_as_often_as_the_model_says(model):
    """Pairs of codes of a 1x2 map against p(s_1) p(s_2 | s_1)."""
    count = 20_000
    with torch.no_grad():
        first = model(classes(1), torch.zeros(1, 1, dtype=torch.int64))[0, 0].softmax(-1)  # (K,)
        pairs = torch.stack([torch.arange(K), torch.zeros(K, dtype=torch.int64)], 1)
        second = model(classes(1).expand(K, -1), pairs)[:, 1].softmax(-1)  # (K,K)
    drawn = sample(model, classes(1).expand(count, -1), (1, 2), seed=0, batch_size=count)[:, 0]
    observed = torch.zeros(K, K).index_put_((drawn[:, 0], drawn[:, 1]), torch.ones(count), accumulate=True)
    expected = count * first[:, None] * second
    enough = expected > 5
    statistic = ((observed - expected)[enough] ** 2 / expected[enough]).sum()
    freedom = int(enough.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_greedy_is_the_likeliest_code_each_time(model):
    prefix = classes(0, 3)
    codes = sample(model, prefix, SHAPE, top_k=1)
    with torch.no_grad():
        assert torch.equal(model(prefix, codes.flatten(1)).argmax(-1), codes.flatten(1))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("where", ["upper half", "left half", "scattered", "each row its own", "all", "none"])
def test_what_is_given_is_kept(model, where, cached):
    prefix = classes(0, 1, 2)
    mask = torch.zeros(3, *SHAPE, dtype=torch.bool)
    if where == "upper half":
        mask[:, :2] = True
    if where == "left half":
        mask[:, :, :2] = True
    if where == "scattered":
        mask[:, 1, 2] = mask[:, 2, 0] = True
    if where == "each row its own":
        mask[0, 0], mask[1, 2, 3], mask[2, :, 1] = True, True, True
    if where == "all":
        mask[:] = True
    indices = torch.randint(K, mask.shape, generator=torch.Generator().manual_seed(0))
    codes = sample(model, prefix, SHAPE, seed=4, given=(mask, indices), cached=cached)
    assert torch.equal(codes[mask], indices[mask])
    if where == "none":
        assert torch.equal(codes, sample(model, prefix, SHAPE, seed=4))
    if where not in ("all", "none"):
        free = sample(model, prefix, SHAPE, seed=4)
        assert not torch.equal(codes[~mask], free[~mask])  # what is given changes what follows
    other = sample(model, prefix, SHAPE, seed=4, given=(mask, indices), cached=not cached)
    assert torch.equal(codes, other)


def test_completion_looks_at_nothing_under_the_mask_s_other_side(model):
    """Codes at places that are not given may hold anything."""
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[:, 0] = True
    one, other = (torch.where(mask, 5, filler) for filler in (0, K - 1))
    assert torch.equal(sample(model, classes(1), SHAPE, given=(mask, one)),
                       sample(model, classes(1), SHAPE, given=(mask, other)))


def test_a_lower_temperature_draws_likelier_maps(model):
    prefix = classes(1).expand(64, -1)

    def mean_log_likelihood(temperature):
        codes = sample(model, prefix, SHAPE, temperature=temperature, seed=0).flatten(1)
        with torch.no_grad():
            return model(prefix, codes).log_softmax(-1).gather(-1, codes[..., None]).mean()

    assert mean_log_likelihood(0.3) > mean_log_likelihood(1.0) > mean_log_likelihood(3.0)


def test_progress_counts_every_code(model):
    seen = []
    sample(model, classes(0, 1, 2), SHAPE, batch_size=2, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (36, 36)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_the_model_s_mode_is_left_as_it_was(model):
    model.train()
    with pytest.raises(TesseraeError):
        sample(model, classes(0), SHAPE, temperature=-1)
    sample(model, classes(0), SHAPE)
    assert model.training
    model.eval()


def test_uniform_numbers_belong_to_sample_and_position():
    table = uniforms(7, range(0, 200), 50)
    assert table.min() >= 0
    assert table.max() < 1
    assert torch.equal(uniforms(7, range(10, 12), 20), table[10:12, :20])
    assert table.flatten().unique().numel() > 9_950
    assert abs(table.mean() - 0.5) < 0.015


@pytest.mark.parametrize(("call", "said"), [
    ({"shape": (4, 4)}, "4x4 codes"),
    ({"shape": (0, 4)}, "0x4 codes"),
    ({"prefix": classes(4)}, "prefix tokens run from 4 to 4"),
    ({"given": (torch.ones(1, 3, 3).bool(), torch.zeros(1, 3, 3).long())}, "given mask"),
    ({"given": (torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE).long())}, "boolean mask"),
    ({"given": (torch.ones(1, *SHAPE).bool(), torch.full((1, *SHAPE), K))}, "given codes run from 13"),
])
def test_what_does_not_fit_is_named(model, call, said):
    with pytest.raises(TesseraeError, match=said):
        sample(model, **{"prefix": classes(0), "shape": SHAPE} | call)


@pytest.mark.parametrize("cached", [True, False])
def test_steps_on_a_cpu_are_in_full_precision(model, cached):
    """Whatever autocast says; a whole sequence through the network follows it."""
    seen = []
    handle = model.head.register_forward_hook(lambda _, inputs, logits: seen.append(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        sample(model, classes(0, 1), SHAPE, cached=cached)
    handle.remove()
    assert set(seen) == {torch.float32 if cached else torch.bfloat16}
