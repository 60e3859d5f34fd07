"""How fast, in how much memory: this project and the reference implementation, case by case.

    python -m benchmarks --reference CHECKOUT --cases vqgan-small nearest-1024 --rounds 5 --threads 2

Each side of a case is a process of its own. They are prepared on the same weights and checked to give the same
outputs; then they take turns, and the medians are reported. Without --reference this project alone is timed. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.cases import CASES, MODES, SAME, Case, Plan
from benchmarks.table import Row, as_record, table
from benchmarks.turns import Worker, environment
from tesserae.errors import TesseraeError


def measure(case: Case, plan: Plan, rounds: int, modes: Sequence[str] = MODES, place: type = Worker) -> list[Row]:
    """Time a case, `rounds` times in turn: the reference where the plan has one, then each of our rows of `modes`.

    place: where sides live, `turns.Worker` (a process each) or `worker.Here`.
    """
    with ExitStack() as stack:
        theirs = stack.enter_context(place(_side(plan, "theirs", SAME))) if plan.reference else None
        ours = [stack.enter_context(place(_side(plan, "ours", mode))) for mode in case.rows if mode in modes]
        if theirs:
            theirs.prepare()
        ours = [worker for worker in ours if worker.prepare().found]
        for _ in range(rounds):
            for worker in [*ours, *filter(None, [theirs])]:
                worker.run()
        other = theirs.finish() if theirs else None
        return [Row(case.name, case.unit, worker.plan.mode, worker.finish(), other) for worker in ours]


def _side(plan: Plan, side: str, mode: str) -> Plan:
    return Plan(**{**vars(plan), "side": side, "mode": mode})


def matrix_peak(threads: int, device: str, seconds: float) -> dict[str, float]:
    """Floating-point operations a second of large matrix products, by precision."""
    command = [sys.executable, "-m", "benchmarks.peak", str(threads), device, str(seconds)]
    done = subprocess.run(command, env=environment(threads, device), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise TesseraeError("the matrix-product peak could not be measured: the lines above say why.")
    return json.loads(done.stdout)


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time this project and the reference.")
    parser.add_argument("--reference", type=Path, help="checkout of CompVis/taming-transformers; without: ours alone")
    parser.add_argument("--cases", nargs="+", metavar="NAME", default=list(CASES),
                        help=f"which, in this order (default: all): {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each side (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of each side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", nargs="+", choices=MODES, default=list(MODES), help="ours with (default: all)")
    parser.add_argument("--one-process", action="store_true",
                        help="both sides in this process: sooner done; on a CPU memory is that of both")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: says that it works, not how fast it is")
    parser.add_argument("--out", type=Path, help="also write every number to this JSON file")
    arguments = parser.parse_args(given)
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}: --help lists them")
    if arguments.rounds < 1 or arguments.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    if arguments.reference and not (arguments.reference / "taming" / "models" / "vqgan.py").is_file():
        parser.error(f"{arguments.reference} holds no taming/models/vqgan.py: give a checkout of the reference")
    return arguments


def run(arguments: argparse.Namespace) -> tuple[list[Row], dict[str, float]]:
    """Every case that was asked for, and the machine's peak: the best of one before and one after."""
    machine = (arguments.threads, arguments.device, 0.05 if arguments.quick else 2.0)
    before, rows = matrix_peak(*machine), []
    reference = str(arguments.reference.resolve()) if arguments.reference else None
    place = Worker
    if arguments.one_process:
        from benchmarks.worker import Here as place  # which imports torch
    for case in (CASES[name] for name in arguments.cases):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            plan = Plan(case.name, case.kind, side="", mode=SAME, size=case.sizes(arguments.device, arguments.quick),
                        threads=arguments.threads, device=arguments.device, reference=reference,
                        shared=str(Path(folder) / "shared.pt"))
            found = measure(case, plan, arguments.rounds, arguments.rows, place)
        for row in found:
            print(row, file=sys.stderr, flush=True)  # so that a run that is broken off has shown something
        rows += found
    after = matrix_peak(*machine)
    return rows, {name: max(before[name], after[name]) for name in before}


def main(given: Sequence[str] | None = None) -> None:
    """Time and print the table."""
    arguments = parse(given)
    try:
        rows, peak = run(arguments)
    except TesseraeError as error:
        raise SystemExit(str(error)) from None
    print(f"{table(rows, peak)}\n")
    print(f"Medians of {arguments.rounds} rounds on {arguments.threads} threads, {arguments.device}"
          f"{', quick sizes' if arguments.quick else ''}. Matrix-product peak: {peak['fp32'] / 1e9:.4g} GFLOP/s in "
          f"fp32, {peak['bf16'] / 1e9:.4g} in bf16.\nMemory: the highest, in brackets what libraries took of it. "
          "MFU: the operations that our run needs, for either side, as a share of that peak.")
    if arguments.out:
        facts = {name: getattr(arguments, name) for name in ("rounds", "threads", "device", "quick")}
        facts |= {"matrix_product_peak": peak, "rows": [as_record(row, peak) for row in rows]}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
