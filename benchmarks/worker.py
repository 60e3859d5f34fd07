"""One side of one case, in a process of its own: `python -m benchmarks.worker PLAN`, PLAN as JSON.

It does what it reads on stdin and answers in a line of JSON on stdout: "prepare", then "go" for one timed run,
"finish" for all that was measured. What others print goes to stderr.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.cases import TRAINING, Plan
from benchmarks.memory import forget_peak, peak_bytes, release, resident_bytes
from benchmarks.turns import Found
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


class Here:
    """One side of a case in this process.

    As `turns.Worker`, which has one in a process of its own. Where several share a process they begin sooner, and on
    a CPU their memory is not told apart.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.found = plan, None
        self.on_gpu = plan.device == "cuda"
        torch.set_num_threads(plan.threads)
        importlib.import_module(f"benchmarks.{plan.side}.{plan.kind}")
        if plan.side == "theirs":
            from benchmarks.reference import import_checkout

            import_checkout(Path(plan.reference))
        counted(lambda: torch.ones(2, 2).mm(torch.ones(2, 2)).numel())  # what counting loads is the libraries', too
        self.before = resident_bytes(plan.device)
        self.peak = self.kept = 0

    def prepare(self) -> Here:
        """Prepare and warm up; itself. `found` stays None where there is nothing to time."""
        plan, start = self.plan, resident_bytes(self.plan.device)
        torch.manual_seed(plan.seed)
        torch.backends.cudnn.allow_tf32 = False  # while outputs are compared, then as torch has it
        self.work = prepared(plan)
        torch.backends.cudnn.allow_tf32 = True
        if self.work is None:
            return self
        count = plan.side == "ours" and (plan.kind in TRAINING or not self.on_gpu)
        amount, flops = warmed(self.work, plan.device, count)
        release(plan.device)
        self.kept = resident_bytes(plan.device) - start
        self.found = Found(amount, flops, self.work.note, self.work.bf16, self.before)
        return self

    def run(self) -> float:
        """One timed run; its seconds."""
        others = resident_bytes(self.plan.device) - self.kept if self.on_gpu else 0
        if self.on_gpu or not self.peak:
            forget_peak(self.plan.device)
        if self.on_gpu and self.plan.kind in TRAINING:
            self.work.run()  # to take up again the memory that was left to the other sides
        self.found.seconds.append(timed(self.work, self.plan.device))
        self.peak = max(self.peak, peak_bytes(self.plan.device) - others)
        release(self.plan.device)
        return self.found.seconds[-1]

    def finish(self) -> Found:
        """The measured, with its peak of memory."""
        self.found.peak_bytes = self.peak
        self.close()
        return self.found

    def close(self) -> None:
        """Let go of the networks."""
        self.work = None
        gc.collect()
        release(self.plan.device)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(plan: Plan, requests: Iterable[str], answer: Callable[[dict], None]) -> None:
    """Do what is asked of the plan's side: "prepare", "go", "finish"; all else ends it."""
    side = Here(plan)
    for line in requests:
        word = line.strip()
        if word == "prepare":
            found = side.prepare().found
            answer({"skipped": True} if found is None else asdict(found))
        elif word == "go":
            answer({"seconds": side.run()})
        elif word == "finish":
            answer(asdict(side.finish()))


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
