"""How good a codebook is after the same number of seconds: this project and the reference implementation.

    python benchmarks/equal_time.py --data PICTURES --seconds 600 --threads 2 --size 64 --reference CHECKOUT

Both train on the same prepared pictures with the same f, K, batch size and threads, one after the other and each in
a process of its own. Both are then measured on the same held-out pictures by the same networks in full precision.
Without --reference this project alone is run. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import Tensor

from tesserae.data.batches import to_unit
from tesserae.data.pictures import Pictures
from tesserae.data.prepare import prepare
from tesserae.errors import TesseraeError
from tesserae.evaluation.images import picture_metrics
from tesserae.models.perceptual import LPIPS
from tesserae.models.vqgan import VQGAN
from tesserae.params import Params, check_params, load_params

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NEVER = 1_000_000_000  # as an interval in steps: training time goes to training alone
# name of the measure, its column in the table, better when it is
MEASURES = (("lpips", "LPIPS (VGG)", "low"), ("psnr", "PSNR, dB", "high"), ("usage", "codes in use, %", "high"),
            ("perplexity", "perplexity of codes", "high"), ("steps", "steps", ""),
            ("images_per_second", "images/s", ""))


def benchmark_params(file: Path, target: str, seconds: int, threads: int, size: int, seed: int) -> Params:
    """The parameters of our run: the file's, with time for its only limit and no evaluation on the way."""
    values = load_params(file).model_dump()
    values["prepare"]["image_size"], values["threads"], values["seed"] = size, threads, seed
    values["vqgan"][target] |= {"max_seconds": seconds, "steps": NEVER, "sample_every": NEVER, "eval_every": NEVER,
                                "checkpoint_every": NEVER}
    return check_params(values, file)


def write_params(params: Params, path: Path) -> None:
    """Write parameters where a trainer finds them."""
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump(params.model_dump(), stream)


def run(command: list[str], folder: Path, threads: int) -> None:
    """Run a child in `folder` with that many threads; its output is shown. Raises TesseraeError on failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                   "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
                   "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    if subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
        raise TesseraeError(f"{command[1]} failed: its last lines say why.")


def train_ours(params: Params, target: str, folder: Path) -> dict:
    """Run the project's own trainer as a user would; its last model's reconstructions of the held-out set."""
    (folder / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    write_params(params, folder / "params.yaml")
    run([sys.executable, "-m", "tesserae.training.vqgan", "--params", "params.yaml", "--target", target], folder,
        params.threads)
    model = VQGAN.from_pretrained(folder / "models" / f"vqgan-{target}" / "last")
    held_out = held_out_pictures(folder / "prepared", params.vqgan[target].eval_images)
    indices = torch.cat([model.encode(part) for part in held_out.split(32)])
    images = torch.cat([model.decode(part) for part in indices.split(32)])
    with (folder / "reports" / f"vqgan-{target}" / "timings.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return {"images": images, "indices": indices, "steps": int(last["step"]), "seconds": float(last["seconds"])}


def train_reference(params: Params, target: str, folder: Path, reference: Path) -> dict:
    """Run the reference's training with the same f, K, batch size and time; the same of its last model."""
    block = params.vqgan[target]
    plan = {"reference": str(reference.resolve()), "prepared": str(folder / "prepared"), "seed": params.seed,
            "seconds": block.max_seconds, "threads": params.threads, "size": params.prepare.image_size,
            "downsampling": block.downsampling, "codebook_size": block.codebook_size,
            "batch_size": block.batch_size, "eval_images": block.eval_images, "out": str(folder / "result.pt")}
    (folder / "plan.json").write_text(json.dumps(plan, indent=2), encoding="utf-8")
    run([sys.executable, str(HERE / "reference_vqgan.py"), str(folder / "plan.json")], folder, params.threads)
    return torch.load(folder / "result.pt", weights_only=True)


def held_out_pictures(prepared: Path, count: int) -> Tensor:
    """The first `count` held-out pictures, (N,3,H,W) in [-1,1]."""
    pictures = Pictures.load(prepared, "validation")
    return to_unit(pictures.batch(range(min(count, len(pictures)))))


@torch.no_grad()
def measure(result: dict, real: Tensor, codebook_size: int, batch_size: int, lpips: LPIPS) -> dict[str, float]:
    """Means over the held-out pictures, and how a side's codebook was used on them."""
    pairs = zip(result["images"].split(32), real.split(32), strict=True)
    parts = [picture_metrics(made, x, lpips) for made, x in pairs]
    means = {name: torch.cat([part[name] for part in parts]).mean().item() for name in ("lpips", "psnr")}
    share = torch.bincount(result["indices"].flatten(), minlength=codebook_size).double()
    share = share / share.sum()
    return means | {"usage": 100 * (share > 0).double().mean().item(),
                    "perplexity": torch.special.entr(share).sum().exp().item(), "steps": result["steps"],
                    "images_per_second": result["steps"] * batch_size / result["seconds"]}


def compare(arguments: argparse.Namespace, work: Path) -> dict[str, list[dict[str, float]]]:
    """Train and measure every side `repeats` times, taking turns; results by side."""
    first = benchmark_params(arguments.params, arguments.target, arguments.seconds, arguments.threads,
                             arguments.size, arguments.seed)
    report = prepare(arguments.data, work / "prepared", first.prepare, first.seed)
    print(f"pictures: {report.counts}", flush=True)
    lpips = LPIPS.load("vgg")
    block = first.vqgan[arguments.target]
    real = held_out_pictures(work / "prepared", block.eval_images)
    sides = ["ours", "reference"] if arguments.reference else ["ours"]
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(arguments.repeats):
        params = first.model_copy(update={"seed": first.seed + turn})
        for side in sides if turn % 2 == 0 else reversed(sides):
            folder = work / f"{side}-{turn}"
            folder.mkdir()
            (folder / "prepared").symlink_to(work / "prepared")
            print(f"\n{side}: {block.max_seconds} s on {params.threads} threads, seed {params.seed}", flush=True)
            if side == "ours":
                result = train_ours(params, arguments.target, folder)
            else:
                result = train_reference(params, arguments.target, folder, arguments.reference)
            found[side].append(measure(result, real, block.codebook_size, block.batch_size, lpips))
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Measures down, sides across; means over the repeats, and the ratio of ours to the reference's."""
    sides = list(found)
    lines = [["", *sides, *(["ratio"] if len(sides) > 1 else [])]]
    for name, title, better in MEASURES:
        means = {side: mean(run[name] for run in runs) for side, runs in found.items()}
        spread = {side: np.ptp([run[name] for run in runs]) / 2 for side, runs in found.items()}
        cells = [f"{means[side]:.4g}" + (f" ± {spread[side]:.2g}" if len(found[side]) > 1 else "") for side in sides]
        if len(sides) > 1:
            cells.append(f"{means['ours'] / means['reference']:.3f}" if means["reference"] else "-")
        lines.append([title + (f" ({better} is better)" if better else ""), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
                     for line in [*lines[:1], ["-" * width for width in widths], *lines[1:]])


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    quick = ROOT / "presets" / "own-64.yaml"
    parser = argparse.ArgumentParser(description="Train both for the same time, measure both alike.")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of pictures (default: data)")
    parser.add_argument("--reference", type=Path, help="checkout of CompVis/taming-transformers; without: ours alone")
    parser.add_argument("--params", type=Path, default=quick if quick.exists() else ROOT / "params.yaml",
                        help="parameters file of our run (default: presets/own-64.yaml, else params.yaml)")
    parser.add_argument("--target", default="image", help="the block under vqgan: in it (default: image)")
    parser.add_argument("--seconds", type=int, default=600, help="training time of each run (default: 600)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of each run")
    parser.add_argument("--size", type=int, default=64, help="pixels a side (default: 64)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each side, with seeds that follow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="empty folder for models and logs (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="also write every number to this JSON file")
    arguments = parser.parse_args(given)
    if arguments.reference and not (arguments.reference / "taming" / "models" / "vqgan.py").is_file():
        parser.error(f"{arguments.reference} holds no taming/models/vqgan.py: give a checkout of the reference")
    return arguments


def main(given: list[str] | None = None) -> None:
    """Compare and print the table."""
    arguments = parse(given)
    with tempfile.TemporaryDirectory(prefix="equal-time-") as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            found = compare(arguments, work)
        except TesseraeError as error:
            raise SystemExit(str(error)) from None
    print(f"\n{table(found)}")
    if arguments.out:
        facts = {"seconds": arguments.seconds, "threads": arguments.threads, "size": arguments.size,
                 "params": arguments.params.name, "torch": torch.__version__, "runs": found}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
