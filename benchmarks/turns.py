"""Two sides that take turns: each in a process of its own, asked for one run after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import Plan
from tesserae.errors import TesseraeError

ROOT = Path(__file__).resolve().parent.parent


def environment(threads: int, device: str = "cpu") -> dict[str, str]:
    """What a child finds: this clone's code, and so many threads."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **own, **({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})}


@dataclass
class Found:
    """What a worker measured.

    seconds: of each run. amount: units of a run (steps, codes). flops: floating-point operations of a run that its
    matrix products and convolutions need, 0 where they were not counted. peak_bytes: highest memory from the first
    run on, of the process (CPU) or of its tensors (GPU); library_bytes: what of it was there after the imports.
    """

    amount: float
    flops: float
    note: str
    bf16: bool
    library_bytes: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


class Worker:
    """A child for one side of a case, which imports, prepares when it is told to, and then runs when it is told to.

    Raises TesseraeError with the child's own sentence, or where it stopped without one. `found` is None before it has
    prepared, and where it has nothing to time.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(plan))]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      env=environment(plan.threads, plan.device))
        self.found: Found | None = None

    def prepare(self) -> Worker:
        """Let it prepare and warm up; itself."""
        answer = self._ask("prepare")
        self.found = None if answer.get("skipped") else Found(**answer)
        return self

    def run(self) -> float:
        """One timed run; its seconds."""
        return self._ask("go")["seconds"]

    def finish(self) -> Found:
        """The measured, with its peak of memory; the child ends."""
        self.found = Found(**self._ask("finish"))
        self.close()
        return self.found

    def close(self) -> None:
        """End the child."""
        with suppress(BrokenPipeError):
            self.child.stdin.close()
        try:
            self.child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, word: str) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # that it ended is said below
            self.child.stdin.write(word + "\n")
            self.child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.child.stdout.readline()
        if not line:
            raise TesseraeError(f"{self.plan.case}: the worker of {self.plan.side} ended without an answer: its last "
                                "lines say why; where there are none, memory ran out.")
        answer = json.loads(line)
        if "error" in answer:
            raise TesseraeError(answer["error"])
        return answer
