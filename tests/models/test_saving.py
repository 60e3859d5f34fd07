"""Models on disk: flipped bytes are noticed, and older files load as they did."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tesserae.errors import TesseraeError
from tesserae.models.saving import fingerprint_of
from tesserae.models.transformer import LatentTransformer, TransformerConfig
from tesserae.models.vqgan import VQGAN, VQGANConfig


def vqgan(**changes):
    return VQGAN(VQGANConfig(**{"channels": 8, "channel_mult": (1, 1), "res_blocks": 1, "z_channels": 8,
                                "codebook_size": 16, "codebook_dim": 4} | changes)).eval()


def transformer():
    return LatentTransformer(TransformerConfig(codebook_size=16, max_tokens=4, n_layer=1, n_head=2, n_embd=16)).eval()


@pytest.mark.parametrize(("make", "name"), [(vqgan, "vqgan-image"), (transformer, "transformer-class")])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_a_flipped_byte_is_noticed_and_its_sentence_does_not_ask_for_a_training(tmp_path, make, name, place):
    folder = tmp_path / "models" / name
    model = make()
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(TesseraeError) as caught:
        type(model).from_pretrained(folder)
    assert f"{path} is damaged" in str(caught.value)
    assert f"dvc checkout models/{name}, or dvc repro" in str(caught.value)
    assert "train again" not in str(caught.value)


def test_elsewhere_it_is_to_be_copied_again(tmp_path):
    vqgan().save_pretrained(tmp_path / "mine")
    path = tmp_path / "mine/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(TesseraeError, match="copy the model here again"):
        VQGAN.from_pretrained(tmp_path / "mine")


def test_a_file_of_an_older_version_loads_unchecked(tmp_path):
    model = vqgan()
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    again = VQGAN.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(again.encode(images), model.encode(images))
    assert again.origin == {}
    assert len(again.fingerprint) == 32


def test_a_copy_keeps_fingerprint_and_origin(tmp_path):
    model = vqgan()
    model.origin = {"pictures": "f00"}
    model.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = VQGAN.from_pretrained(tmp_path / "b")
    assert copied.origin == {"pictures": "f00"}
    assert copied.fingerprint == VQGAN.from_pretrained(tmp_path / "a").fingerprint == fingerprint_of(tmp_path / "b")
    copied.save_pretrained(tmp_path / "c")
    assert (tmp_path / "c/model.safetensors").read_bytes() == (tmp_path / "a/model.safetensors").read_bytes()


def test_the_fingerprint_follows_weights_and_config(tmp_path):
    torch.manual_seed(0)
    model = vqgan()
    found = set()
    for change in ("none", "weight", "config"):
        if change == "weight":
            model.encoder.conv_in.bias.data[0] += 1e-3
        if change == "config":
            model.config = vqgan(column="other").config
        model.save_pretrained(tmp_path / change)
        found.add(fingerprint_of(tmp_path / change))
    assert len(found) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_have_checksums_too(tmp_path, dtype):
    model = vqgan().to(dtype)
    model.save_pretrained(tmp_path)
    assert VQGAN.from_pretrained(tmp_path).fingerprint
