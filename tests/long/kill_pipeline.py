"""Kill a tiny pipeline again and again, at random instants in all its stages, and see that nothing differs.

    python tests/long/kill_pipeline.py --deaths 50 --seed 0

One copy of the repository runs undisturbed. Another one is killed: everything at once or only the kernel, the
pipeline or dvc, mostly by SIGKILL, sometimes by SIGTERM or SIGINT. After each death the two commands of `make repro`
follow at once. When it is through, every model, code map, sample, table, metric and figure is compared byte by byte,
what MLflow has is compared with the reports, and the next copy is killed, until there were as many deaths as asked
for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "pipeline"), str(HERE.parents[1])]
from conftest import Clone  # noqa: E402
from tests.plain import plain_values  # noqa: E402

from tesserae import tracking  # noqa: E402

REPRO = "python -m tesserae.pipeline.repair && exec dvc repro"  # what `make repro` does
COMPARED = ("prepared", "models", "codes", "samples", "reports")
NOT_COMPARED = re.compile(r"reports/notebooks/|/timings\.|/\.")  # times of day, and seconds
WAYS = {"SIGKILL to all": 50, "SIGTERM to all": 10, "SIGINT to all": 10, "SIGKILL to the kernel": 10,
        "SIGKILL to the pipeline": 10, "SIGKILL to dvc": 10}
MARKS = {"the kernel": "ipykernel_launcher", "the pipeline": "tesserae.pipeline",
         "dvc": "dvc"}  # in their commands
PATIENCE = 120  # seconds in which everything must end that was asked to
START = "between stages"
SMALL = {"steps": 24, "batch_size": 4, "warmup": 2, "log_every": 2, "sample_every": 6, "eval_every": 6,
         "eval_images": 4, "checkpoint_every": 4}
TINY = {
    "prepare": {"image_size": 32, "min_side": 16, "holdout": 0.3},
    "vqgan": {"image": SMALL | {
        "channels": 32, "channel_mult": [1, 1], "patch": 4, "z_channels": 32, "codebook_size": 16, "codebook_dim": 8,
        "disc_start": 8, "disc_channels": 8, "disc_layers": 1, "perceptual_weight": 0.0}},
    "codebook": {"image": {"batch_size": 16, "dictionary": 4, "patches": 2, "num_images": 4}},
    "transformer": {"class": SMALL | {"n_layer": 1, "n_head": 2, "n_embd": 32}},
    "sample": {"class": {"top_k": 0, "per_class": 1, "num_eval_samples": 12, "completions": 1, "neighbours": 1}},
}  # fmt: skip


def tiny_clone(folder: Path) -> Clone:
    """A copy with one chain of stages, small enough that starting Python is most of the work."""
    folder.mkdir(parents=True)
    clone = Clone(folder)
    values = plain_values()
    for kind, block in TINY.items():
        if kind == "prepare":
            values[kind] |= block
            continue
        for name, changes in block.items():
            values[kind][name] |= changes
    clone.set_params(values | {"threads": 1, "scenes": {"count": 40, "size": 32, "seed": 0}})
    clone.run("python", "-m", "tesserae.scenes")
    clone.run("dvc", "add", "-q", "data")
    clone.commit("Begin")
    return clone


class Attempt:
    """`make repro` in its own process group, with what it prints in a file."""

    def __init__(self, root: Path, target: str):
        environment = {key: value for key, value in os.environ.items()
                       if not key.startswith(("MLFLOW_", "DVC_", "TESSERAE_", "PYTEST_", "GIT_"))}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        environment["PYTHONPATH"] = str(root / "src")
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        self.log = root.with_name(f"{root.name}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(["bash", "-c", f"{REPRO} {target}"], cwd=root, env=environment,
                                            stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.times: dict[str, float] = {}  # stage -> when it began
        self._seen = 0

    def watch(self, seconds: float) -> bool:
        """Wait so long, or until it is over, which is answered; notes when stages begin."""
        end = time.monotonic() + seconds
        while True:
            found = re.findall(r"Running stage '(.+?)'", self.text())
            for name in found[self._seen:]:
                self.times[name] = time.monotonic()
            self._seen = len(found)
            if self.process.poll() is not None:
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.03)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def stage(self) -> str:
        return list(self.times)[-1] if self.times else START

    def kill(self, way: str) -> bool:
        """Kill in this way and wait for the end. False where what should be killed is not there."""
        name, _, whom = way.partition(" to ")
        number = getattr(signal, name)
        try:
            if whom == "all":
                os.killpg(self.process.pid, number)
            else:
                whole = psutil.Process(self.process.pid)
                victims = [each for each in (whole, *whole.children(recursive=True))
                           if any(MARKS[whom] in word for word in each.cmdline())]
                if not victims:
                    return False
                victims[0].send_signal(number)
        except (ProcessLookupError, psutil.Error):
            return False
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"After {way} nothing ended in {PATIENCE} s:\n{self.text()[-3000:]}") from None
        return True

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def contents(root: Path) -> dict[str, bytes]:
    """What is compared: path -> bytes."""
    paths = (path for name in COMPARED for path in sorted((root / name).rglob("*")) if path.is_file())
    named = ((path.relative_to(root).as_posix(), path) for path in paths)
    return {name: path.read_bytes() for name, path in named if not NOT_COMPARED.search(name)}


def undisturbed(root: Path, target: str) -> dict[str, float]:
    """Run it once; seconds of each stage, in their order."""
    began = time.monotonic()
    with Attempt(root, target) as attempt:
        attempt.watch(3600)
    if attempt.process.returncode:
        raise SystemExit(f"The undisturbed run failed:\n{attempt.text()[-3000:]}")
    marks = [*attempt.times.values(), time.monotonic()]
    print(f"undisturbed: {marks[-1] - began:.0f} s", flush=True)
    seconds = {name: after - before for name, before, after in zip(attempt.times, marks, marks[1:])}
    return {START: marks[0] - began} | seconds


def live(root: Path, target: str, seconds: dict[str, float], deaths: dict[str, Counter], most: int,
         rng: random.Random) -> None:
    """Run it to its end, with deaths on the way as long as fewer than `most` are counted."""
    failures = 0
    while True:
        died = total(deaths)
        with Attempt(root, target) as attempt:
            if died < most:
                wanted = min(seconds, key=lambda name: (sum(deaths[name].values()), rng.random()))
                while wanted != START and wanted not in attempt.times and not attempt.watch(0.1):
                    pass
                over = attempt.watch(rng.uniform(0, 1.1 * seconds[wanted]))
                stage, way = attempt.stage, rng.choices(list(WAYS), list(WAYS.values()))[0]
                if not over and attempt.kill(way):
                    deaths[stage][way] += 1
                    print(f"  {died + 1:3d}  {stage:20s} {way}", flush=True)
                    continue
            attempt.watch(3600)
        if attempt.process.returncode == 0:
            return
        failures += 1
        print(f"  failed by itself:\n{attempt.text()[-2500:]}", flush=True)
        if failures > 1:
            raise SystemExit("It failed twice without being killed: a manual step would be needed.")


def total(deaths: dict[str, Counter]) -> int:
    """All deaths so far."""
    return sum(sum(each.values()) for each in deaths.values())


def compare(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """What differs, a line each."""
    return [f"{name} " + ("differs" if name in found and name in wanted else
                          "is missing" if name in wanted else "is one too many")
            for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]


def tracked(root: Path) -> list[str]:
    """What MLflow's store lacks of the reports once all is sent, a line each; MLflow may have been killed, too."""
    sync = subprocess.run([sys.executable, "-m", "tesserae.tracking", "sync"], cwd=root, capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(root / "src")})
    faults = [f"sync: {sync.stdout}{sync.stderr}"] if sync.returncode else []
    runs = tracking.runs_table(root)
    faults += [f"a run of {stage} is still RUNNING" for stage in runs["stage"][runs["status"] == "RUNNING"]]
    for report in sorted((root / "reports").glob("*/metrics.json")):
        stage = report.parent.name
        finished = runs[(runs["stage"] == stage) & (runs["status"] == "FINISHED")]
        if finished.empty:
            faults.append(f"no run of {stage} is FINISHED")
            continue
        newest = finished.iloc[0]
        for name, value in json.loads(report.read_text(encoding="utf-8")).items():
            found = newest.get(f"metrics.{name}")
            if isinstance(value, (int, float)) and (found is None or float(f"{found:.6g}") != value):
                faults.append(f"{stage}: {name} is {value} in the report and {found} in MLflow")
        figures = {path.name for path in (root / "mlruns" / newest["run_id"] / "artifacts/figures").glob("*.png")}
        faults += [f"{stage}: MLflow lacks {path.name}" for path in report.parent.glob("*.png")
                   if path.name not in figures]
    return faults


def kernels_left(root: Path) -> list[int]:
    """Kernels of that copy that still live."""
    found = []
    for process in psutil.process_iter():
        try:
            if "ipykernel_launcher" in process.cmdline() and process.cwd().startswith(str(root)):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def table(seconds: dict[str, float], deaths: dict[str, Counter]) -> str:
    """stage -> deaths, by way."""
    rows = [f"{'stage':20s} {'seconds':>7s} {'deaths':>6s}"]
    for name in seconds:
        ways = ", ".join(f"{count} {way}" for way, count in sorted(deaths[name].items()))
        rows.append(f"{name:20s} {seconds[name]:7.1f} {sum(deaths[name].values()):6d}  {ways}")
    return "\n".join(rows)


def run(folder: Path, deaths: int, seed: int, target: str = "") -> tuple[list[str], dict[str, Counter]]:
    """Everything; returns the differences, a line each, and the deaths: stage -> way -> how many."""
    rng = random.Random(seed)
    template = tiny_clone(folder / "template").root
    first = shutil.copytree(template, folder / "undisturbed copy", symlinks=True)
    seconds = undisturbed(first, target)
    wanted = contents(first)
    differences = [f"undisturbed: {each}" for each in tracked(first)]
    counted: dict[str, Counter] = defaultdict(Counter)
    number = 0
    while total(counted) < deaths:
        number += 1
        root = shutil.copytree(template, folder / f"killed copy {number}", symlinks=True)
        live(root, target, seconds, counted, deaths, rng)
        found = contents(root)
        new = compare(found, wanted) + tracked(root)
        left = kernels_left(root)
        if left:
            new.append(f"kernels {left} still live")
        differences += [f"copy {number}: {each}" for each in new]
        print(f"copy {number}: {len(found)} files compared, {len(new)} differences", flush=True)
        if not new:
            shutil.rmtree(root, ignore_errors=True)
    print(table(seconds, counted))
    return differences, counted


def main() -> int:
    """The command: 0 when nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deaths", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="only to this stage, for instance vqgan@image")
    parser.add_argument("--keep", type=Path, help="a folder to work in, which is kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what it started is killed then, too
    folder = options.keep or Path(tempfile.mkdtemp(prefix="killed-"))
    began = time.monotonic()
    differences, counted = run(folder, options.deaths, options.seed, options.target)
    print(f"{total(counted)} deaths in {(time.monotonic() - began) / 60:.1f} minutes, {len(differences)} differences")
    print(*differences, sep="\n")
    if not options.keep and not differences:
        shutil.rmtree(folder, ignore_errors=True)
    return int(bool(differences))


if __name__ == "__main__":
    sys.exit(main())
