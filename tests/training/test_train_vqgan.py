"""Stage 1's trainer on a tiny set: it learns, resumes with the same bits, and delivers a model."""

import csv
import functools
import json
import math
import shutil

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from tests.plain import plain_values

from tesserae import VQGAN, devices, tracking
from tesserae.data.pictures import Pictures
from tesserae.errors import TesseraeError
from tesserae.evaluation.images import reconstruction_metrics
from tesserae.models.perceptual import LPIPS
from tesserae.stage import Stage
from tesserae.training import vqgan as trainer
from tesserae.training.vqgan import VQGANTask, train_vqgan

SIZE = 16


def picture(generator):
    """A gradient between two colours with a square on it."""
    a, b, c = generator.integers(0, 256, (3, 3))
    ramp = np.linspace(0, 1, SIZE)[:, None, None]
    image = np.broadcast_to(a * ramp + b * (1 - ramp), (SIZE, SIZE, 3)).copy()
    x, y = generator.integers(0, SIZE - 5, 2)
    image[y:y + 5, x:x + 5] = c
    return Image.fromarray(image.astype(np.uint8))


def prepared(folder):
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "path": datasets.Value("string"),
                                  "sha": datasets.Value("string")})
    splits = {}
    for split, count in (("train", 40), ("validation", 6)):
        rows = {"image": [picture(generator) for _ in range(count)],
                "path": [f"{n}.png" for n in range(count)], "sha": [f"{split}{n}" for n in range(count)]}
        splits[split] = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict(splits).save_to_disk(str(folder))


load_once = functools.cache(LPIPS.load)

QUICK = {"channels": 8, "channel_mult": [1, 2], "res_blocks": 1, "patch": 2, "attention": True,
         "z_channels": 8, "codebook_size": 16, "codebook_dim": 4, "revive_after": 3, "perceptual_weight": 0.5,
         "perceptual_start": 2,
         "disc_start": 4, "disc_channels": 8, "disc_layers": 2, "steps": 12, "batch_size": 4, "lr": 0.003,
         "warmup": 2, "cooldown": 0.3, "log_every": 3, "sample_every": 6, "eval_every": 4, "eval_images": 6,
         "checkpoint_every": 5, "max_seconds": 0, "flip": True, "zoom": 1.2, "dropout": 0.1}


@pytest.fixture(scope="module")
def raw_params(pytestconfig):
    return plain_values()


@pytest.fixture
def project(tmp_path, monkeypatch, raw_params):
    """A project folder with a prepared set; `project(...)` opens its stage with some parameters changed."""
    monkeypatch.setattr(tracking, "start_run", lambda *_: tracking.silent_run())
    monkeypatch.setattr(LPIPS, "load", load_once)

    def open_stage(name="project", precision="fp32", **changes):
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            (root / "dvc.yaml").write_text("stages: {}\n")
            prepared(root / "prepared")
        raw = json.loads(json.dumps(raw_params))
        raw["prepare"]["image_size"], raw["threads"], raw["precision"] = SIZE, 1, precision
        raw["vqgan"] = {"image": {**raw["vqgan"]["image"], **QUICK, **changes}}
        YAML().dump(raw, root / "params.yaml")
        monkeypatch.chdir(root)
        return Stage.open("vqgan", "image")
    return open_stage


def test_a_column_without_masks_is_refused_before_any_step(project):
    stage = project(view="segmentation", pixel_loss="cross_entropy", perceptual_weight=0.0, gan_loss="none",
                    discriminator="patch")
    with pytest.raises(TesseraeError, match=r"^vqgan\.image\.column = 'image' holds no masks"):
        train_vqgan(stage, lambda _: None)
    assert not (stage.root / "models").exists()


def outcome(stage):
    files = [stage.reports / "history.csv", stage.reports / "metrics.json",
             *sorted((stage.root / "models" / "vqgan-image").rglob("*.safetensors"))]
    assert len(files) == 4
    return {path.relative_to(stage.root).as_posix(): path.read_bytes() for path in files}


class KilledError(Exception):
    pass


def killed_at(monkeypatch, number):
    plain = VQGANTask.step

    def step(self, step):
        if step == number:
            raise KilledError
        return plain(self, step)

    monkeypatch.setattr(VQGANTask, "step", step)


@pytest.mark.parametrize(("precision", "step", "changes"), [
    ("fp32", 3, {}), ("bf16", 7, {}), ("fp32", 11, {"gan_loss": "vanilla", "optimiser": "adam"}),
    ("fp32", 7, {"discriminator": "features", "disc_start": 6}), ("bf16", 11, {"discriminator": "features"}),
    ("fp32", 8, {"quantizer": "ema", "gradient": "rotation"}),
    ("fp32", 8, {"quantizer": "fsq", "revive_after": "auto", "gan_loss": "none"}),
    ("fp32", 7, {"quantizer": "gumbel", "revive_after": "auto", "gan_loss": "none"}),
])
def test_a_killed_training_ends_with_the_same_bits(project, precision, step, changes, monkeypatch):
    whole = project("whole", precision, **changes)
    train_vqgan(whole, lambda _: None)
    cut = project("cut", precision, **changes)
    with monkeypatch.context() as patched:
        killed_at(patched, step)
        with pytest.raises(KilledError):
            train_vqgan(cut, lambda _: None)
    said = []
    train_vqgan(project("cut", precision, **changes), said.append)
    assert outcome(cut) == outcome(whole)
    assert any("going on from step" in line for line in said) == (step > 5)


def test_lpips_joins_at_its_step(project):
    late, never = project("late", perceptual_start=6), project("never", perceptual_weight=0.0, steps=6)
    for stage in (late, never):
        train_vqgan(stage, lambda _: None)
    late, never = (pd.read_csv(stage.reports / "history.csv").dropna(subset="rec") for stage in (late, never))
    assert late["perceptual"].notna().tolist() == (late["step"] > 6).tolist() == [False, False, True, True]
    assert late["rec"][:1].tolist() == never["rec"][:1].tolist()


def test_a_discriminator_of_features_joins_and_learns(project):
    """Where LPIPS has not joined, features are computed for it alone."""
    stage = project(discriminator="features", perceptual_weight=0.0, disc_start=3, disc_lr=0.01)
    train_vqgan(stage, lambda _: None)
    by_step = pd.read_csv(stage.reports / "history.csv").dropna(subset="rec").set_index("step")
    assert by_step["disc"].notna().tolist() == [False, True, True, True]
    assert by_step["lambda"].notna().tolist() == by_step["gan"].notna().tolist() == [False, True, True, True]
    assert by_step["disc"].iloc[-1] < by_step["disc"].iloc[1] < 1.2
    assert by_step["disc_accuracy"].between(0, 1)[1:].all()
    assert "perceptual" not in by_step


@pytest.mark.parametrize("kind", ["features", "patch"])
def test_a_discriminator_that_does_not_learn_is_said_and_counted(project, kind):
    """With a rate of nothing it stays as it began; patch is advised to become features, and features is not."""
    stage, said = project(discriminator=kind, disc_start=2, disc_lr=1e-12, log_every=2), []
    train_vqgan(stage, said.append)
    alarms = [line for line in said if "no better than chance" in line]
    assert len(alarms) == 2  # when it begins, and at the end
    assert all(("try discriminator: features" in line) == (kind == "patch") for line in alarms)
    assert json.loads((stage.reports / "metrics.json").read_text())["alarms"] == 1


def test_the_frozen_network_is_in_no_checkpoint(project):
    stage = project(discriminator="features")
    train_vqgan(stage, lambda _: None)
    files = list((stage.home / "checkpoints").rglob("*"))
    assert sum(file.stat().st_size for file in files) < 5e6 < 4 * 14.7e6  # of VGG's convolutions


def test_what_it_leaves(project):
    stage = project()
    said = []
    progress = train_vqgan(stage, said.append)
    model = VQGAN.from_pretrained(stage.root / "models" / "vqgan-image")
    assert model.config.downsampling == 4
    assert model.encode(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 4, 4)
    VQGAN.from_pretrained(stage.root / "models" / "vqgan-image" / "last")
    metrics = json.loads((stage.reports / "metrics.json").read_text())
    named = {"val_psnr", "val_lpips", "val_l1", "val_usage", "val_perplexity", "best_step", "steps"}
    assert named <= metrics.keys()
    assert metrics["steps"] == 12
    assert metrics["val_lpips"] == pytest.approx(progress.best["lpips"], rel=1e-5)
    with (stage.reports / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows} == {3, 4, 6, 8, 9, 12}
    terms = {"pixel", "rec", "perceptual", "gan", "lambda", "codebook", "commitment", "disc"}
    assert terms | {"perplexity", "usage"} <= rows[0].keys()
    by_step = {int(row["step"]): row for row in rows}
    assert by_step[3]["lambda"] == by_step[3]["disc"] == ""  # the discriminator joins at step 4
    assert float(by_step[9]["lambda"]) > 0
    assert "step 12/12" in " ".join(said)


def test_it_learns(project):
    stage = project(channels=16, codebook_size=64, steps=60, batch_size=8, lr=0.01, muon_lr=0.01, gan_loss="none",
                    perceptual_weight=0.0, eval_every=60, dropout=0.0)
    progress = train_vqgan(stage, lambda _: None)
    first, last = progress.history[0], progress.history[-1]
    assert last["rec"] < 0.8 * first["rec"]
    assert progress.best["usage"] > 0.3


def test_other_parameters_start_afresh_and_more_steps_do_not(project):
    train_vqgan(project(), lambda _: None)
    said = []
    train_vqgan(project(steps=14), said.append)
    assert said[0] == "going on from step 12"
    said = []
    train_vqgan(project(lr=0.002), said.append)
    assert "starts afresh" in said[0]
    assert not any("going on" in line for line in said)


def test_a_divergence_stops_with_a_sentence(project, monkeypatch):
    plain = trainer.generator_backward

    def diverging(model, *rest):
        terms, made = plain(model, *rest)
        return {**terms, "rec": terms["rec"] * math.inf}, made

    monkeypatch.setattr(trainer, "generator_backward", diverging)
    with pytest.raises(TesseraeError, match=r"step 3: the term 'rec' is inf"):
        train_vqgan(project(), lambda _: None)


def test_without_the_perceptual_loss_the_measure_is_still_taken(project):
    stage = project(perceptual_weight=0.0)
    progress = train_vqgan(stage, lambda _: None)
    assert "perceptual" not in progress.history[-1]
    assert progress.best["lpips"] > 0


def test_codes_start_as_encoder_outputs(project, monkeypatch):
    spread = {}
    plain = VQGANTask.step

    def step(self, step):
        out = plain(self, step)
        if step == 0:
            spread[self.block.codebook_init] = self.model.codebook.detach().std().item()
        return out

    monkeypatch.setattr(VQGANTask, "step", step)
    for kind in ("data", "uniform"):
        train_vqgan(project(kind, codebook_init=kind, steps=1), lambda _: None)
    assert spread["data"] > 3 * spread["uniform"]
    assert spread["uniform"] < 1.2 / 16


def test_what_a_machine_is_quick_at_is_no_part_of_whose_a_checkpoint_is(project, monkeypatch):
    """A run goes on where another precision is the quick one, or networks are compiled, and says what changes."""
    for fast, steps in ((True, 12), (False, 14), (False, 16)):
        monkeypatch.setattr(devices, "bf16_is_fast", lambda device, fast=fast: fast)
        said = []
        stage = project(precision="auto", steps=steps)
        train_vqgan(stage, said.append)
        assert ("going on from step" in said[0]) == (steps > 12)
        assert any("from here in fp32, the steps before in bf16" in line for line in said) == (steps == 14)
    path, = (stage.home / "checkpoints").glob("*/fingerprint.json")
    inputs = json.loads(path.read_text())
    assert (inputs["precision"], inputs["compile"]) == ('"auto"', '"auto"')
    assert not any("compiled" in name for name in inputs)
    said = []
    train_vqgan(project(precision="fp32"), said.append)
    assert "precision is another one" in said[0]


@pytest.mark.parametrize("kind", ["nearest", "ema"])
def test_a_codebook_starts_without_dropout(project, kind, monkeypatch):
    """Else it lies where no encoding of a picture is."""
    found, modes = {}, []
    plain = trainer.generator_backward

    def backward(model, *rest):
        modes.append(model.training)
        found.setdefault(model.config.dropout, model.codebook.detach().clone())
        return plain(model, *rest)

    monkeypatch.setattr(trainer, "generator_backward", backward)
    for dropout in (0.0, 0.5):
        train_vqgan(project(f"{dropout}", quantizer=kind, dropout=dropout, steps=1), lambda _: None)
    assert torch.equal(found[0.0], found[0.5])
    assert all(modes)


def test_module_runs_by_itself(project, monkeypatch, capsys):
    stage = project(steps=2)
    monkeypatch.setattr("sys.argv", ["vqgan", "--params", "params.yaml", "--target", "image"])
    trainer.main()
    assert "step 2/2" in capsys.readouterr().out
    assert (stage.root / "models" / "vqgan-image" / "config.json").exists()


BOTH = {"codebook", "commitment"}
TERMS = {"nearest": BOTH, "ema": BOTH, "simvq": BOTH, "fsq": BOTH, "lfq": BOTH | {"entropy"}, "gumbel": BOTH | {"kl"}}


@pytest.mark.parametrize("quantizer", TERMS)
def test_every_quantizer_learns_and_shows_its_terms(project, quantizer):
    """The same network, data and steps; what is left open is each one's own."""
    stage = project(quantizer, quantizer=quantizer, revive_after="auto", codebook_size=64, channels=16, steps=60,
                    batch_size=8, lr=0.01, muon_lr=0.01, gan_loss="none", perceptual_weight=0.0, eval_every=60)
    progress = train_vqgan(stage, lambda _: None)
    first, last = progress.history[0], progress.history[-1]
    assert last["rec"] < 0.9 * first["rec"]
    named = {"codebook", "commitment", "entropy", "kl"} & first.keys()
    assert named == TERMS[quantizer]
    assert ("temperature" in first) == (quantizer == "gumbel")
    if quantizer == "gumbel":
        rows = [row["temperature"] for row in progress.history if "temperature" in row]
        assert rows == sorted(rows, reverse=True)
        assert rows[0] < 0.9
        assert rows[-1] == pytest.approx(0.1, abs=0.02)


def test_the_gumbel_schedule_is_half_a_cosine():
    assert [round(trainer.annealed(0.9, 0.1, done), 6) for done in (0.0, 0.5, 1.0, 1.2)] == [0.9, 0.5, 0.1, 0.1]


@pytest.mark.parametrize(("view", "channels"), [("image", 3), ("edges", 1), ("low_resolution", 3)])
def test_a_paired_column_in_grey_and_in_colours_is_learned(project, view, channels):
    """Some of its pictures are grey, some in colours, one has a palette: the network has the view's channels."""
    plain = {"perceptual_weight": 0.0, "gan_loss": "none", "steps": 2, "warmup": 0}
    stage = project(view=view, column="photo", **plain)
    modes = ["L", "RGB", "L", "P"]
    for split in ("train", "validation"):
        place = stage.path("prepared") / split
        rows = datasets.load_from_disk(str(place)).map(
            lambda row, number: {"photo": row["image"].convert(modes[number % 4])}, with_indices=True,
            features=datasets.Features({name: datasets.Image() if name in ("image", "photo") else
                                        datasets.Value("string") for name in ("image", "path", "sha", "photo")}),
            keep_in_memory=True)
        shutil.rmtree(place)
        rows.save_to_disk(str(place))
    progress = train_vqgan(stage, log=lambda _: None)
    assert progress.step == 2
    model = VQGAN.from_pretrained(stage.root / "models" / "vqgan-image")
    assert (model.config.in_channels, model.config.out_channels) == (channels, channels)
    found = reconstruction_metrics(model, Pictures.load(stage.path("prepared"), "validation"), range(6), 4)
    assert all(math.isfinite(value) for value in found.values())
