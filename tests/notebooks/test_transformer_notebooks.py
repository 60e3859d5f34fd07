"""Notebooks 04 and 05, run as the pipeline runs them, on a tiny set: what they write, and what is in it."""

import hashlib
import io
import json
import shutil

import datasets
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae import tracking
from tesserae.data.batches import to_unit
from tesserae.data.codes import CodeMaps, save_codes
from tesserae.data.paired import PairedMaps
from tesserae.data.pictures import Pictures
from tesserae.models.transformer import LatentTransformer
from tesserae.models.vqgan import VQGAN, VQGANConfig
from tesserae.params import load_params
from tesserae.pipeline.runner import PipelineError, run_stage
from tesserae.training.transformer import model_config

pytestmark = pytest.mark.slow

NAMES, COUNTS = ["dim", "light"], {"train": 24, "validation": 20}
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "steps": 8, "batch_size": 8, "warmup": 2, "log_every": 2,
         "sample_every": 4, "eval_every": 4, "eval_images": 8, "checkpoint_every": 4}
FEW = {"per_class": 2, "num_eval_samples": 6, "completions": 2, "neighbours": 2, "top_k": 8}


def prepared_set(folder, names=NAMES, counts=COUNTS):
    """Bright and dark noise, 16 pixels a side."""
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names),
                                 path=datasets.Value("string"), sha=datasets.Value("string"))
    generator, splits = np.random.default_rng(0), {}
    for split, count in counts.items():
        rows = []
        for number in range(count):
            pixels = generator.integers(0, 128, (16, 16, 3)) + 120 * (number % 2)
            buffer = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
            rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": number % len(names),
                         "path": f"{number}.png", "sha": hashlib.sha256(buffer.getvalue()).hexdigest()})
        splits[split] = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(folder))


def built(root, repository, names=NAMES, counts=COUNTS):
    """A root with everything that comes before stage 2."""
    shutil.copytree(repository / "notebooks", root / "notebooks")
    shutil.copytree(repository / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg*"))
    (root / "dvc.yaml").touch()
    yaml = YAML(typ="safe", pure=True)
    params = plain_values()
    params |= {"precision": "fp32", "threads": 1}
    params["transformer"]["class"] |= SMALL
    params["sample"]["class"] |= FEW
    yaml.dump(params, root / "params.yaml")
    prepared_set(root / "prepared", names, counts)
    torch.manual_seed(0)
    vqgan = VQGAN(VQGANConfig(channels=32, channel_mult=(1, 1), res_blocks=1, patch=2, attention=False,
                              z_channels=32, codebook_size=16, codebook_dim=4)).eval()
    torch.nn.init.normal_(vqgan.quantizer.codebook)
    vqgan.save_pretrained(root / "models/vqgan-image")
    made_by = VQGAN.from_pretrained(root / "models/vqgan-image").fingerprint
    for split in COUNTS:
        pictures = Pictures.load(root / "prepared", split)
        indices = vqgan.encode(to_unit(pictures.batch(range(len(pictures)))))[:, None]  # one view
        save_codes(root / "codes/image", split, indices, pictures.labels, pictures.class_names, 16,
                   {"vqgan": made_by, "pictures": pictures.fingerprint})
    return root


@pytest.fixture(scope="module")
def house(tmp_path_factory, request):
    """Such a root in which both notebooks were run."""
    root = built(tmp_path_factory.mktemp("a house"), request.config.rootpath)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(tracking.RUN_VARIABLE, raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in ("04_train_transformer", "05_sample"):
            run_stage(root / "notebooks" / f"{name}.ipynb", "class")
    return root


def figures_of(folder):
    return {path.stem for path in folder.glob("*.png")}


def test_training_leaves_its_report(house):
    report = house / "reports/transformer-class"
    assert figures_of(report) == {"curves", "positions", "classes", "samples_by_step"}
    history = pd.read_csv(report / "history.csv")
    assert history["step"].iloc[-1] == 8
    assert {"nll", "val_nll", "val_nll_wrong_class", "lr"} <= set(history)
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["val_nll"] == pytest.approx(history["val_nll"].min(), rel=1e-4)
    assert (house / "models/transformer-class/model.safetensors").exists()


def test_sampling_leaves_its_report(house):
    report = house / "reports/sample-class"
    assert figures_of(report) == {"samples", "temperature", "top_k", "completions", "condition_image",
                                  "condition_fidelity", "neighbours", "distances"}
    metrics = json.loads((report / "metrics.json").read_text())
    assert {"near_share", "code_overlap", "class_agreement", "class_agreement_held_out"} <= set(metrics)
    assert {f"frechet_vgg16{ending}" for ending in ("", "_low", "_high", "_real", "_reconstructions")} <= set(metrics)
    assert {"kernel_vgg16", "precision_vgg16", "recall_vgg16", "bank_images"} <= set(metrics)
    assert not {"fid", "kid", "precision", "recall", "inception_score"} & set(metrics)
    for record in metrics["protocol"]:
        assert record["of"] in metrics
    of = {record["of"]: record for record in metrics["protocol"]}
    assert of["frechet_vgg16"]["n_generated"] == 6
    assert of["frechet_vgg16"]["reference"] == "train split, 24 of 24 pictures, evenly spread"
    assert of["near_share"]["reference"] == "all 24 training pictures"
    numbers = {name for name in metrics if name != "protocol" and not name.endswith(("_low", "_high"))}
    assert numbers == set(of)
    assert not any("second" in name for name in metrics)
    timings = json.loads((report / "timings.json").read_text())
    assert timings["same_codes"] is True
    assert timings["images_per_second_cached"] > 0


def test_samples_are_files(house):
    folder = house / "samples/class"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    assert files == [f"{name}/{number:04d}.png" for name in NAMES for number in range(2)]
    with Image.open(folder / files[0]) as picture:
        assert (picture.mode, picture.size) == ("RGB", (16, 16))


def test_figures_are_small(house):
    for path in (house / "reports").rglob("*.png"):
        assert path.stat().st_size < 300_000


def test_the_executed_copies_show_their_figures(house):
    for stage, least in (("transformer-class", 4), ("sample-class", 8)):
        notebook = nbformat.read(house / f"reports/notebooks/{stage}.ipynb", 4)
        shown = [output for cell in notebook.cells for output in cell.get("outputs", ())
                 if "image/png" in output.get("data", {})]
        assert len(shown) == least


def test_inception_weights_of_ones_own_measure_under_their_own_name(house, inception_weights):
    """Random weights in the layout of the published ones, named in params.yaml: numbers, protocol, what is said."""
    yaml, path = YAML(typ="safe", pure=True), house / "params.yaml"
    before = path.read_text()
    params = yaml.load(before)
    params["evaluation"]["inception_weights"] = str(inception_weights)
    params["sample"]["class"] |= {"num_eval_samples": 4}
    yaml.dump(params, path)
    try:
        run_stage(house / "notebooks/05_sample.ipynb", "class")
    finally:
        path.write_text(before)
    metrics = json.loads((house / "reports/sample-class/metrics.json").read_text())
    for name in ("frechet", "kernel", "precision", "recall", "score"):
        assert metrics[f"{name}_inception_custom"] is not None
    assert not {"fid", "kid", "precision", "recall", "inception_score"} & set(metrics)
    assert not any("vgg16" in name for name in metrics)
    (record,) = (each for each in metrics["protocol"] if each["of"] == "frechet_inception_custom")
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    assert record["features"].endswith(f"weights sha256 {digest[:8]}")
    text = (house / "reports/notebooks/sample-class.ipynb").read_text()
    assert f"with the weights {inception_weights.name}, and no FID is computed" in text


def test_damaged_inception_weights_are_one_sentence(house, tmp_path):
    yaml, path = YAML(typ="safe", pure=True), house / "params.yaml"
    before = path.read_text()
    params = yaml.load(before)
    (tmp_path / "half.pth").write_bytes(b"half of a download")
    params["evaluation"]["inception_weights"] = str(tmp_path / "half.pth")
    yaml.dump(params, path)
    try:
        with pytest.raises(PipelineError, match=r"evaluation\.inception_weights names .*half\.pth, which is damaged"):
            run_stage(house / "notebooks/05_sample.ipynb", "class")
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", ["04_train_transformer", "05_sample"])
def test_codes_of_another_vqgan_make_no_new_numbers(house, name):
    metrics = (house / "reports/sample-class/metrics.json").read_text()
    place = house / "models/vqgan-image"
    aside = place.rename(place.with_name("aside"))
    other = VQGAN.from_pretrained(aside)
    other.decoder.conv_out.bias.data += 0.1
    other.save_pretrained(place)
    words = {"04_train_transformer": r"^codes/image was made by another VQGAN than models/vqgan-image: run dvc repro "
                                     r"codebook@image\.$",
             "05_sample": r"trained on codes of another VQGAN than models/vqgan-image: run dvc repro "
                          r"transformer@class\.$"}
    try:
        with pytest.raises(PipelineError, match=words[name]):
            run_stage(house / f"notebooks/{name}.ipynb", "class")
    finally:
        shutil.rmtree(place)
        aside.rename(place)
    assert (house / "reports/sample-class/metrics.json").read_text() == metrics


def test_without_codes_one_sentence_says_so(house):
    codes = house / "codes/image/train.safetensors"
    aside = codes.rename(codes.with_name("aside"))
    with pytest.raises(PipelineError, match=r"safetensors does not exist: run dvc repro codebook first\.$"):
        run_stage(house / "notebooks/04_train_transformer.ipynb", "class")
    aside.rename(codes)


def test_of_many_classes_a_dozen_is_drawn(tmp_path, request, monkeypatch):
    """A class that was not trained on is none of them; any name can be one."""
    monkeypatch.delenv(tracking.RUN_VARIABLE, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names = ["$\\frac{$", "\U0001f436" * 100, "two\nlines", *(f"class {number}" for number in range(197))]
    root = built(tmp_path, request.config.rootpath, names, {"train": 150, "validation": 200})
    data = PairedMaps(CodeMaps.load(root / "codes/image", "train"))
    block = load_params(root / "params.yaml").transformer["class"]
    LatentTransformer(model_config(block, data)).save_pretrained(root / "models/transformer-class")
    executed = run_stage(root / "notebooks/05_sample.ipynb", "class")
    folders = [path.name for path in (root / "samples/class").iterdir()]
    assert len(folders) == 12
    assert all(len(list((root / "samples/class" / folder).iterdir())) == 2 for folder in folders)
    assert not {f"class {number}" for number in range(147, 197)} & set(folders)
    assert "12 of 150 classes are sampled, evenly chosen" in executed.read_text()
    for path in (root / "reports").rglob("*.png"):
        assert path.stat().st_size < 300_000
