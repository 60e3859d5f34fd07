"""One side of one case, in a process of its own: `python -m benchmarks.worker PLAN`, PLAN as JSON.

It prepares, says so in a line of JSON on stdout, then does what it reads on stdin: "go" is one timed run, "peak" its
memory. What others print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.cases import Plan
from benchmarks.memory import forget_peak, peak_bytes, release, resident_bytes
from benchmarks.work import Work, check_equal, counted, timed, warmed
from tesserae.errors import TesseraeError


def prepared(plan: Plan) -> Work | None:
    """The plan's side; the reference's leaves its weights for ours, ours is checked against its outputs."""
    side = importlib.import_module(f"benchmarks.{plan.side}.{plan.kind}")
    shared = Path(plan.shared)
    if plan.side == "theirs":
        work, given = side.prepare(plan)
        torch.save({**given, "outputs": {name: value.cpu() for name, value in work.outputs.items()}}, shared)
        return work
    given = torch.load(shared, mmap=True, weights_only=True) if plan.reference else None
    work = side.prepare(plan, given)
    if work and given:
        check_equal(plan.case, work.outputs, given["outputs"])
    return work


def serve(plan: Plan, requests: Iterable[str], answer: Callable[[dict], None]) -> None:
    """Prepare the plan's side, then run it as often as asked."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    importlib.import_module(f"benchmarks.{plan.side}.{plan.kind}")
    if plan.side == "theirs":
        from benchmarks.reference import import_checkout

        import_checkout(Path(plan.reference))
    counted(lambda: torch.ones(2, 2).mm(torch.ones(2, 2)).numel())  # what counting loads is the libraries', too
    library = resident_bytes(plan.device)
    work = prepared(plan)
    if work is None:
        answer({"skipped": True})
        return
    amount, flops = warmed(work, plan.device, count=plan.side == "ours")
    forget_peak(plan.device)
    release(plan.device)
    answer({"amount": amount, "flops": flops, "note": work.note, "bf16": work.bf16, "library_bytes": library})
    for line in requests:
        if line.strip() == "go":
            answer({"seconds": timed(work, plan.device)})
            release(plan.device)
        elif line.strip() == "peak":
            answer({"peak_bytes": peak_bytes(plan.device)})


def main() -> None:
    """Serve the plan of the command line on stdin and stdout."""
    channel, sys.stdout = sys.stdout, sys.stderr

    def answer(said: dict) -> None:
        print(json.dumps(said), file=channel, flush=True)

    try:
        serve(Plan(**json.loads(sys.argv[1])), sys.stdin, answer)
    except TesseraeError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main()
