"""The reference's checkpoints: weights of independent implementations under its names give the same outputs.

The weights come from `diffusers.VQModel` and from the GPT-2 of `transformers`, renamed here as the reference
names them. So neither network nor names are checked against themselves.
"""

import argparse
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from ruamel.yaml import YAML
from transformers import GPT2Config, GPT2LMHeadModel

from tesserae.errors import TesseraeError
from tesserae.interop.compvis import load_transformer, load_vqgan
from tesserae.sampling.orderings import ordering

torch.set_num_threads(1)

DDCONFIG = {"double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}
PARAMS = {"embed_dim": 8, "n_embed": 24, "ddconfig": DDCONFIG, "lossconfig": {"target": "taming.DummyLoss"}}


def config(**changes):
    return {"model": {"params": {**PARAMS, "ddconfig": {**DDCONFIG, **changes}}}}


def randomise(model):
    """Weights that leave no part of the network without effect."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            spread = 0.6 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    return model.eval()


def diffusers_model(attention_at_lowest=True):
    torch.manual_seed(0)
    down, up = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
    if attention_at_lowest:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    model = VQModel(3, 3, tuple(down), tuple(up), (32, 32, 64), layers_per_block=1, latent_channels=16,
                    num_vq_embeddings=24, norm_num_groups=32, vq_embed_dim=8)
    return randomise(model)


RENAMED = (
    (r"encoder\.down_blocks\.", "encoder.down."), (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"), (r"\.resnets\.", ".block."), (r"\.attentions\.", ".attn."),
    (r"downsamplers\.0", "downsample"), (r"upsamplers\.0", "upsample"), (r"conv_norm_out", "norm_out"),
    (r"\.group_norm\.", ".norm."), (r"\.to_([qkv])\.", r".\1."), (r"\.to_out\.0\.", ".proj_out."),
)


def reference_state(model):
    """The state dict of diffusers' model under the reference's names, with a loss that must be ignored."""
    state = {"loss.discriminator.main.0.weight": torch.zeros(2, 3, 4, 4), "loss.perceptual": torch.zeros(1)}
    for key, value in model.state_dict().items():
        key = re.sub(r"decoder\.up_blocks\.(\d)", lambda match: f"decoder.up.{2 - int(match[1])}", key)
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        linear = re.search(r"\.(q|k|v|proj_out)\.weight", key)
        state[key] = value[:, :, None, None].clone() if linear else value.clone()
    return state


@pytest.mark.parametrize("attention", [True, False])
def test_vqgan_equals_diffusers(attention):
    theirs = diffusers_model(attention).double()  # float32 would round either otherwise
    images = torch.rand(2, 3, 32, 32).double() * 2 - 1
    with torch.no_grad():
        z_hat = theirs.encode(images).latents
        theirs.quantize.embedding.weight.copy_(z_hat.movedim(1, -1).reshape(-1, 8)[::5][:24] + 0.01)
        z_q, _, (_, _, indices) = theirs.quantize(z_hat)
        x_hat = theirs.decode(z_hat).sample
    ours = load_vqgan(config(attn_resolutions=[8] if attention else []), reference_state(theirs)).double()
    assert ours.config.attention_levels == ((2,) if attention else ())
    with torch.no_grad():
        torch.testing.assert_close(ours.latents(images), z_hat, atol=1e-9, rtol=1e-9)
        assert torch.equal(ours.encode(images).flatten(), indices)
        assert len(indices.unique()) > 5
        reconstruction, quantized = ours(images)
        torch.testing.assert_close(quantized.z_q, z_q, atol=1e-6, rtol=1e-6)  # quantizers count in float32
        torch.testing.assert_close(reconstruction, x_hat, atol=1e-6, rtol=1e-6)
        decoded = ours.decode(ours.encode(images))
        torch.testing.assert_close(decoded, x_hat.clamp(-1, 1).float(), atol=1e-6, rtol=1e-6)


def test_gumbel_codes_are_the_largest_logits():
    state = reference_state(diffusers_model())
    del state["quantize.embedding.weight"]
    projection, embedding = torch.nn.Conv2d(8, 24, 1), torch.randn(24, 8)
    torch.nn.init.normal_(projection.weight, std=2.0)
    state |= {"quantize.embed.weight": embedding, "quantize.proj.weight": projection.weight.detach(),
              "quantize.proj.bias": projection.bias.detach()}
    ours = load_vqgan(config(), state)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = projection(ours.latents(images)).argmax(1)
        assert torch.equal(ours.encode(images), expected)
        assert len(expected.unique()) > 5
        z_q = embedding[expected].movedim(-1, 1)
        torch.testing.assert_close(ours(images)[1].z_q, z_q, atol=1e-5, rtol=1e-5)
        assert torch.equal(ours.quantizer.lookup(expected), z_q)


def test_imported_model_survives_saving(tmp_path):
    ours = load_vqgan(config(), reference_state(diffusers_model()))
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(ours(images)[0], again(images)[0])


def gpt2(vocab=40, positions=24):
    torch.manual_seed(0)
    return randomise(GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab, n_positions=positions, n_embd=32, n_layer=2, n_head=4, activation_function="gelu",
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False)))


def reference_transformer(model):
    """GPT-2's weights under the reference's names; its Conv1D holds matrices the other way round."""
    theirs, state = model.state_dict(), {}
    for layer in range(model.config.n_layer):
        old, new = f"transformer.h.{layer}.", f"transformer.blocks.{layer}."
        for kind in ("weight", "bias"):
            q, k, v = theirs[f"{old}attn.c_attn.{kind}"].chunk(3, dim=-1)
            parts = {"attn.query": q, "attn.key": k, "attn.value": v,
                     "attn.proj": theirs[f"{old}attn.c_proj.{kind}"],
                     "mlp.0": theirs[f"{old}mlp.c_fc.{kind}"], "mlp.2": theirs[f"{old}mlp.c_proj.{kind}"]}
            state |= {f"{new}{name}.{kind}": part.t().clone() if kind == "weight" else part.clone()
                      for name, part in parts.items()}
            state |= {f"{new}ln{n}.{kind}": theirs[f"{old}ln_{n}.{kind}"] for n in (1, 2)}
        state[f"{new}attn.mask"] = torch.ones(1, 1, 24, 24).tril()
    for kind in ("weight", "bias"):
        state[f"transformer.ln_f.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
    return state | {"transformer.tok_emb.weight": theirs["transformer.wte.weight"],
                    "transformer.pos_emb": theirs["transformer.wpe.weight"][None],
                    "transformer.head.weight": theirs["lm_head.weight"]}


def transformer_config(condition, block=24, **changes):
    sizes = {"vocab_size": 40, "block_size": block, "n_layer": 2, "n_head": 4, "n_embd": 32}
    return {"model": {"params": {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": {
            **sizes, **changes.pop("sizes", {})}},
        "first_stage_config": {"target": "taming.models.vqgan.VQModel", "params": PARAMS | {
            "ddconfig": {**DDCONFIG, "resolution": 16}}},  # 4x4 codes
        "cond_stage_config": condition, **changes}}}


LABEL = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 10}}


def test_transformer_equals_gpt2():
    theirs = gpt2()
    ours = load_transformer(transformer_config(LABEL), reference_transformer(theirs))
    classes, codes = torch.tensor([[3], [9]]), torch.randint(40, (2, 16))
    with torch.no_grad():
        expected = theirs(torch.cat([classes, codes[:, :-1]], dim=1)).logits
        torch.testing.assert_close(ours(classes, codes), expected, atol=1e-5, rtol=1e-5)


def test_start_token_becomes_prefix_zero():
    theirs = gpt2()
    given = transformer_config("__is_unconditional__", sos_token=5)
    ours = load_transformer(given, reference_transformer(theirs))
    codes, start = torch.randint(40, (2, 16)), torch.zeros(2, 1, dtype=torch.int64)
    with torch.no_grad():
        expected = theirs(torch.cat([start + 5, codes[:, :-1]], dim=1)).logits
        torch.testing.assert_close(ours(start, codes), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("condition", "changes", "prefix"), [
    (LABEL, {}, (1, 10)),
    ("__is_unconditional__", {}, (1, 1)),
    (LABEL, {"unconditional": True}, (1, 1)),
    ("__is_first_stage__", {"block": 40}, (16, 24)),
    ("__is_first_stage__", {"downsample_cond_size": 8}, (4, 24)),
    ({"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 30, "down_factor": 8}}, {},
     (4, 31)),
    ({"target": "taming.models.dummy_cond_stage.DummyCondStage", "params": {}}, {}, (8, 40)),
])
def test_length_of_the_prefix_follows_from_the_condition(condition, changes, prefix):
    given = transformer_config(condition, **changes)
    state = reference_transformer(gpt2(positions=changes.get("block", 24)))
    ours = load_transformer(given, state)
    assert (ours.config.prefix_length, ours.config.prefix_vocab) == prefix
    assert ours.config.block_size == changes.get("block", 24)


def test_transformer_checkpoint_also_gives_its_first_stage():
    vqgan = reference_state(diffusers_model())
    first_stage = {f"first_stage_model.{key}": value for key, value in vqgan.items()}
    state = reference_transformer(gpt2()) | first_stage
    given = transformer_config(LABEL)
    given["model"]["params"]["first_stage_config"]["params"]["ddconfig"]["attn_resolutions"] = [4]
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = load_vqgan(config(), vqgan).encode(images)
    assert torch.equal(load_vqgan(given, state).encode(images), expected)
    load_transformer(given, state)


BOXES = {"target": "taming.models.dummy_cond_stage.DummyCondStage", "params": {"conditional_key": "boxes"}}


@pytest.mark.parametrize(("condition", "changes", "sentence"), [
    (LABEL, {"sizes": {"n_unmasked": 4}}, r"n_unmasked = 4 is not the length of its prefix, 1 tokens"),
    (BOXES, {"sizes": {"n_unmasked": 7}}, r"n_unmasked = 7 is not the length of its prefix, 8 tokens: only 8"),
    (BOXES, {"sizes": {"n_unmasked": 9}}, "n_unmasked = 9"),
    ({"target": "mine.LabelSampler", "params": {"n_labels": 3}}, {}, "condition LabelSampler is not known here"),
    ({"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"ddconfig": DDCONFIG}}, {},
     "condition AutoencoderKL is a KL model"),
    ({"params": {}}, {}, r"lacks 'cond_stage_config\.target'"),
    (LABEL | {"params": {"n_classes": 1000}}, {}, "counts to 1000, and its vocab_size = 40"),
    ("__is_unconditional__", {"sos_token": 40}, "counts to 41, and its vocab_size = 40"),
    (BOXES, {"block": 16}, "block_size = 16 leaves nothing beside 16 codes"),
    ("__is_first_stage__", {"block": 15}, "block_size = 15 has no room for codes and a condition of 16"),
    (LABEL, {"transformer_config": {"target": "taming.modules.transformer.mingpt.CodeGPT", "params": {}}},
     "transformer CodeGPT is not known here: only GPT"),
    (LABEL, {"sizes": {"n_layer": "two"}}, "n_layer = 'two' is not a whole number"),
])
def test_conditions_and_sizes_that_ours_cannot_hold_are_named(condition, changes, sentence):
    with pytest.raises(TesseraeError, match=sentence):
        load_transformer(transformer_config(condition, **changes), reference_transformer(gpt2()))


def test_configs_without_a_transformer_are_named():
    state = reference_transformer(gpt2())
    with pytest.raises(TesseraeError, match=r"that of VQModel, which has no transformer .* load_vqgan loads"):
        load_transformer(model_of("taming.models.vqgan.VQModel"), state)
    first = {"first_stage_config": model_of("ldm.VQModelInterface")["model"]}
    with pytest.raises(TesseraeError, match="that of LatentDiffusion, which has no transformer"):
        load_transformer({"model": {"target": "ldm.LatentDiffusion", "params": first}}, state)


def test_sizes_of_transformers_that_differ_are_named_once():
    state = reference_transformer(gpt2())
    both = r"differs: tok_emb\.weight is \(40, 32\), not \(50, 32\), head\.weight is \(40, 32\), not \(50, 32\): give"
    with pytest.raises(TesseraeError, match=both):
        load_transformer(transformer_config(LABEL, sizes={"vocab_size": 50}), state)
    with pytest.raises(TesseraeError, match=r"pos_emb is \(24, 32\), not \(30, 32\)"):
        load_transformer(transformer_config(LABEL, block=30), state)
    state["transformer.pos_emb"] = torch.zeros(24)
    with pytest.raises(TesseraeError, match=r"pos_emb is \(24,\), not \(24, 32\)"):
        load_transformer(transformer_config(LABEL), state)


def test_the_permuter_in_the_checkpoint_is_the_configs():
    target = "taming.modules.transformer.permuter.{}"
    given = transformer_config(LABEL, permuter_config={"target": target.format("SpiralOut")})
    state = reference_transformer(gpt2())
    kept = {"permuter.forward_shuffle_idx": ordering("spiral_out", 4, 4)}
    assert load_transformer(given, state | kept).config.order == "spiral_out"
    given = transformer_config(LABEL, permuter_config={"target": target.format("SpiralIn")})
    with pytest.raises(TesseraeError, match=r"forward_shuffle_idx, 16 codes\) is not the order spiral_in"):
        load_transformer(given, state | kept)


@pytest.mark.parametrize(("changes", "word"), [
    ({"permuter_config": {"target": "taming.modules.transformer.permuter.Random"}}, "Random is an order that"),
])
def test_transformers_that_ours_cannot_hold_are_refused(changes, word):
    with pytest.raises(TesseraeError, match=word):
        load_transformer(transformer_config(LABEL, **changes), reference_transformer(gpt2()))


@pytest.mark.parametrize(("permuter", "order"), [
    ("Identity", "row"), ("Subsample", "subsample"), ("ZCurve", "z_curve"), ("SpiralOut", "spiral_out"),
    ("SpiralIn", "spiral_in"), ("AlternateParsing", "alternate"),
])
def test_permuters_are_orders(permuter, order):
    """The same weights: the order is a matter of how maps become sequences (tests/sampling/test_orderings.py)."""
    target = f"taming.modules.transformer.permuter.{permuter}"
    given = transformer_config(LABEL, permuter_config={"target": target, "params": {"H": 4, "W": 4}})
    assert load_transformer(given, reference_transformer(gpt2())).config.order == order


def lightning_file(folder: Path, state: dict, **beside) -> Path:
    path = folder / "last.ckpt"
    torch.save({"epoch": 3, "global_step": 7, "state_dict": state, **beside}, path)
    return path


def test_file_and_yaml(tmp_path):
    state = reference_state(diffusers_model())
    YAML().dump(config(), tmp_path / "model.yaml")
    path = lightning_file(tmp_path, state, optimizer_states=[{"state": {0: {"step": 1}}, "param_groups": []}])
    ours, direct = load_vqgan(tmp_path / "model.yaml", str(path)), load_vqgan(config(), state)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), direct.state_dict().values()))
    assert not ours.training


class AttributeDict(dict):
    """As Lightning keeps hyper-parameters."""


class ModelCheckpoint:
    """As Lightning 1.0 keeps its callbacks: the class is a key."""


@pytest.fixture
def old_lightning(monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks")
    module.ModelCheckpoint, module.AttributeDict = ModelCheckpoint, AttributeDict
    for made in (ModelCheckpoint, AttributeDict):
        monkeypatch.setattr(made, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return monkeypatch


def test_checkpoint_with_objects_of_libraries_that_are_not_there(tmp_path, old_lightning):
    from omegaconf import OmegaConf

    state = reference_state(diffusers_model())
    kept = AttributeDict(config=OmegaConf.create({"a": {"b": [1, 2]}}), options=argparse.Namespace(gpus="0,"))
    path = lightning_file(tmp_path, state, hyper_parameters=kept, callbacks={ModelCheckpoint: {
        "best_model_score": torch.tensor(1.0), "callback": ModelCheckpoint()}})
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        old_lightning.delitem(sys.modules, name)
    ours = load_vqgan(config(), path)
    assert torch.equal(ours.codebook, state["quantize.embedding.weight"])


class Payload:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        import os

        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoint_that_carries_code_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "bad.ckpt"
    torch.save({"state_dict": reference_state(diffusers_model()), "x": Payload(tmp_path / "made")}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(TesseraeError, match=r"bad\.ckpt is refused .*mkdir"):
        load_vqgan(config(), path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "made").exists()  # the file does carry it: whoever reads it naively runs it


@pytest.mark.parametrize("name", ["builtins.eval", "subprocess.run", "os.system", "importlib.import_module"])
def test_names_of_code_are_refused(tmp_path, name):
    module, _, function = name.rpartition(".")
    pickled = f"c{module}\n{function}\n(S'1'\ntR.".encode()
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickled)
    with pytest.raises(TesseraeError, match=r"bad\.ckpt is refused"):
        load_vqgan(config(), path)


@pytest.mark.parametrize(("content", "meaning"), [
    (b"", "it is empty"), (b"not a checkpoint", "damaged or no checkpoint"),
    (b"PK\x03\x04broken", "cut short at 10 bytes"), (b"<!DOCTYPE html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS's pointer"),
])
def test_files_that_are_no_checkpoints(tmp_path, content, meaning):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(TesseraeError, match=rf"x\.ckpt is refused, as .*{meaning}.*download or copy"):
        load_vqgan(config(), path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_short(tmp_path, zipped, kept):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": reference_state(diffusers_model())}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[:int(kept * len(whole))])
    with pytest.raises(TesseraeError, match=r"x\.ckpt is refused, as it is .*: download or copy"):
        load_vqgan(config(), path)


def test_missing_files(tmp_path):
    with pytest.raises(TesseraeError, match=r"none\.ckpt does not exist"):
        load_vqgan(config(), tmp_path / "none.ckpt")
    with pytest.raises(TesseraeError, match=r"none\.yaml does not exist"):
        load_vqgan(tmp_path / "none.yaml", {})
    with pytest.raises(TesseraeError, match=r"is a folder: give the \.ckpt file in it"):
        load_vqgan(config(), tmp_path)


def test_what_does_not_fit_is_named():
    state = reference_state(diffusers_model())
    lacking = {key: value for key, value in state.items() if key != "encoder.conv_in.bias"}
    with pytest.raises(TesseraeError, match=r"lacks encoder\.conv_in\.bias"):
        load_vqgan(config(), lacking)
    with pytest.raises(TesseraeError, match=r"unknown here, quantize\.used"):
        load_vqgan(config(), state | {"quantize.used": torch.zeros(3)})
    with pytest.raises(TesseraeError, match=r"unknown here, quantize\.used \(its codes are remapped\)"):
        load_vqgan(config(), state | {"quantize.used": torch.zeros(3)})
    with pytest.raises(TesseraeError, match=r"quantize\.embedding\.weight is \(24, 8\), not \(25, 8\)"):
        load_vqgan({"model": {"params": {**PARAMS, "n_embed": 25}}}, state)
    with pytest.raises(TesseraeError, match=r"encoder\.mid\.attn_1\.q\.weight is \(64, 64\), not \(64, 64, 1, 1\)"):
        load_vqgan(config(), state | {"encoder.mid.attn_1.q.weight": torch.zeros(64, 64)})
    with pytest.raises(TesseraeError, match=r"encoder\.conv_out\.bias is \(16,\), not \(32,\)"):
        load_vqgan(config(z_channels=32), state)
    broken = config()
    del broken["model"]["params"]["ddconfig"]["ch_mult"]
    with pytest.raises(TesseraeError, match="lacks 'ch_mult'"):
        load_vqgan(broken, state)
    with pytest.raises(TesseraeError, match="no state dict of tensors"):
        load_vqgan(config(), {"state_dict": {"a": 1}})
    with pytest.raises(TesseraeError, match=r"its keys are epoch, optimizer_states\): give"):
        load_vqgan(config(), {"epoch": 3, "optimizer_states": []})


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"double_z": True}, r"double_z = True .* KL models .* no codebook"),
    ({"attn_type": "linear"}, r"attn_type = 'linear' is another kind of attention"),
    ({"use_linear_attn": True}, r"use_linear_attn = True is another kind of attention"),
    ({"resamp_with_conv": False}, r"resamp_with_conv = False .*only models with resamp_with_conv = True"),
    ({"give_pre_end": True}, r"give_pre_end = True ends the decoder before its last layer"),
    ({"tanh_out": True}, r"tanh_out = True ends the decoder in a tanh"),
    ({"mid_attention": 2}, r"ddconfig\.mid_attention = 2 is not known here: take it out"),
    ({"attn_resolutions": None}, r"attn_resolutions = None is not a list of whole numbers"),
    ({"attn_resolutions": 8}, r"attn_resolutions = 8 is not a list of whole numbers"),
    ({"ch_mult": []}, r"ch_mult = \[\] is not a list"),
    ({"ch": "32"}, r"ch = '32' is not a whole number from 1"),
    ({"num_res_blocks": [1, 1]}, r"num_res_blocks = \[1, 1\] is not a whole number"),
    ({"dropout": "none"}, r"dropout = 'none' is not a number from 0 to 1"),
])
def test_keys_that_our_network_does_not_honour_are_named(changes, sentence):
    with pytest.raises(TesseraeError, match=sentence):
        load_vqgan(config(**changes), reference_state(diffusers_model()))


def test_what_changes_nothing_is_let_through():
    same = {"tanh_out": False, "use_linear_attn": False, "resamp_with_conv": True, "give_pre_end": False,
            "attn_type": "vanilla"}
    load_vqgan(config(**same), reference_state(diffusers_model()))


def model_of(target, without=(), **params):
    kept = {key: value for key, value in PARAMS.items() if key not in without}
    return {"model": {"target": target, "params": {**kept, **params}}}


@pytest.mark.parametrize(("given", "sentence"), [
    (model_of("ldm.models.autoencoder.AutoencoderKL", ["n_embed"]),
     "AutoencoderKL is a KL model, .* no codebook: only VQModel"),
    (model_of("taming.models.vqgan.VQModel", remap="used.npy"), r"remap = 'used\.npy' gives the codes other indices"),
    (model_of("taming.models.vqgan.VQModel", ddconfig=None), "ddconfig = None does not describe a network"),
    (model_of("other.ViTVQ"), "model ViTVQ is not known here: only VQModel"),
    (model_of("taming.models.vqgan.VQSegmentationModel", ddconfig={**DDCONFIG, "out_ch": 9}),
     "in_channels = 3 and out_ch = 9 .* not the same number of classes"),
    (model_of("ldm.LatentDiffusion", first_stage_config=model_of("ldm.AutoencoderKL")["model"]),
     "first_stage_config AutoencoderKL is a KL model"),
    (model_of("ldm.LatentDiffusion", first_stage_config="none"), "first_stage_config = 'none' is no VQGAN"),
    ({"model": {"params": None}}, "params = None describes no model"),
    ({"data": {}}, "lacks 'model.params'"),
])
def test_other_models_are_named_as_what_they_are(given, sentence):
    with pytest.raises(TesseraeError, match=sentence):
        load_vqgan(given, reference_state(diffusers_model()))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "module.", "model.first_stage_model.", "vqgan."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", None])
def test_weights_are_found_below_prefixes_and_wrappers(prefix, wrapper):
    state = reference_state(diffusers_model())
    given = {f"{prefix}{key}": value for key, value in state.items()} | {"model.diffusion_model.w": torch.ones(1)}
    ours = load_vqgan(config(), {wrapper: given, "epoch": 3} if wrapper else given)
    assert torch.equal(ours.codebook, state["quantize.embedding.weight"])


def test_of_several_networks_the_first_stage_is_taken_unless_asked_otherwise():
    first, cond = reference_state(diffusers_model()), reference_state(diffusers_model())
    cond["quantize.embedding.weight"] = cond["quantize.embedding.weight"] + 1
    given = {f"first_stage_model.{key}": value for key, value in first.items()}
    given |= {f"cond_stage_model.{key}": value for key, value in cond.items()}
    assert torch.equal(load_vqgan(config(), given).codebook, first["quantize.embedding.weight"])
    assert torch.equal(load_vqgan(config(), given, stage="cond").codebook, cond["quantize.embedding.weight"])
    with pytest.raises(TesseraeError, match="stage = 'second' is not known: take first or cond"):
        load_vqgan(config(), given, stage="second")
    given = {re.sub(r"^(first|cond)_stage_model", r"\1", key): value for key, value in given.items()}
    with pytest.raises(TesseraeError, match=r"several networks, under cond\., first\.: give the weights of one"):
        load_vqgan(config(), given)


def test_moving_averages_of_the_weights_are_taken_where_asked():
    state = reference_state(diffusers_model())
    averages = {f"model_ema.{key.replace('.', '')}": value + 1 for key, value in state.items()}
    both = state | averages | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}
    with pytest.warns(UserWarning, match=r"weights of the last step are loaded; ema=True loads the averages"):
        ours = load_vqgan(config(), both)
    assert torch.equal(ours.codebook, state["quantize.embedding.weight"])
    averaged = load_vqgan(config(), both, ema=True)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(averaged.get_parameter(name), weight + 1)
    with pytest.raises(TesseraeError, match="the checkpoint has none: leave ema out"):
        load_vqgan(config(), state, ema=True)


def test_a_block_of_a_config_by_itself():
    state = reference_state(diffusers_model())
    assert load_vqgan(model_of("taming.models.vqgan.VQModel")["model"], state).config.codebook_size == 24
