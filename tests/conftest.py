"""Two processes share the machine (pyproject.toml), so each of them, and what it starts, works with one thread."""

import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it
    if "torch" in sys.modules:  # a plugin was quicker
        sys.modules["torch"].set_num_threads(1)
