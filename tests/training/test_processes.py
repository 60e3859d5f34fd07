"""Two processes learn what one learns with batches twice as large."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tests.plain import plain_values
from tests.training.test_train_transformer import CHANGES, K, tiny_vqgan, toy_maps
from tests.training.test_train_vqgan import QUICK, SIZE, prepared

from tesserae import tracking
from tesserae.data.codes import save_codes
from tesserae.training.processes import Group

pytestmark = pytest.mark.slow

ALIKE = {"dropout": 0.0, "steps": 6, "log_every": 2, "eval_every": 6, "sample_every": 6, "checkpoint_every": 6}
BATCH = 8
HERE = Path(__file__).parents[2]


def command(root, values, processes, module, *arguments):
    """A module run from the shell in a folder of its own."""
    YAML().dump(values, root / "params.yaml")
    (root / "dvc.yaml").write_text("stages: {}\n")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, tracking.RUN_VARIABLE: "", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                   "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return {"args": [sys.executable, *launch, "-m", module, *arguments], "cwd": root, "env": environment,
            "text": True}


def trainer(root, values, kind, target, processes):
    """`command` of a trainer; the global batch is always BATCH."""
    values[kind][target] |= {"batch_size": BATCH // processes}
    return command(root, values, processes, f"tesserae.training.{kind}", "--target", target)


def start(*arguments):
    """What a `command` prints, which must come to a good end."""
    done = subprocess.run(**command(*arguments), capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def learn(root, values, kind, target, processes):
    """The curves that it leaves."""
    done = subprocess.run(**trainer(root, values, kind, target, processes), capture_output=True, timeout=300,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if "held out at step" in line]
    assert len(told) == len(set(told)) > 0, "each process said it"
    return pd.read_csv(root / "reports" / f"{kind}-{target}" / "history.csv")


@pytest.fixture
def values(pytestconfig):
    raw = plain_values()
    raw["prepare"]["image_size"], raw["threads"], raw["precision"] = SIZE, 1, "fp32"
    raw["vqgan"]["image"]["disc_layers"] = 2
    return raw


def with_codes(root):
    for split, maps in (("train", toy_maps()), ("validation", toy_maps(20, seed=1))):
        save_codes(root / "codes/image", split, maps.indices, maps.labels, maps.class_names, K)
    tiny_vqgan().save_pretrained(root / "models/vqgan-image")
    return root


def alike(curves, names, rtol=1e-4):
    first, *others = curves
    for other in others:
        for name in names:
            torch.testing.assert_close(torch.tensor(other[name]), torch.tensor(first[name]), rtol=rtol, atol=1e-5,
                                       equal_nan=True)


def test_two_processes_learn_the_same_transformer(tmp_path, values):
    """Whether each holds the network or a share of it, with a bound on the gradient that is met.

    Nor do the codes that are replaced depend on the number of processes, or what is held out, which they share.
    """
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "pkeep": 0.8, "grad_clip": 0.5, "eval_images": 17}
    curves = []
    for processes, way in ((1, "ddp"), (2, "ddp"), (2, "fsdp")):
        values["transformer"]["class"]["strategy"] = way
        curves.append(learn(with_codes(tmp_path / f"{processes}-{way}"), values, "transformer", "class", processes))
    alike(curves, ("nll", "grad_norm", "val_nll", "val_accuracy", "val_nll_wrong_class"))
    assert curves[0]["nll"].iloc[-1] < curves[0]["nll"].iloc[0]
    assert (curves[0]["grad_norm"] > 0.5).any()
    weights = [load_file(tmp_path / name / "models/transformer-class/last/model.safetensors")
               for name in ("1-ddp", "2-ddp", "2-fsdp")]
    for name, weight in weights[0].items():
        for other in weights[1:]:
            torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-4)


def test_shares_of_a_network_go_on_from_a_checkpoint(tmp_path, values):
    """Raised `steps` end where an undisturbed run ends: weights and optimiser were gathered and spread again.

    The first process alone reads the checkpoint, and it decides which model is the best: one of the others that
    thought otherwise would wait for ever for weights, or never send its own.
    """
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "strategy": "fsdp", "cooldown": 0.0, "eval_every": 2,
                                       "batch_size": BATCH // 2}
    curves = {}
    for name, lengths in (("whole", (6,)), ("cut", (4, 6))):
        root = with_codes(tmp_path / name)
        for steps in lengths:
            values["transformer"]["class"] |= {"steps": steps}
            said = start(root, values, 2, "tests.training.disagreeing", "--target", "class")
            assert set(re.findall("process . looks", said)) == {"process 0 looks"}
        assert ("going on from step 4" in said) == (name == "cut")
        curves[name] = pd.read_csv(root / "reports/transformer-class/history.csv")
    pd.testing.assert_frame_equal(curves["cut"], curves["whole"])
    assert (curves["whole"]["val_nll"] > 0).all()
    for which in ("last/", ""):
        one, two = (load_file(tmp_path / name / f"models/transformer-class/{which}model.safetensors")
                    for name in curves)
        assert all(torch.equal(one[name], two[name]) for name in one)
    report = json.loads((root / "reports/transformer-class/metrics.json").read_text())
    assert report["best_step"] == curves["cut"]["step"][curves["cut"]["val_nll"].idxmin()] > 2


def test_a_signal_to_one_of_two_stops_both_at_one_step(tmp_path, values):
    """And they go on from there. Only one is told, the other would wait for it for ever."""
    values["transformer"]["class"] |= {**CHANGES, **ALIKE, "steps": 100_000, "eval_every": 100_000,
                                       "sample_every": 100_000, "checkpoint_every": 100_000}
    root = with_codes(tmp_path / "root")
    said = root / "said.txt"
    with said.open("w") as file:
        launcher = subprocess.Popen(**trainer(root, values, "transformer", "class", 2), stdout=file, stderr=file)
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


EVERYTHING = {**QUICK, **ALIKE, "gan_loss": "hinge", "disc_start": 1, "perceptual_start": 0,
              "perceptual_fraction": 0.5, "codebook_init": "data", "codebook_size": 64,
              "revive_after": 1, "dropout": 0.0, "eval_images": 5,
              "steps": 4, "checkpoint_every": 3}  # few: sooner or later rounding decides between two codes


def test_two_processes_learn_the_same_vqgan(tmp_path, values):
    """With a codebook that starts from data and whose idle codes move, with LPIPS on a part of the batch, and with a
    discriminator, whose BatchNorm and whose weight lambda are those of the whole batch."""
    block = values["vqgan"]["image"] | EVERYTHING
    blocks = {"image": block, "ema": block | {"quantizer": "ema", "gan_loss": "vanilla", "optimiser": "adam"},
              # of features: in the step in which it joins, for later ones follow what rounding makes of VGG's kinks
              "features": block | {"discriminator": "features", "disc_start": 2, "steps": 3, "optimiser": "adam"},
              "lfq": block | {"quantizer": "lfq", "codebook_init": "auto", "revive_after": "auto", "steps": 3,
                              "optimiser": "adam"}}  # its entropy is steep, so that rounding errors soon grow
    for processes in (1, 2):
        root = tmp_path / str(processes)
        root.mkdir()
        prepared(root / "prepared")
        values["vqgan"] = {name: each | {"batch_size": BATCH // processes} for name, each in blocks.items()}
        start(root, values, processes, "tests.training.targets", *blocks)
    for target in blocks:
        one, two = (pd.read_csv(tmp_path / n / f"reports/vqgan-{target}/history.csv") for n in "12")
        terms = {"rec", "perceptual", "gan", "lambda", "disc", "commitment", "grad_norm", "disc_grad_norm",
                 "perplexity", "val_lpips", "val_psnr", "val_usage", "val_perplexity"}
        assert terms <= set(one)
        alike((one, two), one.columns, rtol=1e-3)
        states = [load_file(max((tmp_path / n / "checkpoints").glob(f"vqgan-{target}-*/step-*.safetensors")))
                  for n in "12"]
        # a bias that GroupNorm takes away again follows rounding errors alone
        names = [name for name in states[0] if "/2.discriminator/" in name or "quantizer." in name
                 or ("/0.model/" in name and name.endswith("weight"))]
        assert any("running_var" in name for name in names) or target == "features"
        assert any("codebook" in name or "project" in name for name in names)
        for name in names:
            torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-3, atol=1e-3, msg=name)
    goes_on_alike(tmp_path / "2", values)


def goes_on_alike(root, values):
    """Killed between a log and the next, the two end with the same bits: each takes up its own part of what is
    summed up, and all the rest from the first."""
    whole = {path: path.read_bytes() for path in (root / "reports/vqgan-image/history.csv",
                                                  root / "models/vqgan-image/last/model.safetensors")}
    shutil.rmtree(root / "checkpoints")
    killed = subprocess.run(**command(root, values, 2, "tests.training.targets", "image", "--kill", "3"),
                            capture_output=True, timeout=300, check=False)
    assert "RuntimeError: killed" in killed.stderr
    assert "going on from step 3" in start(root, values, 2, "tests.training.targets", "image")
    for path, content in whole.items():
        assert path.read_bytes() == content, path


def test_processes_take_the_precision_that_the_first_one_found_quick(tmp_path):
    """Times differ, and the sum of gradients in two precisions would be neither's."""
    (tmp_path / "both.py").write_text(
        "import os\n"
        "from tesserae import devices\n"
        "devices.bf16_is_fast = lambda device: os.environ['RANK'] == '0'\n"
        "made = devices.make_accelerator('auto', 1)\n"
        "print(f'took {made.mixed_precision} as one of {made.num_processes}\\n', end='', flush=True)\n"
        "made.wait_for_everyone()\n"  # else the first may be gone before the other has heard it
        "made.end_training()\n")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           str(tmp_path / "both.py")], capture_output=True, text=True, timeout=300, check=False,
                          env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("took bf16 as one of 2") == 2


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("number", [1, 2, 3, 8, 17])
def test_work_is_shared_out_whole_and_alike(number, count):
    """Every element is some process's, and all have equally many, so that none waits for another's last batch."""
    parts = [Group(SimpleNamespace(process_index=n, num_processes=count)).part(number) for n in range(count)]
    together = torch.stack(parts, 1).flatten()
    assert torch.equal(together[:number], torch.arange(number))
    assert len(together) - number < count
    assert ((together >= 0) & (together < number)).all()
