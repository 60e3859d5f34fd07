"""Two processes learn what one learns with batches twice as large."""

import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from tests.training.test_train_transformer import CHANGES, K, tiny_vqgan, toy_maps
from tests.training.test_train_vqgan import QUICK, SIZE, prepared

from tesserae import tracking
from tesserae.data.codes import save_codes

ALIKE = {"dropout": 0.0, "steps": 6, "log_every": 2, "eval_every": 6, "sample_every": 6, "checkpoint_every": 6}
BATCH = 8


def learn(root, values, kind, target, processes):
    """The curves of a trainer run from the shell in a folder of its own; the global batch is always BATCH."""
    values[kind][target] |= {"batch_size": BATCH // processes}
    YAML().dump(values, root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run([sys.executable, *launch, "-m", f"tesserae.training.{kind}", "--target", target], cwd=root,
                          env={**os.environ, tracking.RUN_VARIABLE: "", "ACCELERATE_USE_CPU": "true",
                               "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return pd.read_csv(root / "reports" / f"{kind}-{target}" / "history.csv")


@pytest.fixture
def values(pytestconfig):
    raw = YAML(typ="safe").load((pytestconfig.rootpath / "tests/plain.yaml").read_text())
    raw["prepare"]["image_size"], raw["threads"], raw["precision"] = SIZE, 1, "fp32"
    return raw


def test_two_processes_learn_the_same_transformer(tmp_path, values):
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "pkeep": 1.0}
    curves = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        for split, maps in (("train", toy_maps()), ("validation", toy_maps(20, seed=1))):
            save_codes(root / "codes/image", split, maps.indices, maps.labels, maps.class_names, K)
        tiny_vqgan().save_pretrained(root / "models/vqgan-image")
        curves.append(learn(root, values, "transformer", "class", processes))
    one, two = curves
    for name in ("nll", "grad_norm", "val_nll"):
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]), rtol=1e-4, atol=1e-5,
                                   equal_nan=True)
    assert one["nll"].iloc[-1] < one["nll"].iloc[0]


def test_two_processes_learn_the_same_vqgan(tmp_path, values):
    """Before the discriminator joins: its BatchNorm, like the reference's, counts in each process alone."""
    values["vqgan"] = {"image": {**values["vqgan"]["image"], **QUICK, **ALIKE, "gan_loss": "none", "zoom": 1.0,
                                 "codebook_init": "uniform", "revive_after": 0, "perceptual_weight": 0.0}}
    curves = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        root.mkdir()
        prepared(root / "prepared")
        curves.append(learn(root, values, "vqgan", "image", processes))
    one, two = curves
    for name in ("rec", "commitment", "grad_norm", "perplexity", "val_lpips"):
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(one[name]), rtol=1e-3, atol=1e-4,
                                   equal_nan=True)
    assert one["rec"].iloc[-1] < one["rec"].iloc[0]
