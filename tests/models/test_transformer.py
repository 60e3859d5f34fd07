"""The latent transformer: causal, the same with and without the cache, and GPT-2 where GPT-2 is."""

import contextlib
import json
from dataclasses import asdict

import pytest
import torch

from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer, TransformerConfig

K, P, T = 11, 3, 12


def make_model(seed=0, **changes):
    values = {"codebook_size": K, "prefix_vocab": 5, "prefix_length": P, "max_tokens": T, "n_layer": 2,
              "n_head": 2, "n_embd": 16, "dropout": 0.0}
    torch.manual_seed(seed)
    model = LatentTransformer(TransformerConfig(**values | changes)).eval()
    for parameter in model.parameters():  # larger than at the start, so that every part matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["causal", "full"])
def model(request):
    """Under both kinds of attention in the prefix: for the codes nothing changes."""
    return make_model(prefix_attention=request.param)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(5, (4, P), generator=generator), torch.randint(K, (4, T), generator=generator))


@pytest.mark.parametrize("position", range(T))
def test_a_code_changes_only_what_follows(model, batch, position):
    prefix, indices = batch
    changed = indices.clone()
    changed[:, position] = (changed[:, position] + 1) % K
    before, after = model(prefix, indices), model(prefix, changed)
    assert torch.equal(before[:, :position + 1], after[:, :position + 1])
    if position < T - 1:
        assert ((before - after)[:, position + 1:].abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("place", range(P))
def test_every_prefix_token_matters_everywhere(model, batch, place):
    prefix, indices = batch
    changed = prefix.clone()
    changed[:, place] = (changed[:, place] + 1) % 5
    assert ((model(prefix, indices) - model(changed, indices)).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def first_keys(prefix_attention, last_token):
    """What the second layer keeps of the first prefix token, beside another last one."""
    prefix = torch.tensor([[1, 2, last_token]])
    _, cache = make_model(prefix_attention=prefix_attention).prefill(prefix)
    return cache.buffers[1][0][:, :, 0]


def test_a_full_prefix_sees_all_of_itself():
    assert torch.equal(first_keys("causal", 3), first_keys("causal", 4))
    assert not torch.allclose(first_keys("full", 3), first_keys("full", 4))


@torch.no_grad()
def test_a_full_prefix_is_a_mask(batch):
    """Attention by hand, with weights from a mask written out, in the place of torch's."""
    prefix, indices = batch
    model, positions = make_model(prefix_attention="full"), P + T - 1
    allowed = torch.tensor([[key <= query or (query < P and key < P) for key in range(positions)]
                            for query in range(positions)])

    def by_hand(q, k, v, mask=None, is_causal=False):
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed[-q.shape[2]:], -torch.inf)
        return scores.softmax(-1) @ v

    expected = model(prefix, indices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", by_hand)
        torch.testing.assert_close(model(prefix, indices), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(make_model()(prefix, indices), expected)


def test_a_prefix_of_one_token_is_the_same_either_way(batch):
    full, causal = (make_model(prefix_attention=kind, prefix_length=1) for kind in ("full", "causal"))
    assert torch.equal(full(batch[0][:, :1], batch[1]), causal(batch[0][:, :1], batch[1]))


def test_positions_matter(model, batch):
    prefix, indices = batch
    same = torch.full_like(indices, 3)
    logits = model(prefix, same)
    assert (logits[:, 1:] - logits[:, :-1]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("known", [0, 1, 5, T - 1])
def test_cached_equals_uncached(model, batch, known):
    prefix, indices = batch
    expected = model(prefix, indices)
    logits, cache = model.prefill(prefix, indices[:, :known])
    for position in range(known, T):
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-5, atol=1e-5)
        if position < T - 1:
            logits = model.step(indices[:, position], cache)
    assert cache.length == model.config.block_size


@torch.no_grad()
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_steps_look_weights_up_again_once_they_are_no_longer_steady(batch, error):
    model, other, (prefix, indices) = make_model(), make_model(seed=1), batch

    def stepped():
        return model.step(indices[:, 0], model.prefill(prefix)[1])

    with contextlib.suppress(KeyboardInterrupt), model.steady():
        first = stepped()
        with model.steady():
            assert torch.equal(stepped(), first)
        if error:
            raise error
    assert torch.equal(stepped(), first)
    model.blocks[1].down, model.norm = other.blocks[1].down, other.norm
    model.blocks[0].attention.qkv, model.blocks[0].norm_1.weight.data = other.blocks[0].attention.qkv, torch.ones(16)
    assert (stepped() - first).abs().max() > 0.01
    torch.testing.assert_close(stepped(), model(prefix, indices[:, :2])[:, 1])


def test_a_shared_prefix_is_computed_once_and_right_for_all(model, batch):
    prefix, indices = batch
    expected = model(prefix[:1].expand(4, -1), indices)
    logits, cache = model.prefill(prefix[:1], batch=4)
    for position in range(T):
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-5, atol=1e-5)
        if position < T - 1:
            logits = model.step(indices[:, position], cache)


def test_partial_maps_get_the_logits_of_whole_ones(model, batch):
    prefix, indices = batch
    torch.testing.assert_close(model(prefix, indices[:, :5]), model(prefix, indices)[:, :5])


def test_bf16_cache_follows_autocast(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        _, cache = model.prefill(batch[0])
    assert cache.buffers[0][0].dtype == torch.bfloat16


@torch.no_grad()
def test_what_blocks_add_to_stays_in_full_precision(model, batch):
    """Under autocast, too, where products alone are in bf16: in a step as in a pass."""
    block, x = model.blocks[0], torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        _, cache = model.prefill(batch[0])
        assert block(x[:, None]).dtype == torch.float32
        assert block.stepping()(x, 0, cache).dtype == torch.float32


@pytest.mark.parametrize("prefix_length", [1, 3])
def test_parity_with_gpt2(prefix_length):
    """transformers' GPT-2 is given prefix and codes in one vocabulary, the prefix behind the codes in it."""
    transformers = pytest.importorskip("transformers")
    model = make_model(prefix_length=prefix_length)
    c = model.config
    config = transformers.GPT2Config(
        vocab_size=K + c.prefix_vocab, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, activation_function="gelu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    gpt = transformers.GPT2Model(config).eval()
    with torch.no_grad():
        gpt.wte.weight.copy_(torch.cat([model.token_embedding.weight, model.prefix_embedding.weight]))
        gpt.wpe.weight.copy_(model.positions)
        gpt.ln_f.load_state_dict(model.norm.state_dict())
        for theirs, ours in zip(gpt.h, model.blocks):
            theirs.ln_1.load_state_dict(ours.norm_1.state_dict())
            theirs.ln_2.load_state_dict(ours.norm_2.state_dict())
            for conv, linear in ((theirs.attn.c_attn, ours.attention.qkv), (theirs.mlp.c_fc, ours.up),
                                 (theirs.attn.c_proj, ours.attention.proj), (theirs.mlp.c_proj, ours.down)):
                conv.weight.copy_(linear.weight.T)
                conv.bias.copy_(linear.bias)
    prefix, indices = torch.randint(5, (4, prefix_length)), torch.randint(K, (4, T))
    hidden = gpt(torch.cat([prefix + K, indices[:, :-1]], dim=1)).last_hidden_state
    expected = hidden[:, prefix_length - 1:] @ model.head.weight.T
    torch.testing.assert_close(model(prefix, indices), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter(batch):
    model = make_model().train()
    prefix, indices = batch
    model(prefix, indices).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_init_is_gpt2s():
    torch.manual_seed(0)
    model = LatentTransformer(TransformerConfig(n_layer=8, n_head=4, n_embd=128))
    block = model.blocks[3]
    assert block.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.attention.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.head.bias is None
    assert not block.up.bias.any()


def test_at_the_start_every_code_is_about_as_likely(batch):
    torch.manual_seed(0)
    model = LatentTransformer(make_model().config).eval()
    logits = model(*batch)
    assert logits.softmax(-1).max() < 3 / K


def test_dropout_is_only_for_training(batch):
    model = make_model(dropout=0.5)
    torch.testing.assert_close(model(*batch), make_model()(*batch))
    assert not torch.allclose(model.train()(*batch), make_model()(*batch))


def test_save_and_load(tmp_path, batch):
    model = make_model(conditions=({"kind": "class", "vocab": 5}, {"kind": "codes", "name": "a", "vocab": 9,
                                                                   "window": [2, 1]}),
                       window=(3, 4), order="z_curve", prefix_attention="full")
    model.save_pretrained(tmp_path / "m")
    again = LatentTransformer.from_pretrained(tmp_path / "m")
    assert again.config == model.config
    assert torch.equal(model(*batch), again(*batch))
    plain = json.loads(json.dumps(asdict(model.config)))
    assert json.loads((tmp_path / "m/config.json").read_text()) == {"kind": "LatentTransformer", **plain}


def test_loading_says_what_is_wrong(tmp_path, model):
    with pytest.raises(TesseraeError, match="holds no model"):
        LatentTransformer.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TesseraeError, match=r"model\.safetensors is damaged"):
        LatentTransformer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("prefix", "indices", "said"), [
    (torch.zeros(2, P + 1), torch.zeros(2, T), "the prefix has the shape"),
    (torch.zeros(2), torch.zeros(2, T), "the prefix has the shape"),
    (torch.zeros(2, P), torch.zeros(2, T + 1), "13 codes were asked for"),
    (torch.zeros(2, P), torch.zeros(2, 0), "0 codes were asked for"),
])
def test_wrong_shapes_are_named(model, prefix, indices, said):
    with pytest.raises(TesseraeError, match=said):
        model(prefix.long(), indices.long())


def test_heads_must_divide_the_width():
    with pytest.raises(TesseraeError, match="multiple of n_head"):
        make_model(n_embd=15)


@pytest.mark.parametrize("prefix_attention", ["causal", "full"])
def test_what_the_last_layer_leaves_out_changes_nothing(batch, prefix_attention):
    """Neither logits nor gradients: beside all layers on all positions."""
    prefix, indices = batch
    model = make_model(prefix_attention=prefix_attention)
    x = model._embed(prefix, indices[:, :-1])
    for layer, block in enumerate(model.blocks):
        x = block(x, layer)
    whole = model.head(model.norm(x[:, P - 1:]))
    torch.testing.assert_close(model(prefix, indices), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(prefix, indices, last=2), whole[:, -2:], rtol=1e-5, atol=1e-5)
    weights, aim = list(model.parameters()), torch.randn(whole.shape)
    expected = torch.autograd.grad((whole * aim).sum(), weights)
    for made, wanted in zip(torch.autograd.grad((model(prefix, indices) * aim).sum(), weights), expected):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_codes_of_different_places_at_once(model, batch):
    prefix, indices = batch
    places = torch.tensor([0, 3, T - 1, 7])
    expected = model(prefix, indices)[torch.arange(4), places]
    changed = indices.clone()
    for row, place in enumerate(places):
        changed[row, place:] = (changed[row, place:] + 1) % K  # from its place on nothing is looked at
    torch.testing.assert_close(model.at(prefix, changed, places), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_several_codes_a_step(model, batch, at_once):
    prefix, indices = batch
    expected = model(prefix, indices)
    _, cache = model.prefill(prefix, indices[:, :1])
    fixed = cache.blank(len(prefix), 24)
    fixed.take(cache, torch.arange(len(prefix)))
    for place in range(1, T - at_once, at_once):
        codes, places = indices[:, place:place + at_once], (torch.arange(at_once) + P + place).expand(4, -1)
        at_fixed = model.step_at(codes, places, fixed)
        torch.testing.assert_close(model.step(codes, cache), expected[:, place + at_once], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(at_fixed, expected[:, place + at_once], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_step_of_samples_that_are_known_to_different_lengths(model, batch, at_once):
    prefix, indices = batch
    expected = model(prefix, indices)
    known = torch.tensor([4, 1, T - 1 - at_once, 4])
    _, fixed = model.prefill(prefix, indices[:, :1])
    fixed = fixed.blank(len(prefix), 24)
    for row, length in enumerate(known.tolist()):
        fixed.take(model.prefill(prefix[row:row + 1], indices[row:row + 1, :length])[1], torch.tensor([row]))
    places = known[:, None] + torch.arange(at_once)
    found = model.step_at(indices.gather(1, places), P + places, fixed)
    torch.testing.assert_close(found, expected[torch.arange(4), known + at_once], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("copies", [0, 2])
def test_a_step_of_several_caches(model, batch, at_once, copies):
    """Two samples that are known to one length, two to others, the last repeated."""
    prefix, indices = batch
    expected, known = model(prefix, indices), (4, 4, 1, 5)
    _, both = model.prefill(prefix[:2], indices[:2, :4])
    caches = [both, *(model.prefill(prefix[row:row + 1], indices[row:row + 1, :known[row]])[1] for row in (2, 3))]
    for more in (0, at_once):  # twice, for the first fills the caches
        codes = torch.stack([indices[row, length + more:length + more + at_once] for row, length in enumerate(known)])
        codes = codes[[0, 1, 2, 3] + [3] * copies]
        found = model.step_each(codes, caches, last=min(2, at_once))
        wanted = [expected[row, length + more + at_once] for row, length in enumerate(known)]
        torch.testing.assert_close(found, torch.stack(wanted + wanted[3:] * copies), rtol=1e-5, atol=1e-5)
    assert [cache.length for cache in caches] == [P + length + 2 * at_once for length in (4, 1, 5)]


@torch.no_grad()
def test_parts_of_a_cache_go_on_by_themselves(model, batch):
    prefix, indices = batch
    expected = model(prefix, indices)
    _, whole = model.prefill(prefix, indices[:, :2], room=7)
    assert whole.nbytes == 2 * 2 * 4 * (P + 6) * 16 * 4  # layers, keys and values, samples, positions, numbers, bytes
    first, second, third = whole.parts(1)[:3]
    assert first.nbytes == whole.nbytes // 4
    model.step_each(indices[:1, 2:5], [first])
    found = model.step_each(torch.stack([indices[0, 5], indices[2, 2]])[:, None], [first, third])
    torch.testing.assert_close(found, torch.stack([expected[0, 6], expected[2, 3]]), rtol=1e-5, atol=1e-5)
    assert second.length == P + 2
    pair, = whole.parts(3)
    torch.testing.assert_close(model.step(indices[:3, 2], pair), expected[:3, 3], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sequences_beside_a_step(model, batch):
    """One group of two samples, one that knows nothing but its prefix; the step's samples are not touched."""
    prefix, indices = batch
    expected, known = model(prefix, indices), torch.tensor([4, 1])
    fixed = model.prefill(prefix[:2])[1].blank(2, 24)
    for row, length in enumerate(known.tolist()):
        fixed.take(model.prefill(prefix[row:row + 1], indices[row:row + 1, :length])[1], torch.tensor([row]))
    fresh = [(prefix[2:], indices[2:, :5]), (prefix[:1], indices[:1, :0])]
    for more in range(2):
        codes = indices[torch.arange(2), known + more][:, None]
        logits, found = model.step_beside(codes, (P + known + more)[:, None], fixed, 16, fresh)
        torch.testing.assert_close(logits, expected[torch.arange(2), known + more + 1], rtol=1e-5, atol=1e-5)
        for (first, cache), (rows, length) in zip(found, ((slice(2, 4), 5), (slice(0, 1), 0))):
            torch.testing.assert_close(first, expected[rows, length], rtol=1e-5, atol=1e-5)
            assert cache.length == P + length
    room = found[0][1].blank(2, 24)
    room.take(found[0][1], torch.arange(2))
    room.length = P + 5
    torch.testing.assert_close(model.step(indices[2:, 5], room), expected[2:, 6], rtol=1e-5, atol=1e-5)
