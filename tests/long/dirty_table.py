"""What a user reads for each kind of dirty input, as a table.

    python tests/long/dirty_table.py
"""

import sys
import tempfile
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
import dirty
import test_dirty


def main() -> None:
    """Print it."""
    warnings.simplefilter("ignore")
    for kind in dirty.KINDS:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            said, kept = test_dirty.outcome(Path(folder), kind, test_dirty.forbidding(patch))
        said = said.replace(folder, "...").replace("\n", f"\n{'':46s}")
        print(f"{kind.name:38s} {'stops' if kept is None else kept:>6} {said}")


if __name__ == "__main__":
    main()
