"""From Python: a trained transformer makes pictures of labels, layouts and parts of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

import tesserae
from tesserae import VQGAN, LatentTransformer, Sampler, TesseraeError
from tesserae.data.conditions import Codes, Label, record
from tesserae.data.external import read_condition
from tesserae.data.views import Classes
from tesserae.models.transformer import TransformerConfig
from tesserae.models.vqgan import VQGANConfig
from tesserae.sampling.autoregressive import SampleOptions
from tesserae.sampling.conditional import SampleRequest, sample_codes
from tesserae.sampling.tiling import TILE, decode_map, encode_map

PALETTE = [(230, 40, 40), (40, 200, 60), (40, 70, 230)]
SIDE, F, K, NAMES = 16, 4, 13, ["coast_day", "desert_night", "lake_dusk"]


def saved_vqgan(folder, **changes):
    torch.manual_seed(len(changes))
    values = {"channels": 8, "channel_mult": (1, 1, 1), "res_blocks": 1, "z_channels": 8, "codebook_size": K,
              "codebook_dim": 4, "attention": False}
    model = VQGAN(VQGANConfig(**values | changes)).eval()
    model.save_pretrained(folder)
    return VQGAN.from_pretrained(folder)


def saved_transformer(folder, conditions, vqgans, **origin):
    torch.manual_seed(0)
    vocab, length = (sum(getattr(each, name) for each in conditions) for name in ("vocab", "length"))
    model = LatentTransformer(TransformerConfig(
        codebook_size=K, prefix_vocab=vocab, prefix_length=length, max_tokens=(SIDE // F) ** 2, n_layer=1, n_head=2,
        n_embd=16, window=(SIDE // F,) * 2, conditions=tuple(map(record, conditions))))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.origin = {"vqgans": {name: vqgan.fingerprint for name, vqgan in vqgans.items()}} | origin
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    image = saved_vqgan(folder / "vqgan-image")
    layout = Classes("segmentation", PALETTE)
    segmentation = saved_vqgan(folder / "vqgan-segmentation", **layout.record())
    codes = Codes("segmentation", K, (SIDE // F,) * 2)
    saved_transformer(folder / "transformer-class", [Label(3)], {"image": image}, class_names=NAMES)
    saved_transformer(folder / "transformer-layout", [codes], {"image": image, "segmentation": segmentation})
    saved_transformer(folder / "transformer-both", [Label(3), codes], {"segmentation": segmentation, "image": image})
    saved_transformer(folder / "transformer-foreign", [Label(3)], {})
    return folder


@pytest.fixture(scope="module")
def sampler(models):
    return Sampler.from_pretrained(models / "transformer-class")


@pytest.fixture(scope="module")
def of_layouts(models):
    return Sampler.from_pretrained(models / "transformer-layout")


def layout(height=SIDE, width=SIDE):
    indices = np.random.default_rng(0).integers(0, 3, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1)
    return Image.fromarray(np.array(PALETTE, np.uint8)[indices])


def pixels(pictures):
    return np.stack([np.asarray(picture) for picture in pictures])


def test_a_label_is_a_name_or_its_number(sampler):
    pictures = sampler.sample(label="desert_night", n=3, seed=5)
    assert [(picture.mode, picture.size) for picture in pictures] == [("RGB", (SIDE, SIDE))] * 3
    assert (pixels(pictures) == pixels(sampler.sample(label=1, n=3, seed=5))).all()
    assert (pixels(pictures[:1]) == pixels(sampler.sample(label=1, seed=5))).all()
    for other in ({"label": 2, "seed": 5}, {"label": 1, "seed": 6}, {"label": 1, "seed": 5, "temperature": 3.0}):
        assert (pixels(pictures) != pixels(sampler.sample(n=3, **other))).any()


def test_pictures_are_the_decoded_codes(models, sampler):
    transformer = LatentTransformer.from_pretrained(models / "transformer-class")
    vqgan = VQGAN.from_pretrained(models / "vqgan-image")
    codes = sample_codes(transformer, SampleRequest(2, torch.tensor([1, 1])), (4, 4), SampleOptions(0.9, 7, 0.95, 3))
    expected = decode_map(vqgan, codes).add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()
    found = sampler.sample(label=1, n=2, seed=3, temperature=0.9, top_k=7, top_p=0.95)
    assert (pixels(found) == expected).all()


@pytest.mark.parametrize("size", [(16, 24), (32, 20), None])
def test_a_layout_of_any_size_is_the_condition(of_layouts, tmp_path, size):
    height, width = size or (SIDE, SIDE)
    layout(height, width).save(tmp_path / "layout.png")
    pictures = of_layouts.sample(condition=tmp_path / "layout.png", size=size, n=2)
    assert pictures[0].size == (width, height)
    assert (pixels(pictures) == pixels(of_layouts.sample(condition=layout(height, width), size=size, n=2))).all()
    assert (pixels(pictures) == pixels(of_layouts.sample(condition={"segmentation": layout(height, width)}, size=size,
                                                         n=2))).all()
    flipped = layout(height, width).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert (pixels(pictures) != pixels(of_layouts.sample(condition=flipped, size=size, n=2))).any()


def test_the_vqgan_that_is_modelled_is_the_one_that_is_no_condition(models):
    both = Sampler.from_pretrained(models / "transformer-both")
    assert both.vqgan.config.view == "image"
    assert both.sample(label=0, condition=layout())[0].size == (SIDE, SIDE)


def test_a_part_of_a_picture_is_kept(sampler):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:9] = True  # of the third row of codes only a part
    found = sampler.complete(picture, mask, label=0, n=2, seed=1)
    vqgan = sampler.vqgan
    codes = encode_map(vqgan, torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1)
    free = sampler.sample(label=0, n=2, seed=1)
    kept = torch.zeros(2, 4, 4, dtype=torch.bool)
    kept[:, :2] = True
    expected = sample_codes(sampler.transformer, SampleRequest(2, torch.zeros(2, dtype=torch.int64)), (4, 4),
                            SampleOptions(seed=1), (kept, codes.expand(2, 4, 4)))
    expected = decode_map(vqgan, expected).add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()
    assert (pixels(found) == expected).all()
    assert (pixels(found) != pixels(free)).any()
    assert (pixels(found) == pixels(sampler.complete(picture, Image.fromarray(mask), label=0, n=2, seed=1))).all()


def test_models_that_do_not_belong_together_are_refused(models, tmp_path):
    with pytest.raises(TesseraeError, match="holds no model"):
        Sampler.from_pretrained(tmp_path)
    with pytest.raises(TesseraeError, match=r"does not say which VQGAN.*Sampler\(transformer, vqgan\)"):
        Sampler.from_pretrained(models / "transformer-foreign")
    transformer = LatentTransformer.from_pretrained(models / "transformer-layout")
    vqgan = VQGAN.from_pretrained(models / "vqgan-image")
    with pytest.raises(TesseraeError, match="the condition segmentation has no VQGAN"):
        Sampler(transformer, vqgan)
    for name in ("transformer-class", "vqgan-image"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "vqgan-image").unlink()
    saved_vqgan(tmp_path / "vqgan-image", channels=4)
    with pytest.raises(TesseraeError, match="trained on codes of another VQGAN than models/vqgan-image"):
        Sampler.from_pretrained(tmp_path / "transformer-class")


def test_a_transformer_from_elsewhere_is_joined_by_hand(models):
    foreign = Sampler(LatentTransformer.from_pretrained(models / "transformer-foreign"),
                      VQGAN.from_pretrained(models / "vqgan-image"))
    assert foreign.sample(label=2)[0].size == (SIDE, SIDE)
    with pytest.raises(TesseraeError, match=r"label = 'zoo' is no class; take a number from 0 to 2\.$"):
        foreign.sample(label="zoo")


@pytest.mark.parametrize(("call", "words"), [
    ({}, "label = None is no class; take one of coast_day, desert_night, lake_dusk, or a number from 0 to 2"),
    ({"label": "coast"}, "label = 'coast' is no class"),
    ({"label": 3}, "label = 3 is no class"),
    ({"label": 0, "size": (16, 18)}, r"size = \(16, 18\) is not allowed; each side must be a multiple of 4 pixels"),
    ({"label": 0, "size": (16, 12)}, "4x3 codes is smaller than the window"),
    ({"label": 0, "condition": layout()}, "no pictures as conditions"),
    ({"label": 0, "temperature": -1.0}, "temperature"),
    ({"label": 0, "n": 0}, "n = 0 is not allowed; it must be at least 1"),
])
def test_what_does_not_fit_is_named(sampler, call, words):
    with pytest.raises(TesseraeError, match=words):
        sampler.sample(**call)


@pytest.mark.parametrize(("call", "words"), [
    ({}, "needs a picture for each of its conditions, segmentation: give it as condition"),
    ({"condition": {"depth": layout()}}, "needs a picture for each of its conditions, segmentation"),
    ({"condition": layout(), "label": 1}, "label = 1 is not needed; this transformer has no classes"),
    ({"condition": "nowhere.png"}, "nowhere.png does not exist"),
])
def test_what_a_layout_needs_is_named(of_layouts, call, words):
    with pytest.raises(TesseraeError, match=words):
        of_layouts.sample(**call)


def test_masks_have_the_pictures_size(sampler):
    with pytest.raises(TesseraeError, match=r"the mask has the shape \(4, 4\); \(height, width\) = \(16, 16\)"):
        sampler.complete(layout(), np.ones((4, 4), bool), label=0)


def test_it_is_there_by_its_name():
    assert tesserae.Sampler is Sampler


def test_each_picture_may_have_its_own_label(sampler):
    apart = sampler.sample(label=["coast_day", 2], n=2, seed=4)
    codes = sampler.sample_codes(sampler.request(torch.tensor([0, 2]), n=2), options=SampleOptions(seed=4))
    assert codes.shape == (2, SIDE // F, SIDE // F)
    assert (pixels(apart) == sampler.decode(codes).add(1).mul(127.5).round().permute(0, 2, 3, 1).numpy()).all()
    with pytest.raises(TesseraeError, match="2 labels are given for 3 pictures: give one, or one for each"):
        sampler.sample(label=[0, 1], n=3)


def test_a_condition_may_be_a_tensor(of_layouts, tmp_path):
    picture = layout(32, 16)
    picture.save(tmp_path / "layout.png")
    view = of_layouts.condition_views["segmentation"]
    raw = read_condition(tmp_path / "layout.png", view, (32, 16))
    found = of_layouts.sample(condition={"segmentation": raw}, size=(32, 16))
    assert (pixels(found) == pixels(of_layouts.sample(condition=picture, size=(32, 16)))).all()
    shown = of_layouts.condition_pictures({"segmentation": raw})["segmentation"]
    assert (shown[0].add(1).mul(127.5).round().permute(1, 2, 0).numpy() == np.asarray(picture)).all()


def test_pictures_larger_than_the_window_are_completed(sampler):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (2 * SIDE, 2 * SIDE, 3), dtype=np.uint8))
    mask = np.ones((2 * SIDE, 2 * SIDE), bool)
    (whole,) = sampler.complete(picture, mask, label=0, size=mask.shape)
    codes = encode_map(sampler.vqgan, torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1)
    assert (np.asarray(whole) == sampler.decode(codes)[0].add(1).mul(127.5).round().permute(1, 2, 0).numpy()).all()


def test_large_maps_are_decoded_in_tiles(sampler):
    codes = torch.randint(K, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    whole = sampler.decode(codes)
    sampler.tile = 8
    try:
        tiled = sampler.decode(codes)
    finally:
        sampler.tile = TILE
    assert torch.equal(tiled, decode_map(sampler.vqgan, codes, 8))
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
