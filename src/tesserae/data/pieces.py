"""Raw pictures decoded and resized, piece by piece: by one process or many, and gone on with after a stop.

    python -m tesserae.data.pieces --params params.yaml
    torchrun --nproc_per_node 4 -m tesserae.data.pieces --params params.yaml

Who has many pictures shares them among processes like that, of several machines, too, that see one disk. The stage
`prepare` takes up the pieces that are there, makes the others, and joins them. A piece is known by the names, sizes
and times of its files, by how they are decoded and by the code that does it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL

from tesserae.data.decode import Picture, decode
from tesserae.data.entries import Entry, Raw
from tesserae.data.left_out import check_columns
from tesserae.data.lock import held, run_of
from tesserae.data.raw import find_source, list_raw
from tesserae.data.scales import said_of
from tesserae.data.workers import cores, eta, in_order
from tesserae.errors import TesseraeError, writing
from tesserae.files import find_root
from tesserae.params import PrepareParams, load_params
from tesserae.source_code import code_of

LEAST, MOST = 512, 65_536  # pictures a piece, which is what a stop may lose
MANY = 1000  # pieces of a set, while they are within these
PIECES = "pieces"  # their folder
ROWS = 256  # pictures that are written or read together
NAME = re.compile(r"\d{12}-[0-9a-f]{16}\.(arrow|json)")


def pieces_of(count: int, least: int, multiple: int = 1) -> list[range]:
    """`count` pictures cut into about MANY pieces of equal size, but for the last; whoever works on them.

    A piece has `least` to MOST pictures, rounded up to a multiple.
    """
    size = min(max(least, -(-count // MANY)), MOST)
    size = -(-size // multiple) * multiple
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Piece:
    """What became of some entries. rows: how many pictures the file `table` holds, which is there if there are any;
    rejected: (path, reason)."""

    table: Path
    rows: int
    rejected: list[tuple[str, str]]

    def read(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        """These columns of each picture."""
        if self.rows:
            for batch in _opened(self.table).select_columns(columns).with_format("arrow").iter(ROWS):
                yield from batch.to_pylist()


def make_pieces(raw: Raw, params: PrepareParams, folder: Path, share: tuple[int, int] = (0, 1),
                progress: Callable[[int, int], None] | None = None) -> Iterator[Piece]:
    """The pieces that `folder` has, and those that it lacks as they are made, in order, on all cores.

    share: (k, n) for every n-th piece from number k on, so that n processes make each once. Tables have the columns
    image (PNG), label, given (its split), path, sha, width, height (as it came), look, odd (JSON of `Picture.odd`),
    values (`scales.said_of`), and the paired ones (PNG). Files of more than 8 bits keep their values until the scale
    of the set is known.
    progress(done, total) counts files. Raises DiskFullError, TesseraeError.
    """
    for name in sorted({*raw.columns} & {*features([])}):
        raise TesseraeError(f"The paired column {name!r} has a name that the prepared set uses itself: give it "
                            f"another in metadata.jsonl, such as {name}_map_file_name.")
    mine = pieces_of(raw.length, LEAST)[share[0]::share[1]]
    done, total = 0, sum(map(len, mine))

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    how = {"size": params.image_size, "fit": params.fit, "min_side": params.min_side}
    facts = json.dumps([how, raw.columns, PIL.__version__, code_of("tesserae.data.pieces")])
    folder.mkdir(parents=True, exist_ok=True)
    workers = cores()
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # PIL's remarks on odd files
        for numbers in mine:
            entries, before = list(raw.entries(numbers)), done
            name = f"{numbers.start:012d}-{_identity(facts, entries)}"
            piece = _found(folder, name)
            if piece is None:
                _remove(folder.glob(f"{numbers.start:012d}-*"))  # of other files
                results = in_order(pool, partial(_named_decode, **how), entries, 4 * workers)
                piece = _made(folder, name, results, raw.columns, one_more)
            for _ in range(len(numbers) - (done - before)):
                one_more()
            yield piece


def aside_of(out: Path) -> Path:
    """Where all lies that makes up a prepared set until it is whole."""
    return out.with_name(f".{out.name}.partial")


def tidy(folder: Path) -> None:
    """Remove what is no whole piece, such as half of one that was being written when the power went."""
    if folder.is_dir():
        _remove(file for file in folder.iterdir() if not NAME.fullmatch(file.name))


def features(columns: list[str]):
    """Of a piece's table, with these paired columns."""
    import datasets

    text, number = datasets.Value("string"), datasets.Value("int32")
    pairs = {name: datasets.Image() for name in columns}
    return datasets.Features({"image": datasets.Image(), "label": text, "path": text, "sha": text, "given": text,
                              "odd": text, "values": text, "width": number, "height": number,
                              "look": datasets.Value("binary"), **pairs})


def _identity(facts: str, entries: list[Entry]) -> str:
    digest = hashlib.blake2b(facts.encode(), digest_size=8)
    for entry in entries:
        said = [entry.path, entry.label, entry.split, sorted(entry.pairs), entry.fault, entry.mark]
        digest.update(json.dumps(said).encode())
    return digest.hexdigest()


def _found(folder: Path, name: str) -> Piece | None:
    """A piece that is there, undamaged."""
    try:
        said = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        piece = Piece(folder / f"{name}.arrow", said["rows"], [(path, why) for path, why in said["rejected"]])
        return piece if not piece.rows or _digest(piece.table) == said["digest"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _made(folder: Path, name: str, results: Iterator[tuple[Entry, Picture | Exception]], columns: list[str],
          one_more: Callable[[], None]) -> Piece:
    """Write the table of a piece, then what is said of it: where that is, the table is whole."""
    from datasets.arrow_writer import ArrowWriter

    table, rejected, rows = folder / f"{name}.arrow", [], 0
    aside = folder / f".{name}.{os.getpid()}"
    with writing(table):
        try:
            with ArrowWriter(path=str(aside), features=features(columns), writer_batch_size=ROWS) as writer:
                for entry, result in results:
                    if isinstance(result, Picture):
                        pairs = {column: _stored(content) for column, content in result.pairs.items()}
                        writer.write({"image": _stored(result.image), "label": entry.label, "path": entry.path,
                                      "sha": result.sha, "given": entry.split, "width": result.width,
                                      "height": result.height, "look": result.look,
                                      "odd": json.dumps(result.odd), "values": said_of(result.found), **pairs})
                        rows += 1
                    else:
                        rejected.append((entry.path, str(result)))
                    one_more()
                if rows:
                    writer.finalize()
            if rows:
                _flush(aside)
                os.replace(aside, table)
            digest = _digest(table) if rows else None
            aside.write_text(json.dumps({"rows": rows, "digest": digest, "rejected": rejected}), encoding="utf-8")
            _flush(aside)
            os.replace(aside, folder / f"{name}.json")
        finally:
            aside.unlink(missing_ok=True)
    return Piece(table, rows, rejected)


def _named_decode(entry: Entry, **how) -> tuple[Entry, Picture | Exception]:
    return entry, decode(entry, **how)


def _stored(content: bytes) -> dict:
    return {"bytes": content, "path": None}


def _opened(table: Path):
    import datasets

    return datasets.Dataset.from_file(str(table))


def _flush(file: Path) -> None:
    """Return when it is on the disk for sure."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def _remove(files: Iterator[Path]) -> None:
    for file in list(files):
        file.unlink(missing_ok=True)


def main() -> None:
    """Make this process's pieces; see the module's first lines."""
    parser = argparse.ArgumentParser(description="Decode and resize the raw pictures; the stage prepare joins them.")
    parser.add_argument("--params", default="params.yaml", help="parameters file (default: params.yaml)")
    arguments = parser.parse_args()
    share = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        print(_share(arguments.params, share))
    except TesseraeError as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit("stopped: what is whole is kept, and the same command goes on from there.") from None


def _share(params_file: str, share: tuple[int, int]) -> str:
    """Make every n-th piece from number k on, share (k,n); what became of them, in a sentence."""
    root = find_root()
    params = load_params(root / params_file)
    out, run = root / "prepared", run_of(os.environ)
    with writing(aside_of(out)), held(out, "python -m tesserae.data.pieces", run), \
            tempfile.TemporaryDirectory() as scratch:
        if run is None:
            tidy(aside_of(out) / PIECES)
        try:
            source = find_source(params.prepare.source, root)
            raw = list_raw(source, Path(scratch) / "raw.sqlite", params.prepare.hub)
            check_columns(str(source), raw.columns, {name: block.column for name, block in params.vqgan.items()})
        except sqlite3.Error as error:
            raise TesseraeError(f"{scratch} cannot be written ({error}): see to the disk and its rights.") from None
        pieces = list(make_pieces(raw, params.prepare, aside_of(out) / PIECES, share,
                                  None if share[0] else eta("files")))
    rows, rejected = sum(piece.rows for piece in pieces), sum(len(piece.rejected) for piece in pieces)
    return (f"process {share[0] + 1} of {share[1]}: {rows:,} pictures in {len(pieces):,} "
            f"piece{'s' * (len(pieces) != 1)}, {rejected:,} files rejected; dvc repro prepare joins them.")


if __name__ == "__main__":
    main()
