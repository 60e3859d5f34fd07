"""Two processes learn what one learns with batches twice as large."""

import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tests.training.test_train_transformer import CHANGES, K, tiny_vqgan, toy_maps
from tests.training.test_train_vqgan import QUICK, SIZE, prepared

from tesserae import tracking
from tesserae.data.codes import save_codes

ALIKE = {"dropout": 0.0, "steps": 6, "log_every": 2, "eval_every": 6, "sample_every": 6, "checkpoint_every": 6}
BATCH = 8


def command(root, values, kind, target, processes):
    """A trainer run from the shell in a folder of its own; the global batch is always BATCH."""
    values[kind][target] |= {"batch_size": BATCH // processes}
    YAML().dump(values, root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, tracking.RUN_VARIABLE: "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                   "PYTHONUNBUFFERED": "1"}
    return {"args": [sys.executable, *launch, "-m", f"tesserae.training.{kind}", "--target", target], "cwd": root,
            "env": environment, "text": True}


def learn(root, values, kind, target, processes):
    """The curves that it leaves."""
    done = subprocess.run(**command(root, values, kind, target, processes), capture_output=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "held out at step" in line]
    assert len(told) == len(set(told)) > 0, "each process said it"
    return pd.read_csv(root / "reports" / f"{kind}-{target}" / "history.csv")


@pytest.fixture
def values(pytestconfig):
    raw = YAML(typ="safe").load((pytestconfig.rootpath / "tests/plain.yaml").read_text())
    raw["prepare"]["image_size"], raw["threads"], raw["precision"] = SIZE, 1, "fp32"
    return raw


def with_codes(root):
    for split, maps in (("train", toy_maps()), ("validation", toy_maps(20, seed=1))):
        save_codes(root / "codes/image", split, maps.indices, maps.labels, maps.class_names, K)
    tiny_vqgan().save_pretrained(root / "models/vqgan-image")
    return root


def alike(curves, names):
    first, *others = curves
    for other in others:
        for name in names:
            torch.testing.assert_close(torch.tensor(other[name]), torch.tensor(first[name]), rtol=1e-4, atol=1e-5,
                                       equal_nan=True)


def test_two_processes_learn_the_same_transformer(tmp_path, values):
    """Whether each holds the network or a share of it, with a bound on the gradient that is met."""
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "pkeep": 1.0, "grad_clip": 0.5}
    curves = []
    for processes, way in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        values["transformer"]["class"]["processes"] = way
        curves.append(learn(with_codes(tmp_path / f"{processes}-{way}"), values, "transformer", "class", processes))
    alike(curves, ("nll", "grad_norm", "val_nll"))
    assert curves[0]["nll"].iloc[-1] < curves[0]["nll"].iloc[0]
    assert (curves[0]["grad_norm"] > 0.5).any()
    weights = [load_file(tmp_path / name / "models/transformer-class/last/model.safetensors")
               for name in ("1-ddp", "2-ddp", "2-fsdp")]
    for name, weight in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)


def test_shares_of_a_network_go_on_from_a_checkpoint(tmp_path, values):
    """Raised `steps` end where an undisturbed run ends: weights and optimiser were gathered and spread again."""
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "processes": "fsdp", "cooldown": 0.0}
    whole = learn(with_codes(tmp_path / "whole"), values, "transformer", "class", 2)
    root = with_codes(tmp_path / "cut")
    for steps in (4, 6):
        values["transformer"]["class"] |= {"steps": steps}
        curve = learn(root, values, "transformer", "class", 2)
    pd.testing.assert_frame_equal(curve[curve["step"] != 4].dropna(axis=1), whole[whole["step"] != 4].dropna(axis=1))
    one, two = (load_file(tmp_path / name / "models/transformer-class/last/model.safetensors")
                for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_signal_to_one_of_two_stops_both_at_one_step(tmp_path, values):
    """And they go on from there. Only one is told, the other would wait for it for ever."""
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "steps": 100_000, "eval_every": 100_000,
                                       "sample_every": 100_000, "checkpoint_every": 100_000}
    root = with_codes(tmp_path / "root")
    said = root / "said.txt"
    with said.open("w") as file:
        launcher = subprocess.Popen(**command(root, values, "transformer", "class", 2), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not (root / "reports/transformer-class/history.csv").exists():
            assert launcher.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        second = next(child for child in psutil.Process(launcher.pid).children()
                      if child.environ().get("RANK") == "1")
        second.send_signal(signal.SIGTERM)
        launcher.wait(120)
    finally:
        for process in psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else ():
            process.kill()
        launcher.kill()
    stopped = {int(step) for step in re.findall(r"stopped at step (\d+)", said.read_text())}
    assert len(stopped) == 1, said.read_text()
    values["transformer"]["class"] |= {"steps": max(stopped) + 2}
    curve = learn(root, values, "transformer", "class", 2)
    assert curve["step"].iloc[-1] == max(stopped) + 2


def test_two_processes_end_by_one_clock(tmp_path, values):
    """After `max_seconds` of the first: with clocks of their own one would wait for the other for ever."""
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "steps": 1_000_000, "max_seconds": 3, "cooldown": 1.0,
                                       "eval_every": 1_000_000, "sample_every": 1_000_000,
                                       "checkpoint_every": 1_000_000}
    curve = learn(with_codes(tmp_path / "root"), values, "transformer", "class", 2)
    assert curve["step"].iloc[-1] > 2
    assert curve["lr"].iloc[-1] < curve["lr"].max()


def test_each_process_holds_its_share_alone():
    """Of the weights and of what the optimiser keeps, half on each of two; the network is whole again when asked."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           "-m", "tests.training.shares"], capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("held its share") == 2


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


def test_processes_take_the_precision_that_the_first_one_found_quick(tmp_path):
    """Times differ, and the sum of gradients in two precisions would be neither's."""
    (tmp_path / "both.py").write_text(
        "import os\n"
        "from tesserae.training import loop\n"
        "loop.bf16_is_fast = lambda device: os.environ['RANK'] == '0'\n"
        "made = loop.make_accelerator('auto', 1)\n"
        "print(f'took {made.mixed_precision} as one of {made.num_processes}\\n', end='', flush=True)\n"
        "made.wait_for_everyone()\n"  # else the first may be gone before the other has heard it
        "made.end_training()\n")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           str(tmp_path / "both.py")], capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("took bf16 as one of 2") == 2
