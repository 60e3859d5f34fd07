"""The machine's matrix-product peak: `python -m benchmarks.peak THREADS DEVICE SECONDS`.

Prints JSON: floating-point operations a second of the quickest product of two square matrices, in fp32 and in bf16.
"""

from __future__ import annotations

import json
import sys
import time

import torch

SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


def product_peak(dtype: torch.dtype, device: str, seconds: float) -> float:
    """Floating-point operations a second, 2 n^3 a product, the best of what `seconds` allow for each size."""
    best = 0.0
    for side in SIDES[device]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        began, first = time.perf_counter(), True
        while first or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            left @ right
            if device == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            best, first = max(best, 2 * side**3 / taken), False
        if taken > seconds:
            break  # slow here, and slower still where larger
    return best


def main() -> None:
    """Measure with the command line's threads."""
    threads, device, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(threads)
    print(json.dumps({name: product_peak(dtype, device, seconds)
                      for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}))


if __name__ == "__main__":
    main()
