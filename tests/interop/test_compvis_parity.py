"""The reference's checkpoints: its own modules and ours, on the same weights, index for index and pixel for pixel."""

import copy

import pytest
import torch
from tests.interop import reference
from torch import nn

from tesserae.data.views import view_of
from tesserae.interop.compvis import load_transformer, load_vqgan
from tesserae.models.vqgan import VQGAN
from tesserae.sampling.orderings import ordering, to_sequences

torch.set_num_threads(1)

CLASSES = 7
NETWORK = {"double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
           "ch_mult": [1, 2, 2], "num_res_blocks": 2, "attn_resolutions": [16, 8], "dropout": 0.0}
NO_LOSS = {"target": "torch.nn.Identity"}
MASKS = {"in_channels": CLASSES, "out_ch": CLASSES}


def vq_config(kind="VQModel", network=None, **params):
    return {"model": {"target": f"taming.models.vqgan.{kind}", "params": {
        "embed_dim": 8, "n_embed": 24, "ddconfig": {**NETWORK, **(network or {})}, "lossconfig": NO_LOSS, **params}}}


def spread_codes(theirs, inputs):
    """Put the codes among the encoder's outputs, so that many of them are chosen."""
    with torch.no_grad():
        z_hat = theirs.quant_conv(theirs.encoder(inputs))
        vectors = z_hat.movedim(1, -1).reshape(-1, z_hat.shape[1])
        weight = theirs.quantize.embedding.weight
        weight.copy_(vectors[torch.linspace(0, len(vectors) - 1, len(weight)).long()] + 0.01)
    return z_hat


def pictures(count=2, channels=3, side=32):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def masks(count=2, side=32):
    blocks = torch.randint(CLASSES, (count, side // 4, side // 4), generator=torch.Generator().manual_seed(2))
    index = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return nn.functional.one_hot(index, CLASSES).movedim(-1, 1).float()


def agree(theirs, ours, inputs):
    """Latents, indices and reconstructions of both, in double precision; returns their reconstructions."""
    theirs, ours, inputs = theirs.double(), ours.double(), inputs.double()
    z_hat = spread_codes(theirs, inputs)
    with torch.no_grad():
        ours.quantizer.codebook.copy_(theirs.quantize.embedding.weight)
        z_q, _, (_, _, indices) = theirs.encode(inputs)
        made = theirs.decode(z_q)
        torch.testing.assert_close(ours.latents(inputs), z_hat, atol=1e-9, rtol=1e-9)
        assert torch.equal(ours.encode(inputs).flatten(), indices.flatten())
        assert len(indices.unique()) > 10
        torch.testing.assert_close(ours(inputs)[0], made, atol=1e-9, rtol=1e-9)
    return made


@pytest.mark.parametrize("network", [
    {}, {"attn_resolutions": []}, {"ch_mult": [1, 1, 2, 4], "attn_resolutions": [4], "num_res_blocks": 1},
    {"in_channels": 1, "out_ch": 1, "resolution": 64},
])
def test_vqmodel(network):
    given = vq_config(network=network)
    theirs = reference.made(given)
    ours, images = load_vqgan(given, theirs.state_dict()), pictures(channels=network.get("in_channels", 3))
    made = agree(theirs, ours, images)
    decoded = ours.decode(ours.encode(images.double()))
    torch.testing.assert_close(decoded, made.clamp(-1, 1).float(), atol=1e-6, rtol=1e-6)


def test_vqmodel_in_its_own_precision():
    given, images = vq_config(), pictures(4)
    theirs = reference.made(given)
    spread_codes(theirs, images)
    ours = load_vqgan(given, theirs.state_dict())
    with torch.no_grad():
        z_q, _, (_, _, indices) = theirs.encode(images)
        assert torch.equal(ours.encode(images).flatten(), indices)
        torch.testing.assert_close(ours(images)[0], theirs.decode(z_q), atol=1e-4, rtol=1e-4)


def test_a_model_of_masks_gives_logits(tmp_path):
    given = vq_config("VQSegmentationModel", MASKS, n_labels=CLASSES, image_key="segmentation")
    theirs = reference.made(given)
    with torch.no_grad():
        theirs.decoder.conv_out.weight.mul_(20)
    ours, inputs = load_vqgan(given, theirs.state_dict()), masks()
    logits = agree(theirs, ours, inputs)
    assert logits.abs().max() > 5
    ours = ours.float()
    decoded = ours.decode(ours.encode(inputs))
    assert decoded.shape == inputs.shape
    torch.testing.assert_close(decoded, logits.float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(decoded.argmax(1), logits.argmax(1))
    bce = nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(bce(decoded, inputs), bce(logits.float(), inputs), atol=1e-4, rtol=1e-4)
    ours.save_pretrained(tmp_path)
    assert torch.equal(VQGAN.from_pretrained(tmp_path).decode(ours.encode(inputs)), decoded)


def test_masks_are_read_and_shown_as_those_of_own_models():
    given = vq_config("VQSegmentationModel", MASKS, n_labels=CLASSES, image_key="segmentation")
    theirs = reference.made(given)
    ours, inputs = load_vqgan(given, theirs.state_dict()), masks()
    view = view_of(ours.config)
    assert (view.kind, view.channels, ours.config.column) == ("segmentation", CLASSES, "segmentation")
    assert torch.equal(view.network_input(inputs.argmax(1, keepdim=True).to(torch.uint8)), inputs)
    assert len(set(view.colours)) == CLASSES
    with torch.no_grad():  # the reference's own colours, up to its scale
        shown = (theirs.to_rgb(inputs) + 1).movedim(1, -1).flatten(0, -2)
    rendered = (view.rendered(inputs) + 1).movedim(1, -1).flatten(0, -2)
    slope = rendered.std() / shown.std()
    torch.testing.assert_close(rendered - rendered.mean(), slope * (shown - shown.mean()), atol=0.02, rtol=0)


@pytest.mark.parametrize(("kind", "network", "params", "view"), [
    ("VQModel", MASKS, {"image_key": "segmentation"}, "segmentation"),
    ("VQModel", MASKS, {"lossconfig": {"target": "taming.modules.losses.segmentation.BCELossWithQuant"}},
     "segmentation"),
    ("VQModel", {"in_channels": 1, "out_ch": 1}, {"image_key": "depth"}, "depth"),
    ("VQModel", {"in_channels": 1, "out_ch": 1}, {}, "depth"),
    ("VQModel", {}, {"image_key": "segmentation"}, "image"),  # masks as RGB pictures
    ("VQNoDiscModel", {}, {}, "image"),
])
def test_what_a_model_reads_follows_from_its_config(kind, network, params, view):
    given = vq_config(kind, network, **params)
    assert load_vqgan(given, reference.made(given).state_dict()).config.view == view


def test_gumbel_codes_are_the_largest_logits():
    schedule = {"target": "torch.nn.Identity"}
    given = vq_config("GumbelVQ", {"z_channels": 8}, temperature_scheduler_config=schedule)
    theirs = reference.made(given)
    with torch.no_grad():
        theirs.quantize.proj.weight.mul_(4)
    ours, images = load_vqgan(given, theirs.state_dict()), pictures()
    with torch.no_grad():  # its forward pass draws noise, also in evaluation mode
        *_, logits = theirs.quantize(theirs.encode_to_prequant(images), return_logits=True)
        indices = logits.argmax(1)
        assert torch.equal(ours.encode(images), indices)
        assert len(indices.unique()) > 5
        z_q = theirs.quantize.get_codebook_entry(indices.flatten(), (*indices.shape, 8))
        assert torch.equal(ours.quantizer.lookup(indices), z_q)
        torch.testing.assert_close(ours.decode_latents(z_q), theirs.decode(z_q), atol=1e-4, rtol=1e-4)


def test_no_attention_where_the_config_has_none(monkeypatch):
    """latent-diffusion's `attn_type: none` puts the identity where the reference has attention."""
    monkeypatch.setattr(reference.model, "AttnBlock", nn.Identity)
    given = vq_config(network={"attn_resolutions": [8]})
    theirs = reference.made(given)
    given["model"]["target"] = "ldm.models.autoencoder.VQModelInterface"
    given["model"]["params"]["ddconfig"]["attn_type"] = "none"
    ours = load_vqgan(given, theirs.state_dict())
    assert not any("attention" in name for name, _ in ours.named_parameters())
    agree(theirs, ours, pictures())


def test_the_reference_has_attention_whatever_attn_type_says():
    given = vq_config(network={"attn_type": "none"})
    theirs = reference.made(given)
    agree(theirs, load_vqgan(given, theirs.state_dict()), pictures())


def test_codes_that_are_moving_averages_go_on_as_such():
    """EMAVQ: its own quantizer names variables that do not exist, so its averages are updated step by step here."""
    given, images = vq_config(), pictures()
    theirs = reference.made(given)
    spread_codes(theirs, images)
    average = reference.quantize.EmbeddingEMA(24, 8)
    average.weight.data.copy_(theirs.quantize.embedding.weight)
    average.cluster_size.data.uniform_(1, 3)
    average.embed_avg.data.copy_(average.weight * average.cluster_size[:, None])
    theirs.quantize.embedding = average
    given["model"]["target"] = "taming.models.vqgan.EMAVQ"
    ours = load_vqgan(given, theirs.state_dict())
    assert ours.config.quantizer == "ema"
    with torch.no_grad():
        z_hat = ours.latents(images)
        z_q, _, (_, _, indices) = theirs.quantize(z_hat)
        assert torch.equal(ours.encode(images).flatten(), indices)
        torch.testing.assert_close(ours(images)[1].z_q, z_q, atol=1e-6, rtol=1e-6)
        chosen = nn.functional.one_hot(indices, 24).float()
        average.cluster_size_ema_update(chosen.sum(0))
        average.embed_avg_ema_update(chosen.t() @ z_hat.movedim(1, -1).reshape(-1, 8))
        average.weight_update(24)
        ours.quantizer.update(ours.quantizer.statistics(z_hat, indices))
    torch.testing.assert_close(ours.codebook, average.weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("condition", ["Subsample", "ZCurve", "SpiralOut", "SpiralIn", "AlternateParsing"])
@pytest.mark.parametrize("side", [2, 4, 16])
def test_permuters_are_orders(condition, side):
    theirs = getattr(reference.permuter, condition)(side, side)
    order = {"Subsample": "subsample", "ZCurve": "z_curve", "SpiralOut": "spiral_out", "SpiralIn": "spiral_in",
             "AlternateParsing": "alternate"}[condition]
    assert torch.equal(theirs.forward_shuffle_idx, ordering(order, side, side))
    maps = torch.arange(side * side).view(1, side, side)
    assert torch.equal(theirs(maps.flatten(1)), to_sequences(maps, order))


FIRST = vq_config(sane_index_shape=True)["model"]  # 8x8 codes
LABELATOR = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 10}}
COORDINATES = {"target": "taming.modules.misc.coord.CoordStage", "params": {"n_embed": 20, "down_factor": 4}}
LAYOUT = vq_config("VQSegmentationModel", MASKS, n_labels=CLASSES, sane_index_shape=True)["model"]
NOTHING = "__is_unconditional__"
SOS = {"target": "taming.modules.util.SOSProvider", "params": {"sos_token": 6}}
DUMMY = {"target": "taming.models.dummy_cond_stage.DummyCondStage", "params": {"conditional_key": "objects_bbox"}}


def net2net(condition, length, permuter="Identity", unmasked=0, **params):
    sizes = {"vocab_size": 24, "block_size": length + 64, "n_layer": 2, "n_head": 4, "n_embd": 32}
    shape = {} if permuter == "Identity" else {"H": 8, "W": 8}
    return {"model": {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT",
                               "params": {**sizes, "n_unmasked": unmasked}},
        "first_stage_config": FIRST, "cond_stage_config": condition,
        "permuter_config": {"target": f"taming.modules.transformer.permuter.{permuter}", "params": shape}, **params}}}


def whole(given):
    """A model of the reference with both its stages; its codes lie among what they encode."""
    theirs = reference.made(given)
    spread_codes(theirs.first_stage_model, pictures())
    if hasattr(theirs.cond_stage_model, "quantize") and theirs.cond_stage_model is not theirs.first_stage_model:
        spread_codes(theirs.cond_stage_model, masks())
    return theirs


@pytest.mark.parametrize(("condition", "length", "given", "options"), [
    (LABELATOR, 1, torch.tensor([3, 9]), {}),
    (LABELATOR, 1, torch.tensor([3, 9]), {"permuter": "Subsample"}),
    (LABELATOR, 1, torch.tensor([3, 9]), {"permuter": "SpiralOut"}),
    (LABELATOR, 1, torch.tensor([3, 9]), {"permuter": "SpiralIn"}),
    (LABELATOR, 1, torch.tensor([3, 9]), {"permuter": "ZCurve"}),
    (LABELATOR, 1, torch.tensor([3, 9]), {"permuter": "AlternateParsing"}),
    (NOTHING, 1, pictures(), {"sos_token": 5}),
    (SOS, 1, pictures(), {}),
    (LABELATOR, 1, pictures(), {"unconditional": True}),
    (COORDINATES, 64, torch.linspace(0, 1, 2048).view(2, 1, 32, 32), {}),
    (LAYOUT, 64, masks(), {}),
    (LAYOUT, 64, masks(), {"unmasked": 64}),
    ("__is_first_stage__", 64, pictures(), {"unmasked": 64, "permuter": "ZCurve"}),
    ("__is_first_stage__", 16, pictures(), {"downsample_cond_size": 16}),
    (DUMMY, 5, torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]), {"unmasked": 5}),
])
def test_net2net_transformer(condition, length, given, options):
    """Both stages and the transformer out of one checkpoint: the logits of whole maps."""
    settings = net2net(copy.deepcopy(condition), length, **options)
    theirs = whole(settings)
    state = theirs.state_dict()
    vqgan, transformer = load_vqgan(settings, state), load_transformer(settings, state)
    images = pictures()
    with torch.no_grad():
        expected, targets = theirs(images, given)
        _, tokens = theirs.encode_to_c(given)
    codes = to_sequences(vqgan.encode(images), transformer.config.order)
    assert torch.equal(codes, targets)
    assert len(codes.unique()) > 10
    unconditional = condition in (NOTHING, SOS) or "unconditional" in options
    prefix = torch.zeros_like(tokens) if unconditional else tokens
    if condition is LAYOUT:
        prefix = load_vqgan(settings, state, stage="cond").encode(given).flatten(1)
        assert torch.equal(prefix, tokens)
    assert transformer.config.prefix_length == length
    assert transformer.config.prefix_attention == ("full" if options.get("unmasked") else "causal")
    with torch.no_grad():
        torch.testing.assert_close(transformer(prefix, codes), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("unmasked", [0, 1, 6])
def test_gpt(unmasked):
    """The last of six tokens in front, and the five before it, with and without a mask among them."""
    given = net2net(DUMMY, 6, unmasked=unmasked)
    theirs = reference.shaken(reference.mingpt.GPT(**given["model"]["params"]["transformer_config"]["params"]))
    ours = load_transformer(given, {f"transformer.{key}": value for key, value in theirs.state_dict().items()})
    generator = torch.Generator().manual_seed(3)
    prefix, codes = (torch.randint(24, (2, count), generator=generator) for count in (6, 64))
    with torch.no_grad():
        expected = theirs(torch.cat([prefix, codes[:, :-1]], dim=1))[0][:, 5:]
        torch.testing.assert_close(ours(prefix, codes), expected, atol=1e-5, rtol=1e-5)
