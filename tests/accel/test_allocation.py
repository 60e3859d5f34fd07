"""Freed memory: kept for the next tensors, and given back when it is asked for."""

import subprocess
import sys

import pytest

STEPS = """
import resource, torch
from pathlib import Path
from tesserae.accel.allocation import give_back_memory, keep_freed_memory

def held():
    return resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[1])

def faults(times=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16, 2**20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(1)
mapped = faults()
assert keep_freed_memory()
faults(8)  # the heap grows until one fits
start = held()
assert faults() < mapped / 10
give_back_memory()
assert start - held() > 32 * 2**20
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_large_tensors_are_made_where_the_last_ones_lay():
    subprocess.run([sys.executable, "-c", STEPS], check=True)


def test_elsewhere_nothing_is_done(monkeypatch):
    from tesserae.accel import allocation
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocation.keep_freed_memory()
    allocation.give_back_memory()
