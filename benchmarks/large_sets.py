"""What a set of many pictures asks for: time and memory of preparing it and of encoding it.

    python benchmarks/large_sets.py --counts 1000 10000 100000

Pictures are drawn at random, JPEGs of `--side` pixels, written to a folder that is removed in the end. Each count is
prepared (to `--size` pixels) and encoded (by an untrained VQGAN of params.yaml's sizes) in processes of their own,
whose highest memory is reported, without the pages of files, which the system keeps or takes back as it likes. Memory
that grows with the set shows as a slope between counts. With `--processes` that many work together, and the memory
is the highest of one of them; what many prepare is joined by one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
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
    """Decode shards, prepare or encode, here and now: seconds, and bytes of memory at first and at most."""
    from benchmarks.memory import Own, own_bytes
    from tesserae.params import load_params

    params = load_params(ROOT / "params.yaml")
    if what in ("shards", "prepare"):
        import datasets  # noqa: F401  what is imported is not the set's

        from tesserae.data.listing import list_source
        from tesserae.data.prepare import SHARDS, aside_of, decode_shards, prepare
        block = params.prepare.model_copy(update={"image_size": size})
        begin, before = time.monotonic(), own_bytes()
        with Own() as own:
            if what == "prepare":
                prepare(raw, prepared, block, seed=0)
            else:
                rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
                folder = aside_of(Path(prepared)) / SHARDS
                deque(decode_shards(list_source(raw), block, folder, rank, world), maxlen=0)
    else:
        import torch

        from tesserae.data.codes import CodeMaps, save_codes
        from tesserae.data.pictures import Pictures
        from tesserae.data.views import make_view
        from tesserae.devices import make_accelerator
        from tesserae.encoding import encode_pieces
        from tesserae.models.vqgan import VQGAN
        from tesserae.training.vqgan import model_config

        accelerator = make_accelerator("fp32")
        torch.manual_seed(0)
        pictures, block = Pictures.load(prepared, "train", hold=0), params.vqgan["image"]
        model = VQGAN(model_config(block, make_view(block.view, block.column, pictures, pictures))).eval()
        codes = Path(prepared) / "codes"
        begin, before = time.monotonic(), own_bytes()
        with Own() as own:
            paths = encode_pieces(model, pictures, params.codebook["image"].batch_size, codes, accelerator)
            if accelerator.is_main_process:
                save_codes(codes, "train", [np.load(path, mmap_mode="r") for path in paths], pictures.labels,
                           pictures.class_names, model.config.codebook_size)
                assert len(CodeMaps.load(codes, "train")) == len(pictures)
    return {"seconds": time.monotonic() - begin, "before": before, "peak": own.peak}


def measured(what: str, raw: Path, prepared: Path, size: int, processes: int = 1) -> dict[str, float]:
    """`part` in processes of its own: the greatest of what they report. What many prepare one joins afterwards."""
    if what == "prepare" and processes > 1:
        made = measured("shards", raw, prepared, size, processes)
        joined = measured("prepare", raw, prepared, size)
        return {"seconds": made["seconds"] + joined["seconds"], "joining": joined["seconds"],
                **{name: max(made[name], joined[name]) for name in ("before", "peak")}}
    from tesserae.data.workers import cores

    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    launch, environment = [], {**os.environ, "PYTHONPATH": paths}
    if processes > 1:
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment |= {"OMP_NUM_THREADS": str(max(1, cores() // processes))}
    done = subprocess.run([sys.executable, *launch, __file__, "--part", what, str(raw), str(prepared), "--size",
                           str(size)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    reported = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reported) == processes, done.stdout
    return {name: max(each[name] for each in reported) for name in reported[0]}


def main() -> None:
    """Measure each count and print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of preparing and encoding many pictures.")
    parser.add_argument("--counts", nargs="+", type=int, default=[1000, 10000, 100000])
    parser.add_argument("--side", type=int, default=128, help="pixels a side of the raw pictures")
    parser.add_argument("--size", type=int, default=64, help="and of the prepared ones")
    parser.add_argument("--what", nargs="+", choices=["prepare", "encode"], default=["prepare", "encode"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1], help="that work together; several by turns")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(part(*arguments.part, arguments.size)) + "\n", end="", flush=True)  # in one piece
        return
    work = [(what, count) for what in arguments.what for count in arguments.processes]
    heads = (f"{what}, {count} process{'es' * (count > 1)} | pictures/s | memory, MB" for what, count in work)
    print("| pictures |", " | ".join(heads), "|")
    print("| --- " * (1 + 3 * len(work)) + "|", flush=True)
    for count in arguments.counts:
        with tempfile.TemporaryDirectory(prefix="large-set-") as place:
            raw, prepared = Path(place) / "raw", Path(place) / "prepared"
            write_pictures(raw, count, arguments.side)
            if "prepare" not in arguments.what:
                measured("prepare", raw, prepared, arguments.size)
            cells = []
            for what, processes in work:
                shutil.rmtree(prepared if what == "prepare" else prepared / "codes", ignore_errors=True)
                found = measured(what, raw, prepared, arguments.size, processes)
                joining = f" (joining {found['joining']:.1f} s)" if "joining" in found else ""
                cells += [f"{found['seconds']:.1f} s{joining}", f"{count / found['seconds']:.0f}",
                          f"{found['peak'] / 1e6:,.0f} ({found['before'] / 1e6:,.0f})"]
        print(f"| {count:,} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    from tesserae.errors import command

    with command():
        main()
