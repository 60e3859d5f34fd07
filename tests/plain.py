"""The parameters of the tests, tests/plain.yaml, written out: every key, as a user's params.yaml has them."""

from pathlib import Path
from typing import Any

from tesserae.params.compose import composed
from tesserae.params.reading import parsed, read_values

PLAIN = Path(__file__).with_name("plain.yaml")


def plain_text() -> str:
    """The file that `make preset` would write."""
    return composed(read_values(PLAIN))


def plain_values() -> dict[str, Any]:
    """What it holds."""
    return parsed(plain_text(), PLAIN)
