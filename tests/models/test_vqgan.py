"""The VQGAN: shapes for every f, attention where asked, codes that carry all that the decoder sees."""

import json

import pytest
import torch
from torch import nn

import tesserae
from tesserae.data.views import Classes, view_of
from tesserae.errors import TesseraeError
from tesserae.models.layers import Attention
from tesserae.models.vqgan import VQGAN, VQGANConfig

torch.set_num_threads(1)

TINY = {"channels": 8, "channel_mult": (1, 2), "res_blocks": 1, "z_channels": 8, "codebook_size": 16,
        "codebook_dim": 4}


def tiny(**changes):
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(**{**TINY, **changes})).eval()


@pytest.mark.parametrize(("changes", "f"), [
    ({"channel_mult": (1,)}, 1), ({}, 2), ({"channel_mult": (1, 1, 2, 2)}, 8), ({"patch": 2}, 4),
    ({"patch": 4, "channel_mult": (1, 2, 2)}, 16), ({"patch": 8, "channel_mult": (1,)}, 8),
    ({"patch": 4, "refine": 6}, 8), ({"refine": 6}, 2),
])
@pytest.mark.parametrize("side", [1, 3])
def test_shapes_follow_from_f(changes, f, side):
    model = tiny(**changes)
    assert model.config.downsampling == f
    images = torch.rand(2, 3, f * side, 2 * f * side) * 2 - 1
    indices = model.encode(images)
    assert indices.shape == (2, side, 2 * side)
    assert indices.dtype == torch.int64
    decoded = model.decode(indices)
    assert torch.equal(model.reconstruct(images), decoded)
    assert decoded.shape == images.shape
    assert -1 <= decoded.min() <= decoded.max() <= 1
    assert model(images)[0].shape == images.shape


def test_other_channels_in_and_out():
    model = tiny(in_channels=5, out_channels=7, patch=2)
    assert model.reconstruct(torch.randn(1, 5, 8, 8)).shape == (1, 7, 8, 8)


def test_the_last_layer_refines_at_full_resolution():
    """It sees pixels of different patches side by side, which a layer before the unfolding does not."""
    model, shapes = tiny(patch=4, refine=6), []
    model.decoder.conv_out.register_forward_hook(lambda layer, inputs, output: shapes.append(inputs[0].shape[1:]))
    codes = torch.randint(16, (1, 3, 5), generator=torch.Generator().manual_seed(0))
    assert model.decode(codes).shape == (1, 3, 24, 40)
    assert shapes == [(6, 24, 40)]
    assert model.decoder.conv_out.weight.shape == (3, 6, 3, 3)
    assert tiny(patch=4).decoder.conv_out.weight.shape == (3 * 16, 8, 3, 3)


def test_a_vqgan_of_classes_gives_logits():
    view = Classes("segmentation", [(0, 0, 0), (255, 0, 7), (1, 2, 3), (9, 9, 9), (5, 0, 5)])
    model = tiny(**view.record(), patch=2)
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(30)
    masks = torch.randint(5, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    x = view.network_input(masks)
    logits = model.reconstruct(x)
    assert logits.shape == (2, 5, 16, 16)
    assert logits.abs().max() > 2  # not cut off at 1, as pictures are
    torch.testing.assert_close(logits, model(x)[0], rtol=1e-4, atol=1e-4)
    assert view.rendered(logits).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"])
def test_the_decoder_sees_nothing_but_the_codes(quantizer):
    model = tiny(quantizer=quantizer)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        x_hat, quantized = model(images)
    assert torch.equal(model.encode(images), quantized.indices)
    torch.testing.assert_close(model.decode(quantized.indices), x_hat.clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert model.codebook.shape == (16, 4)


@pytest.mark.parametrize(("attention", "levels", "places"), [
    (False, (), set()),
    (True, (), {"encoder.middle", "decoder.middle"}),
    (True, (1,), {"encoder.middle", "decoder.middle", "encoder.levels.1", "decoder.levels.0"}),
    (False, (0,), {"encoder.levels.0", "decoder.levels.1"}),  # the decoder starts at the lowest resolution
])
def test_attention_only_where_asked(attention, levels, places):
    model = tiny(attention=attention, attention_levels=levels)
    found = [name for name, module in model.named_modules() if isinstance(module, Attention)]
    assert {name.rsplit(".attention", 1)[0] for name in found} == places


def test_the_decoder_has_one_block_more_a_level():
    model = tiny(res_blocks=2, channel_mult=(1, 2, 4))
    assert [len(level.blocks) for level in model.encoder.levels] == [2, 2, 2]
    assert [len(level.blocks) for level in model.decoder.levels] == [3, 3, 3]


def test_the_paper_s_network_has_its_size():
    """f=16, K=1024 on 256x256: as many weights as the reference's imagenet_vqgan.yaml, its loss left out."""
    with torch.device("meta"):
        model = VQGAN(VQGANConfig(attention_levels=(4,)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_699
    assert model.config.downsampling == 16


def test_straight_through_trains_the_encoder():
    model = tiny().train()
    x_hat, _ = model(torch.rand(2, 3, 8, 8))
    x_hat.square().mean().backward()
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.quantizer.codebook.grad is None


def test_patches_are_pixels_folded_into_channels():
    """Eight 3x3 convolutions on one level see 17x17 places: with patch 2 these are 34x34 pixels."""
    model = tiny(patch=2, channel_mult=(1,), attention=False)
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):  # a norm over the whole picture would tie all places together
            layer.forward = lambda x: x
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    model.latents(images)[0, :, 16, 16].sum().backward()
    touched = images.grad.abs().sum((0, 1)).nonzero()
    assert touched.min(0).values.tolist() == [16, 16]
    assert touched.max(0).values.tolist() == [49, 49]


@pytest.mark.parametrize("size", [(9, 8), (8, 9), (4, 4)])
def test_pictures_that_f_does_not_divide_are_refused(size):
    model = tiny(patch=4)
    with pytest.raises(TesseraeError, match="multiples of 8"):
        model.encode(torch.rand(1, 3, *size))


@pytest.mark.parametrize("index", [-1, 16])
def test_indices_outside_the_codebook_are_refused(index):
    with pytest.raises(TesseraeError, match="0 to 15"):
        tiny().decode(torch.full((1, 2, 2), index))


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"])
def test_what_is_no_picture_and_no_index_is_one_sentence(quantizer):
    model = tiny(quantizer=quantizer)
    for indices, word in ((torch.zeros(1, 2, 2), "type float32: whole numbers"), (torch.zeros(2, 2).long(), "shape"),
                          (torch.zeros(1, 2, 2, dtype=torch.bool), "type bool"),
                          (torch.zeros(1, 0, 0).long(), "shape"), (torch.full((1, 2, 2), 16), "0 to 15"),
                          (torch.full((1, 2, 2), -1), "0 to 15")):
        with pytest.raises(TesseraeError, match=word):
            model.decode(indices)
    for images, word in ((torch.zeros(3, 8, 8), "shape"), (torch.zeros(1, 3, 0, 0), "shape"),
                         (torch.zeros(1, 1, 8, 8), r"\(pictures, 3, height, width\)"),
                         (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "type uint8: floats are needed")):
        with pytest.raises(TesseraeError, match=word):
            model.encode(images)


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"])
def test_no_pictures_have_no_codes_and_the_other_way_round(quantizer):
    model = tiny(quantizer=quantizer)
    f = model.config.downsampling
    codes = model.encode(torch.zeros(0, 3, 4 * f, 2 * f))
    assert (codes.shape, codes.dtype) == ((0, 4, 2), torch.int64)
    assert model.decode(codes).shape == (0, 3, 4 * f, 2 * f)
    few = model.encode(torch.rand(1, 3, 8, 8) * 2 - 1)
    for dtype in (torch.int32, torch.int16, torch.uint8):  # as other programs keep them
        assert torch.equal(model.decode(few.to(dtype)), model.decode(few))


@pytest.mark.parametrize("quantizer", ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"])
def test_saved_and_loaded(tmp_path, quantizer):
    model = tiny(quantizer=quantizer, patch=2).train()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    model(images)  # ema starts its codes from these
    model.eval().save_pretrained(tmp_path / "model")
    names = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert names == ["config.json", "model.safetensors"]
    again = tesserae.VQGAN.from_pretrained(tmp_path / "model")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again.encode(images), model.encode(images))
    codes = model.encode(images)
    assert torch.equal(again.decode(codes), model.decode(codes))


def test_a_view_is_saved_with_its_network(tmp_path):
    view = Classes("layout", [(0, 128, 255), (255, 255, 255)])
    tiny(**view.record(), refine=2).save_pretrained(tmp_path)
    found = view_of(VQGAN.from_pretrained(tmp_path).config)
    assert (type(found), vars(found)) == (Classes, vars(view))


def test_folders_that_hold_no_vqgan(tmp_path):
    with pytest.raises(TesseraeError, match="holds no model"):
        VQGAN.from_pretrained(tmp_path / "none")
    model = tiny()
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    for damaged, word in (("{", "damaged"), (json.dumps({**values, "kind": "LatentTransformer"}), "VQGAN"),
                          (json.dumps({**values, "colour": 1}), "colour")):
        config.write_text(damaged)
        with pytest.raises(TesseraeError, match=word):
            VQGAN.from_pretrained(tmp_path)
    config.write_text(json.dumps(values | {"codebook_size": 32}))
    with pytest.raises(TesseraeError, match="another shape"):
        VQGAN.from_pretrained(tmp_path)
    config.write_text(json.dumps(values))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(TesseraeError, match="damaged"):
        VQGAN.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(TesseraeError, match="missing"):
        VQGAN.from_pretrained(tmp_path)


QUANTIZERS = ["nearest", "ema", "simvq", "fsq", "lfq", "gumbel"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_encoding_changes_nothing_and_is_the_same_in_any_mode(quantizer):
    model = tiny(quantizer=quantizer, dropout=0.5)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    codes, made = model.encode(images), model.decode(model.encode(images))
    model.train()
    model.decoder.eval()  # modes may differ; each comes back
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    assert torch.equal(model.encode(images), codes)
    assert torch.equal(model.decode(codes), made)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_another_precision_works_as_it_is(quantizer, dtype):
    model = tiny(quantizer=quantizer)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = model.decode(model.encode(images))
    model.to(dtype)
    codes = model.encode(images)  # float32 pictures
    assert torch.equal(codes, model.encode(images.to(dtype)))
    assert model.decode(codes).dtype == torch.float32
    x_hat, quantized = model(images)
    assert x_hat.dtype == dtype
    assert torch.isfinite(x_hat).all()
    assert torch.equal(quantized.indices, codes)
    if dtype == torch.float64:
        torch.testing.assert_close(model.decode(codes), expected, rtol=1e-4, atol=1e-4)


def test_fsq_models_of_older_versions_keep_their_levels(tmp_path):
    model = tiny(quantizer="fsq", codebook_size=256, levels=(8, 8, 4))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["levels"]
    path.write_text(json.dumps(values))
    old = VQGAN.from_pretrained(tmp_path)
    assert (old.config.levels, old.config.codebook_size) == ((8, 8, 4), 256)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(old.encode(images), model.encode(images))
    new = tiny(quantizer="fsq", codebook_size=256).config
    assert (new.levels, new.codebook_size, new.downsampling) == ((8, 6, 5), 240, model.config.downsampling)
