"""What the sizes of the dial come to on the built-in landscapes: the lines beside `size` in params.yaml.

    python benchmarks/sizes.py xs s                     the whole pipeline; l is an evening on two cores
    python benchmarks/sizes.py m l --out /tmp/sizes     where the clones are kept, one for each size

Each size runs in a clone of its own (`tesserae.pipeline.smoke.Clone`). A clone that is there already goes on where it
was stopped. The last lines are for `MEASURED` in src/tesserae/params/sizes.py.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from tesserae.errors import command
from tesserae.files import find_root
from tesserae.params.sizes import SIZES
from tesserae.pipeline.smoke import Clone

TARGETS = ("vqgan@image", "vqgan@segmentation", "transformer@class", "transformer@layout")


def metrics(folder: Path, stage: str) -> dict[str, Any]:
    """What a stage reported."""
    return json.loads((folder / "reports" / stage / "metrics.json").read_text(encoding="utf-8"))


def millions(folder: Path, stage: str) -> float:
    """Parameters of a stage's network, in millions; a codebook's among them."""
    with safe_open(folder / "models" / stage / "model.safetensors", "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in list(file.keys())) / 1e6


def minutes(folder: Path, stage: str) -> float:
    """How long a stage trained, whatever stopped it in between."""
    return float(pd.read_csv(folder / "reports" / stage / "timings.csv")["seconds"].iloc[-1]) / 60


def line(folder: Path) -> str:
    """One size in a line: its networks of pictures and of classes, and how long all networks trained."""
    vqgan, transformer = "vqgan-image", "transformer-class"
    trained = sum(minutes(folder, target.replace("@", "-")) for target in TARGETS)
    lpips, bits = metrics(folder, vqgan)["val_lpips"], metrics(folder, transformer)["val_bits"]
    return (f"VQGAN {millions(folder, vqgan):.1f} M parameters, LPIPS {lpips:.2f}; transformer "
            f"{millions(folder, transformer):.1f} M, {bits:.2f} bits a code; {trained:.1f} min of training")


def measured(root: Path, out: Path, size: str) -> str:
    """Train the networks of a size in its clone, and say what came of them."""
    folder = out / size
    clone = Clone(folder) if (folder / "params.yaml").exists() else Clone.make(root, folder, {"size": size})
    clone.repro(*TARGETS, each_line=print)
    return line(folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure the sizes of the dial.")
    parser.add_argument("sizes", nargs="+", choices=SIZES)
    parser.add_argument("--out", type=Path, default=Path("/tmp/tesserae-sizes"))
    arguments = parser.parse_args()
    with command():
        found = {size: measured(find_root(), arguments.out, size) for size in arguments.sizes}
    for size, words in found.items():
        print(f'    "{size}": "{words}",')


if __name__ == "__main__":
    main()
