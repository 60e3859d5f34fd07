"""Several settings of one stage, each over several seeds: means with their spread, and differences seed by seed.

    python benchmarks/seeds.py vqgan.image --arm quantizer=nearest --arm quantizer=ema --seeds 0 1 2

Run it where the pipeline has run, or name such a folder by --base: its prepared pictures, codes and models are read
and nothing there is changed. An arm is a list of keys of the stage's block with their values, divided by spaces.
Every run is a process of its own in --out, and one that is there already, with the same parameters on the same base,
is not run again, so a stopped comparison goes on. Differences are to the first arm, of the same seed, with a 95 %
interval of their mean by Student's t.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from ruamel.yaml import YAML
from scipy.stats import t as student

from tesserae.codebook_params import NEUTRAL
from tesserae.data.batches import to_unit
from tesserae.data.pictures import Pictures
from tesserae.errors import TesseraeError
from tesserae.evaluation.images import reconstruction_measures
from tesserae.models.perceptual import LPIPS, MIN_SIDE
from tesserae.models.vqgan import VQGAN
from tesserae.params import Params, check_params, load_params

ROOT = Path(__file__).resolve().parents[1]
READ = ("prepared", "codes", "models")  # of the base folder, by stage: what a training reads
MEASURES = {"vqgan": ("lpips", "lpips_alex", "sharpness_error", "psnr", "ssim", "usage", "perplexity", "steps",
                      "seconds"),
            "transformer": ("val_bits", "val_accuracy", "train_nll", "val_nll", "seconds")}


def overridden(params: Params, kind: str, target: str, arm: str, others: dict) -> Params:
    """The parameters with an arm's keys in the stage's block, and `others` at the top."""
    values = params.model_dump() | others
    if target not in values[kind]:
        raise TesseraeError(f"{kind}.{target} is not in the parameters file: take one of {', '.join(values[kind])}.")
    block = values[kind][target]
    pairs = re.findall(r"([^\s=]+)=(\[.*?\]|\S+)", arm)
    if re.sub(r"\s", "", "".join(f"{key}={value}" for key, value in pairs)) != re.sub(r"\s", "", arm):
        raise TesseraeError(f"--arm {arm!r} cannot be read: write key=value, several of them divided by spaces.")
    for key, value in pairs:
        if key not in block:
            raise TesseraeError(f"--arm names {key!r}, which {kind}.{target} lacks: take one of {', '.join(block)}.")
        block[key] = YAML(typ="safe", pure=True).load(value)
    if kind == "vqgan" and "quantizer=" in arm:  # resolved for another quantizer: what the arm leaves open is its own
        named = {key for key, _ in pairs}
        block |= dict.fromkeys(NEUTRAL.keys() - named, "auto")
    return check_params(values, f"--arm {arm!r}")


def folder_of(out: Path, arm: str, stage: str, params: Params, base: Path) -> Path:
    """Where a run with these parameters on what `base` holds is kept: other parameters, another folder.

    Raises TesseraeError where `base` lacks what the stage reads.
    """
    kind = stage.partition(".")[0]
    for name in READ if kind == "transformer" else READ[:1]:
        if not (base / name).is_dir():
            raise TesseraeError(f"{base / name} does not exist: run make repro there first, or name another --base.")
    facts = json.dumps([stage, params.model_dump(), str(base.resolve())], sort_keys=True)
    words = "-".join(re.findall(r"[A-Za-z0-9.]+", arm))[:60] or "default"
    return out.resolve() / f"{words}-{params.seed}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def run(kind: str, target: str, params: Params, base: Path, folder: Path) -> dict[str, float]:
    """Train in `folder`, unless that is done, and measure; numbers by name."""
    result = folder / "result.json"
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    for name in READ if kind == "transformer" else READ[:1]:
        link = folder / name
        if name == "models":
            link.mkdir(exist_ok=True)
            for model in (base / name).glob("vqgan-*"):
                if not (link / model.name).exists():
                    (link / model.name).symlink_to(model.resolve())
        elif not link.exists():
            link.symlink_to((base / name).resolve())
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params.model_dump(), stream)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": str(params.threads or 1),
                   "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    command = [sys.executable, "-m", f"tesserae.training.{kind}", "--params", "params.yaml", "--target", target]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        if subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode:
            raise TesseraeError(f"a training failed: {folder / 'log.txt'} says why.")
    reports = folder / "reports" / f"{kind}-{target}"
    numbers = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
    numbers["seconds"] = float((reports / "timings.csv").read_text(encoding="utf-8").split()[-1].split(",")[1])
    if kind == "vqgan":
        numbers |= held_out(folder / "models" / f"vqgan-{target}" / "last", folder / "prepared")
    result.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return numbers


@torch.no_grad()
def held_out(model_folder: Path, prepared: Path) -> dict[str, float]:
    """Measures of the last model on every held-out picture."""
    model, pictures = VQGAN.from_pretrained(model_folder), Pictures.load(prepared, "validation")
    every = range(len(pictures))
    nets = {"lpips": "vgg", "lpips_alex": "alex"} if model.config.view == "image" else {}
    nets = {name: net for name, net in nets.items() if pictures.size >= MIN_SIDE[net]}
    found: dict[str, float] = {}
    counts = torch.zeros(model.config.codebook_size)
    for name, net in (nets or {"": None}).items():
        each, counts = reconstruction_measures(model, pictures, every, 32, LPIPS.load(net) if net else None)
        found |= {(name if key == "lpips" else key): float(value.double().mean()) for key, value in each.items()}
    if nets:
        found["sharpness_error"] = sharpness_error(model, pictures)
    share = counts.double() / counts.sum()
    return found | {"usage": float((share > 0).double().mean()),
                    "perplexity": float(torch.special.entr(share).sum().exp())}


@torch.no_grad()
def sharpness_error(model: VQGAN, pictures: Pictures) -> float:
    """How far reconstructions are from the sharpness of held-out pictures: 0 for the same.

    Of each picture and its reconstruction the magnitudes of the grey values' gradients, from pixel to pixel, are
    sorted, wherever they lie; the mean of their differences is divided by the mean magnitude in the pictures.
    """
    differences, magnitudes = [], []
    for start in range(0, len(pictures), 32):
        real = to_unit(pictures.batch(range(start, min(start + 32, len(pictures)))))
        a, b = (_gradients(images) for images in (real, model.reconstruct(real)))
        differences.append((a - b).abs().mean(1))
        magnitudes.append(a.mean(1))
    return float(torch.cat(differences).mean() / torch.cat(magnitudes).mean())


def _gradients(images: torch.Tensor) -> torch.Tensor:
    """Sorted magnitudes of the gradients of (B,3,H,W) -> (B,(H-1)*(W-1))."""
    grey = images.mean(1)
    right, down = grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return (right.square() + down.square()).sqrt().flatten(1).sort(1).values


def interval(differences: list[float]) -> tuple[float, float]:
    """The mean and half of its 95 % interval, by Student's t; infinite for one difference."""
    if len(differences) < 2:
        return mean(differences), math.inf
    return mean(differences), float(student.ppf(0.975, len(differences) - 1)) * stdev(differences) / math.sqrt(
        len(differences))


def table(found: dict[str, list[dict[str, float]]], measures: tuple[str, ...]) -> str:
    """A Markdown table: an arm a row, mean and standard deviation over seeds; below, differences to the first arm."""
    shown = [name for name in measures if all(name in run for runs in found.values() for run in runs)]
    seeds = len(next(iter(found.values())))
    lines = [f"{seeds} seeds: mean and standard deviation", "", "| | " + " | ".join(shown) + " |",
             "| --- |" + " --- |" * len(shown)]
    for arm, runs in found.items():
        cells = [[run[name] for run in runs] for name in shown]
        lines.append(f"| {arm} | " + " | ".join(
            f"{mean(cell):.4g}" + (f" ± {stdev(cell):.2g}" if len(cell) > 1 else "") for cell in cells) + " |")
    first, *others = found
    if others:
        lines += ["", f"Differences to {first!r}, seed by seed: mean and its 95 % interval", "",
                  "| | " + " | ".join(shown) + " |", "| --- |" + " --- |" * len(shown)]
    for arm in others:
        cells = []
        for name in shown:
            middle, half = interval([b[name] - a[name] for a, b in zip(found[first], found[arm])])
            cells.append(f"{middle:+.3g} ± {half:.2g}" if math.isfinite(half) else f"{middle:+.3g}")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command; see the module's first lines."""
    parser = argparse.ArgumentParser(description="Compare settings of one stage over several seeds.")
    parser.add_argument("stage", help="vqgan.NAME or transformer.NAME, as in params.yaml")
    parser.add_argument("--arm", action="append", required=True, help="keys of the block with their values")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--base", type=Path, default=Path(), help="where the pipeline has run (default: here)")
    parser.add_argument("--out", type=Path, default=Path("seeds"), help="where runs and their results are kept")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--effort", type=float, default=1.0)
    arguments = parser.parse_args()
    kind, _, target = arguments.stage.partition(".")
    if kind not in MEASURES or not target:
        parser.error("the stage is vqgan.NAME or transformer.NAME")
    first = load_params(arguments.params)
    arms = {arm: [overridden(first, kind, target, arm, {"seed": seed, "threads": arguments.threads,
                                                        "effort": arguments.effort}) for seed in arguments.seeds]
            for arm in arguments.arm}
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for number, seed in enumerate(arguments.seeds):  # seed by seed, so that a stopped comparison is a fair one
        for arm, each in arms.items():
            folder = folder_of(arguments.out, arm, arguments.stage, each[number], arguments.base)
            found[arm].append(run(kind, target, each[number], arguments.base, folder))
            print(f"seed {seed}, {arm}: " + "  ".join(f"{k} {found[arm][-1][k]:.4g}" for k in MEASURES[kind]
                                                      if k in found[arm][-1]), flush=True)
    print("\n" + table(found, MEASURES[kind]))


if __name__ == "__main__":
    try:
        main()
    except TesseraeError as error:
        sys.exit(str(error))
