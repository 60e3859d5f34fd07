"""A stage before each transformer: it notes which code maps that one reads.

    python -m tesserae.pipeline.inputs --target class

DVC cannot name the folders of a list such as `condition` in params.yaml. So this stage depends on all of codes/, and
writes .inputs/<target>.json, which changes only with what the transformer and its samples read. Code maps carry the
fingerprint of the VQGAN that made them, so this stands for the VQGANs, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from tesserae.errors import command
from tesserae.files import find_root, write_atomically
from tesserae.params import load_params
from tesserae.stage import stage_block

FOLDER = ".inputs"


def note_inputs(root: Path, target: str) -> Path:
    """Write which code maps transformer.<target> reads, with a hash of each, and return the file.

    Raises TesseraeError."""
    block = stage_block(load_params(root / "params.yaml"), "transformer", target)
    names = dict.fromkeys((block.vqgan, *block.codes_read))
    hashes = {f"codes/{name}": _hash_of(root / "codes" / name) for name in names}
    path = root / FOLDER / f"{target}.json"
    write_atomically(path, (json.dumps(hashes, indent=2) + "\n").encode())
    return path


def _hash_of(folder: Path) -> str:
    """A hash of all files of a folder; that of nothing where it is missing."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(folder).as_posix()} ".encode())
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("python -m tesserae.pipeline.inputs", description="Note what is read.")
    parser.add_argument("--target", required=True, help="the block of transformer, for instance class")
    options = parser.parse_args(arguments)
    with command():
        note_inputs(find_root(), options.target)


if __name__ == "__main__":
    main()
