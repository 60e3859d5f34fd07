"""The latent transformer: causal, the same with and without the cache, and GPT-2 where GPT-2 is."""

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
        assert block(x[:, None], 0, cache).dtype == torch.float32


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
    (torch.zeros(2, P), torch.zeros(2, T + 1), "13 codes were requested"),
    (torch.zeros(2, P), torch.zeros(2, 0), "0 codes were requested"),
])
def test_wrong_shapes_are_named(model, prefix, indices, said):
    with pytest.raises(TesseraeError, match=said):
        model(prefix.long(), indices.long())


def test_heads_must_divide_the_width():
    with pytest.raises(TesseraeError, match="multiple of n_head"):
        make_model(n_embd=15)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_several_codes_a_step(model, batch, at_once):
    prefix, indices = batch
    expected = model(prefix, indices)
    _, cache = model.prefill(prefix, indices[:, :1])
    for position in range(1, T - at_once, at_once):
        logits = model.step(indices[:, position:position + at_once], cache)
        torch.testing.assert_close(logits, expected[:, position + at_once], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_cache_may_serve_fewer_codes(model, batch):
    prefix, indices = batch
    expected = model(prefix, indices)
    _, cache = model.prefill(prefix, indices[:, :2], max_tokens=5)
    assert cache.buffers[0][0].shape[2] == P + 4
    torch.testing.assert_close(model.step(indices[:, 2:4], cache), expected[:, 4], rtol=1e-5, atol=1e-5)
    logits, cache = model.prefill(prefix, indices[:, :4], max_tokens=5)  # nothing follows
    torch.testing.assert_close(logits, expected[:, 4], rtol=1e-5, atol=1e-5)
    assert cache.length == cache.capacity
