"""Things that were not made of each other are refused by whoever opens them, in one sentence with what heals it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from tesserae import load_params, playground, tracking
from tesserae.data.codes import CodeMaps
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import Pictures
from tesserae.data.sources import write_made
from tesserae.data.splitting import SPLIT
from tesserae.data.views import make_view
from tesserae.devices import make_accelerator
from tesserae.encoding import encode_set
from tesserae.errors import TesseraeError
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN
from tesserae.origins import check_sampling, origin_of
from tesserae.stage import Stage
from tesserae.training import vqgan as training_vqgan
from tesserae.training.transformer import model_config, train_transformer
from tests.notebooks.tiny_project import make_project

SMALL = {"channels": 8, "channel_mult": [1, 2], "patch": 4, "z_channels": 8, "codebook_size": 16, "codebook_dim": 4,
         "disc_layers": 2}
SHORT = {"n_layer": 1, "n_head": 2, "n_embd": 16, "steps": 2, "batch_size": 4, "warmup": 0, "log_every": 1,
         "sample_every": 2, "eval_every": 2, "eval_images": 4, "checkpoint_every": 2}


def edited(root, path, value):
    """Change a key of params.yaml, or a whole block by some of its keys."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load((root / "params.yaml").read_text())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = inner[path[-1]] | value if isinstance(value, dict) else value
    with (root / "params.yaml").open("w") as file:
        yaml.dump(values, file)


def make_vqgan(root, seed):
    """One that belongs to the parameters and the prepared pictures."""
    block = load_params(root / "params.yaml").vqgan["image"]
    splits = [Pictures.load(root / "prepared", split) for split in SPLIT]
    torch.manual_seed(seed)
    model = VQGAN(training_vqgan.model_config(block, make_view(block.view, block.column, *splits)))
    torch.nn.init.normal_(model.quantizer.codebook)
    model.origin = {"pictures": splits[0].fingerprint}
    model.save_pretrained(root / "models/vqgan-image")


def encode(root):
    with Stage.open("codebook", "image") as stage:
        model = VQGAN.from_pretrained(root / "models/vqgan-image")
        pictures = {split: Pictures.load(root / "prepared", split) for split in SPLIT}
        encode_set(stage, model, pictures, make_accelerator("fp32", 1))


def make_transformer(root):
    block = load_params(root / "params.yaml").transformer["class"]
    train = PairedMaps.load(root / "codes", "train", block)
    model = LatentTransformer(model_config(block, train))
    model.origin = origin_of(train, block.vqgan)
    model.save_pretrained(root / "models/transformer-class")


def sampled(root):
    """What 05_sample and 06_sample_highres open, checked as they do."""
    block = load_params(root / "params.yaml").transformer["class"]
    maps = {split: PairedMaps.load(root / "codes", split, block) for split in SPLIT}
    pictures = {split: Pictures.load(root / "prepared", split) for split in SPLIT}
    model = LatentTransformer.from_pretrained(root / "models/transformer-class")
    vqgans = {"image": VQGAN.from_pretrained(root / "models/vqgan-image")}
    check_sampling("class", model, model_config(block, maps["train"]), vqgans, maps, pictures)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project in which all belongs together: pictures, a VQGAN, its code maps, a transformer of these."""
    make_project(tmp_path, transformer=False)
    edited(tmp_path, ("vqgan", "image"), SMALL)
    edited(tmp_path, ("transformer", "class"), SHORT)
    write_made(tmp_path / "prepared", load_params(tmp_path / "params.yaml").prepare, 0, scenes=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking.RUN_VARIABLE, "")
    make_vqgan(tmp_path, 0)
    encode(tmp_path)
    make_transformer(tmp_path)
    return tmp_path


def test_what_belongs_together_opens(root):
    encode(root)
    sampled(root)
    with Stage.open("transformer", "class") as stage:
        train_transformer(stage, log=lambda text: None)
    sampled(root)
    assert playground.load_models("class").absent == ""


def test_code_maps_of_another_vqgan(root):
    make_vqgan(root, 1)
    words = r"^codes/image was made by another VQGAN than models/vqgan-image: run dvc repro codebook@image\.$"
    with pytest.raises(TesseraeError, match=words):
        sampled(root)
    with pytest.raises(TesseraeError, match=words), Stage.open("transformer", "class") as stage:
        train_transformer(stage)
    with pytest.raises(TesseraeError, match=r"codes of another VQGAN than models/vqgan-image: run dvc repro "
                                            r"transformer@class\.$"):
        playground.load_models("class")
    encode(root)
    with pytest.raises(TesseraeError, match=r"^models/transformer-class was trained on other codes than codes/image "
                                            r"holds: run dvc repro transformer@class\.$"):
        sampled(root)
    make_transformer(root)
    sampled(root)


def test_other_pictures(root):
    pictures = Pictures.load(root / "prepared", "train")
    _swap_classes(root / "prepared")
    assert Pictures.load(root / "prepared", "train").fingerprint != pictures.fingerprint
    with pytest.raises(TesseraeError, match=r"^models/vqgan-image was trained on other pictures than prepared/ "
                                            r"holds: run dvc repro vqgan@image\.$"):
        encode(root)
    with pytest.raises(TesseraeError, match=r"^codes/image was made of other pictures than prepared/ holds: run dvc "
                                            r"repro codebook@image\.$"):
        sampled(root)
    with pytest.raises(TesseraeError, match=r"other classes than prepared/ has: run dvc repro transformer@class\.$"):
        playground.load_models("class")


def _swap_classes(prepared):
    """The same pictures, the two classes called otherwise."""
    for split in SPLIT:
        path = prepared / split / "dataset_info.json"
        values = json.loads(path.read_text())
        values["features"]["label"]["names"] = ["night", "day"]
        path.write_text(json.dumps(values))


@pytest.mark.parametrize(("path", "value", "words"), [
    (("prepare", "image_size"), 64, r"^prepared/ was made with prepare.image_size = 32, and the parameters have 64: "
                                    r"run dvc repro prepare\.$"),
    (("prepare", "source"), "mine", "prepare.source = 'data', and the parameters have 'mine'"),
    (("prepare", "holdout"), 0.2, r"prepare.holdout = 0\.1, and the parameters have 0\.2"),
])
def test_a_set_prepared_with_other_parameters(root, path, value, words):
    edited(root, path, value)
    for kind, target in (("vqgan", "image"), ("codebook", "image"), ("transformer", "class"), ("sample", "class")):
        with pytest.raises(TesseraeError, match=words):
            Stage.open(kind, target)
    with pytest.raises(TesseraeError, match=words):
        playground.load_models("class")
    with Stage.open("prepare"):  # which makes it anew
        pass


def test_what_does_not_change_the_set_may_differ(root):
    edited(root, ("prepare", "max_rejected"), 0.5)
    edited(root, ("seed",), 3)  # of a training alone, in comparisons over seeds
    sampled(root)
    with Stage.open("vqgan", "image"):
        pass


def test_parameters_of_another_network(root):
    edited(root, ("vqgan", "image"), {"codebook_size": 32})
    with pytest.raises(TesseraeError, match=r"^models/vqgan-image has codebook_size = 16, and vqgan.image of the "
                                            r"parameters asks for 32: run dvc repro vqgan@image\.$"):
        encode(root)
    edited(root, ("vqgan", "image"), {"codebook_size": 16})
    edited(root, ("transformer", "class"), {"condition": []})
    with pytest.raises(TesseraeError, match=r"^models/transformer-class has \w+ = .*, and transformer.class of the "
                                            r"parameters asks for .*: run dvc repro transformer@class\.$"):
        sampled(root)


def test_models_and_codes_without_origins_are_as_they_are(root):
    """Of older versions, of the reference, or copied from elsewhere."""
    for name in ("vqgan-image", "transformer-class"):
        path = root / "models" / name / "model.safetensors"
        save_file(load_file(path), path)  # without metadata, as it was
    for split in SPLIT:
        path = root / "codes/image" / f"{split}.safetensors"
        maps = CodeMaps.load(root / "codes/image", split)
        about = {"class_names": maps.class_names, "codebook_size": maps.codebook_size, "vqgan": "0" * 32}
        save_file({"indices": maps.indices, "labels": maps.labels}, path, {"tesserae": json.dumps(about)})
    sampled(root)
    edited(root, ("vqgan", "image"), {"z_channels": 16})
    encode(root)
    assert playground.load_models("class").absent == ""


def test_commands_end_in_the_sentence_alone(root):
    make_vqgan(root, 1)
    edited(root, ("codebook", "image"), {"batch_size": 4})
    for module, arguments, words in (
        ("training.transformer", ["--target", "class"], "codes/image was made by another VQGAN"),
        ("training.vqgan", ["--target", "nothing"], "vqgan.nothing is not in params.yaml: add it, or take one of"),
        ("encoding", ["--params", "nowhere.yaml"], "nowhere.yaml does not exist"),
        ("pipeline", ["notebooks/05_sample.ipynb", "--target", "none"], "sample.none is not in params.yaml"),
    ):
        (root / "notebooks").mkdir(exist_ok=True)
        (root / "notebooks/05_sample.ipynb").touch()
        done = subprocess.run([sys.executable, "-m", f"tesserae.{module}", *arguments], cwd=root, text=True,
                              env={**os.environ, tracking.RUN_VARIABLE: ""}, capture_output=True, check=False)
        assert done.returncode == 1, module
        (line,) = done.stderr.strip().splitlines()
        assert words in line
