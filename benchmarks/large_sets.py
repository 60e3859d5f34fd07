"""What a set of many pictures asks for: time and memory of preparing it and of encoding it.

    python benchmarks/large_sets.py --counts 1000 10000 100000

Pictures are drawn at random, JPEGs of `--side` pixels, written to a folder that is removed in the end. Each count is
prepared (to `--size` pixels) and encoded (by an untrained VQGAN of params.yaml's sizes) in processes of their own,
whose highest memory is told, without the pages of the prepared file, which the system keeps or takes back as it
likes. Memory that grows with the set shows as a slope between counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Soft random pictures of ten classes, `count` of them, no two alike."""
    def write(number: int) -> None:
        generator = np.random.default_rng(number)
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        place = folder / f"class-{number % 10}" / f"{number // 1000:04d}"  # folders of a hundred files each
        place.mkdir(parents=True, exist_ok=True)
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=85)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count), chunksize=100))


def part(what: str, raw: str, prepared: str, size: int) -> dict[str, float]:
    """Prepare or encode, here and now: seconds, and bytes of memory at first and at most."""
    from benchmarks.memory import Own, own_bytes
    from tesserae.params import load_params

    params = load_params(ROOT / "params.yaml")
    if what == "prepare":
        import datasets  # noqa: F401  what is imported is not the set's

        from tesserae.data.prepare import prepare
        begin, before = time.monotonic(), own_bytes()
        with Own() as own:
            prepare(raw, prepared, params.prepare.model_copy(update={"image_size": size}), seed=0)
    else:
        from tesserae.data.pictures import Pictures
        from tesserae.data.views import make_view
        from tesserae.evaluation.codebook import encode_set
        from tesserae.models.vqgan import VQGAN
        from tesserae.training.vqgan import model_config

        pictures, block = Pictures.load(prepared, "train"), params.vqgan["image"]
        model = VQGAN(model_config(block, make_view(block.view, block.column, pictures, pictures))).eval()
        begin, before = time.monotonic(), own_bytes()
        with Own() as own:
            encode_set(model, pictures, params.codebook["image"].batch_size)
    return {"seconds": time.monotonic() - begin, "before": before, "peak": own.peak}


def measured(what: str, raw: Path, prepared: Path, size: int) -> dict[str, float]:
    """`part` in a process of its own."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, __file__, "--part", what, str(raw), str(prepared), "--size", str(size)],
                          env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure each count and print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of preparing and encoding many pictures.")
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 10000, 100000])
    parser.add_argument("--side", type=int, default=128, help="pixels a side of the raw pictures")
    parser.add_argument("--size", type=int, default=64, help="and of the prepared ones")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(part(*arguments.part, arguments.size)))
        return
    print("| pictures | prepare | pictures/s | memory, MB | encode | pictures/s | memory, MB |")
    print("| --- " * 7 + "|", flush=True)
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(prefix="large-set-") as place:
            raw, prepared = Path(place) / "raw", Path(place) / "prepared"
            write_pictures(raw, count, arguments.side)
            cells = []
            for what in ("prepare", "encode"):
                found = measured(what, raw, prepared, arguments.size)
                cells += [f"{found['seconds']:.1f} s", f"{count / found['seconds']:.0f}",
                          f"{found['peak'] / 1e6:,.0f} ({found['before'] / 1e6:,.0f})"]
        print(f"| {count:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
